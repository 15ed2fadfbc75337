"""What instances are called in the region's DNS zone, and where their names lead. No I/O."""

import re

import msgspec

from cacheyard.domain.nodes import NodeState, Role, Run

# Seconds that a resolver may remember an answer: how long reads still go to a replica that has left the
# read-only name. Long enough that a busy client does not ask for each connection.
TTL = 3
ZONE_LENGTH = 200  # leaves room in the 253 characters of a name for an instance's id and its suffix

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """As much of a node as names depend on."""

    role: Role
    ip: str
    run: Run
    state: NodeState
    in_dns: bool
    added: bool
    follows: bool  # it was seen as a replica with its link to the master up, since it is in its state

    @property
    def up(self) -> bool:
        """Whether it answers, and should."""
        return self.run is Run.UP and self.state is NodeState.ACTIVE


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """As much of an instance as names depend on."""

    id: str
    cache_mode: str
    ip: str
    growing: bool  # servers are being added to it
    members: list[Member]  # by shard and number


def zone_name(given: str, region: str) -> str:
    """The zone as it is meant: by default under `internal`, which is set aside for private use, so that it
    can never be somebody's on the Internet."""
    return (given or f"dcs.{region}.internal").lower().removesuffix(".")


def zone_fault(zone: str) -> str | None:
    """Why a zone cannot be called so; None: it can."""
    if len(zone) > ZONE_LENGTH:
        return f"it is longer than {ZONE_LENGTH} characters"
    if not all(_LABEL.fullmatch(label) for label in zone.split(".")):
        return "between dots there must be 1-63 letters, digits and hyphens, no hyphen first or last"
    return None


def host_of(instance_id: str) -> str:
    """What stands before the zone in an instance's name."""
    return f"redis-{instance_id}"


def readonly_host_of(instance_id: str) -> str:
    """What stands before the zone in its read-only name."""
    return f"redis-{instance_id}-readonly"


def has_readonly_name(cache_mode: str) -> bool:
    """Whether clients of such an instance may read from replicas, and find them by a name."""
    return cache_mode == "ha"


def addresses(named: Named) -> list[str]:
    """Where an instance's name leads. Never nowhere: when no server is up, to where they will be.

    A server that is being added to a cluster knows nothing of it before it has met the others.
    """
    if named.cache_mode != "cluster":
        return [named.ip]
    up = [member for member in named.members if member.up]
    met = [member for member in up if not (named.growing and member.added)]
    return [member.ip for member in met or up or named.members] or [named.ip]


def readonly_addresses(named: Named) -> list[str]:
    """Where its read-only name leads: to the replicas that have what the master has.

    A master that is up is better than a replica that is behind, and any replica better than a dead master.
    """
    replicas = [member for member in named.members if member.role is Role.REPLICA and member.in_dns]
    there = [member.ip for member in replicas if member.up]
    in_step = [member.ip for member in replicas if member.up and member.follows]
    if in_step:
        return in_step
    if any(member.role is Role.MASTER and member.up for member in named.members):
        return [named.ip]
    return there or [named.ip]
