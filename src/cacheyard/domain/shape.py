"""The shape of an instance: its shards with the master first, and which replicas may go. No I/O."""

from collections.abc import Iterable, Sequence

from cacheyard.domain.nodes import Node, NodeState, Role, Run
from cacheyard.domain.proxies import Proxy
from cacheyard.domain.replicas import expendable


def by_shard(nodes: Iterable[Node]) -> list[list[Node]]:
    """The nodes of each shard in the order of the shards: the master first, then the replicas by number."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        found.setdefault(node.shard_id, []).append(node)
    for shard in found.values():
        shard.sort(key=lambda node: (node.role is not Role.MASTER, node.number))
    return list(found.values())


def dimension(node: Node | Proxy) -> str:
    """What metrics know the node by. It belongs to the place: a node that replaces another keeps it."""
    return node.logical_id.replace("-", "")


def label(node: Node) -> str:
    """What people know the node by: `(master)127.64.0.5`."""
    return f"({node.role.value}){node.ip}"


def proxy_label(proxy: Proxy, ip: str) -> str:
    """What people know a proxy by: `(proxy 0)127.64.0.5`. All of an instance have its address."""
    return f"(proxy {proxy.number}){ip}"


def shown_state(node: Node, shard: Iterable[Node], *, growing: bool) -> str:
    """A node's state as clients know it; `shard` has all nodes of its shard, `growing`: servers are being
    added to its instance."""
    if node.run is Run.GONE or node.seen_state is NodeState.GONE:
        return NodeState.DELETING
    if node.seen_state is NodeState.STOPPED:
        return NodeState.INACTIVE
    if node.seen_state is NodeState.CREATING and growing and all(other.added for other in shard):
        return "AddSharding"
    return node.seen_state


def shown_proxy_state(proxy: Proxy) -> str:
    """A proxy's state as clients know it."""
    return NodeState.INACTIVE if proxy.seen_state is NodeState.STOPPED else proxy.seen_state


def removable(shards: Sequence[Sequence[Node]], spared: str) -> list[Node]:
    """A replica of each of the largest shards, which may go together: all of one zone, if there is one with
    replicas of all these shards. The address that is `spared` stays if another can go instead."""
    largest = max((len(shard) for shard in shards), default=0)
    if largest < 2:
        return []
    large = [shard for shard in shards if len(shard) == largest]
    zones = dict.fromkeys(node.az_code for node in expendable(large[0], largest))
    for chosen in [*([zone] for zone in zones), []]:
        going: list[Node] = []
        for shard in large:
            others = expendable(shard, 1, spared=[spared], zones=chosen)
            going += others or expendable(shard, 1, zones=chosen)
        if len(going) == len(large):
            return going
    return []
