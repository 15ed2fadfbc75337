"""Rows as the names of instances depend on them: little of each, as they are read often."""

from sqlalchemy import Connection, select

from cacheyard.domain.names import Member, Named
from cacheyard.domain.nodes import NodeState, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.store.tables import instances, node_figures, nodes, shards

_n, _f = nodes.c, node_figures.c
_INSTANCES = select(*(instances.c[name] for name in ("id", "cache_mode", "ip", "status")))
_NODES = (
    select(
        *(_n[name] for name in ("instance_id", "role", "ip", "run", "seen_state", "in_dns", "added")),
        _n.seen_since,
        *(_f[name] for name in ("seen_at", "role", "link_up")),
    )
    .join(shards, shards.c.id == _n.shard_id)
    .join(node_figures, _f.node_id == _n.id, isouter=True)
    .order_by(shards.c.number, _n.number)
)


def every(tx: Connection) -> list[Named]:
    """All instances of all projects, with their nodes."""
    members: dict[str, list[Member]] = {}
    for instance_id, role, ip, run, state, in_dns, added, since, read_at, seen_role, link_up in tx.execute(
        _NODES
    ):
        follows = bool(link_up) and seen_role == Role.REPLICA and read_at >= since
        member = Member(
            role=Role(role),
            ip=ip,
            run=Run(run),
            state=NodeState(state),
            in_dns=in_dns,
            added=added,
            follows=follows,
        )
        members.setdefault(instance_id, []).append(member)
    return [
        Named(
            id=id_,
            cache_mode=cache_mode,
            ip=ip,
            growing=status == Status.EXTENDING,
            members=members.get(id_, []),
        )
        for id_, cache_mode, ip, status in tx.execute(_INSTANCES)
    ]
