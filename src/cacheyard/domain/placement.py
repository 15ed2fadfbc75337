"""Where nodes go: the only place that chooses hosts."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from cacheyard.domain.engines import Engine
from cacheyard.domain.nodes import Node, Role


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `hosts`: a machine with an agent."""

    id: str
    az_codes: tuple[str, ...]  # the zones it serves; all of them on a single machine
    memory_mb: int
    cores: int
    engines: tuple[Engine, ...]
    proxy: str | None  # the native proxy's program
    proxy_version: str | None = None  # what it says that it is, `0.1.0`
    caps: bool = False  # whether its agent holds clients to their bandwidth
    filter_fault: str | None = None  # why it cannot filter connections; None: it can
    seen_at: int


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """Where one node goes."""

    az_code: str
    host_id: str


def place(
    hosts: Sequence[Host], az_codes: Sequence[str], shards: int, nodes_per_shard: int
) -> list[list[Spot]] | None:
    """Spots for the nodes of each shard. The first shard's master is in the first zone asked for, its
    replicas go round the zones from there; each further shard begins a zone later: masters are spread.

    None when a zone has no host.
    """
    there: dict[str, str] = {}
    for host in reversed(hosts):
        there.update(dict.fromkeys(host.az_codes, host.id))
    if any(zone not in there for zone in az_codes):
        return None
    zones = [Spot(az_code=zone, host_id=there[zone]) for zone in az_codes]
    return [
        [zones[(shard + number) % len(zones)] for number in range(nodes_per_shard)] for shard in range(shards)
    ]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A node that goes to another zone."""

    node: Node
    zone: str


def moves(shard: Sequence[Node], zones: Sequence[str]) -> list[Move]:
    """Which nodes of a shard go where, for all to be in these zones; the master stays before others do."""
    ordered = sorted(shard, key=lambda node: (node.role is not Role.MASTER, node.number))
    return [Move(node=node, zone=zone) for node, zone in spread(ordered, zones)]


class Placed(Protocol):
    """What stands in a zone."""

    @property
    def az_code(self) -> str:
        """The zone's code."""


P = TypeVar("P", bound=Placed)


def spread(placed: Sequence[P], zones: Sequence[str]) -> list[tuple[P, str]]:
    """Which of them go where, for all to be in these zones, in no zone more than its share. What is right
    stays, the first before others; what moves goes to the zone that has the fewest."""
    share = -(-len(placed) // len(zones))
    there = dict.fromkeys(zones, 0)
    going = []
    for one in placed:
        if there.get(one.az_code, share) < share:
            there[one.az_code] += 1
        else:
            going.append(one)
    found = []
    for one in going:
        zone = min(there, key=lambda zone: there[zone])
        there[zone] += 1
        found.append((one, zone))
    return found


def memory_fault(hosts: Sequence[Host], promised_mb: int, needed_mb: int, overcommit: float) -> str | None:
    """Why the machines' memory does not allow for `needed_mb` more than what is promised; None: it does."""
    there = int(sum(host.memory_mb for host in hosts) * overcommit)
    if promised_mb + needed_mb <= there:
        return None
    return (
        f"{needed_mb} MB are needed and {max(0, there - promised_mb)} of {there} MB are left "
        "(the setting `overcommit` allows for more than the machine has)"
    )
