"""Which replicas go when a shard gets fewer, and where new ones come. No I/O."""

from collections.abc import Collection, Sequence

from cacheyard.domain.nodes import Node, NodeState, Role

_NEVER = 101  # as priorities go, 0 is the last of all


def expendable(
    shard: Sequence[Node], count: int, *, spared: Collection[str] = (), zones: Collection[str] = ()
) -> list[Node]:
    """`count` replicas of a shard that go, those of the lowest standing first; fewer if there are no more.

    None has an address that is `spared`, all are in `zones` if there are any. The last replica that the
    read-only name has is the last to go.
    """
    replicas = sorted((node for node in shard if node.role is Role.REPLICA), key=_standing)
    left = [node for node in replicas if node.ip not in spared and (not zones or node.az_code in zones)]
    going: list[Node] = []
    while left and len(going) < count:
        going.append(next((node for node in left if not empties_name(shard, [*going, node])), left[0]))
        left.remove(going[-1])
    return going


def empties_name(shard: Sequence[Node], going: Sequence[Node]) -> bool:
    """Whether the read-only name has replicas of the shard, but none when those have gone."""
    gone = {node.id for node in going}
    named = {node.id for node in shard if node.role is Role.REPLICA and node.in_dns}
    return bool(named) and named <= gone


def zones_for(shard: Sequence[Node], count: int, zones: Sequence[str]) -> list[str]:
    """The zones of `count` new replicas, of those asked for. Of more zones than new replicas, those go first
    that have the fewest nodes of the shard: clients send the zones of all nodes."""
    if len(zones) <= count:
        return [zones[number % len(zones)] for number in range(count)]
    have = {zone: sum(node.az_code == zone for node in shard) for zone in zones}
    chosen = []
    for _ in range(count):
        zone = min(have, key=lambda zone: have[zone])
        have[zone] += 1
        chosen.append(zone)
    return chosen


def _standing(node: Node) -> tuple[bool, int, int]:
    """Least first: what does not answer, what is promoted last, what came last."""
    return node.seen_state is NodeState.ACTIVE, -(node.priority or _NEVER), -node.number
