"""Where nodes go: the only place that chooses hosts."""

from collections.abc import Sequence

import msgspec

from cacheyard.domain.engines import Engine


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `hosts`: a machine with an agent."""

    id: str
    az_codes: tuple[str, ...]  # the zones it serves; all of them on a single machine
    memory_mb: int
    engines: tuple[Engine, ...]
    seen_at: int


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """Where one node goes."""

    az_code: str
    host_id: str


def place(hosts: Sequence[Host], az_codes: Sequence[str], nodes: int) -> list[Spot] | None:
    """Spots for the nodes of a shard: the master in the first zone asked for, then round the zones.

    None when a zone has no host.
    """
    spots = []
    for number in range(nodes):
        zone = az_codes[number % len(az_codes)]
        host = next((host for host in hosts if zone in host.az_codes), None)
        if host is None:
            return None
        spots.append(Spot(az_code=zone, host_id=host.id))
    return spots


def memory_fault(hosts: Sequence[Host], promised_mb: int, needed_mb: int, overcommit: float) -> str | None:
    """Why the machines' memory does not allow for `needed_mb` more than what is promised; None: it does."""
    there = int(sum(host.memory_mb for host in hosts) * overcommit)
    if promised_mb + needed_mb <= there:
        return None
    return (
        f"{needed_mb} MB are needed and {max(0, there - promised_mb)} of {there} MB are left "
        "(the setting `overcommit` allows for more than the machine has)"
    )
