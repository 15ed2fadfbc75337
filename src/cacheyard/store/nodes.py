"""Rows of `nodes` and `node_figures`: the wanted half for tasks, the seen half for agents."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, insert, not_, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain.nodes import Figures, Node, NodeSettings, NodeState, Role, Run
from cacheyard.store import rows
from cacheyard.store.tables import node_figures, nodes

_ORDER = (nodes.c.shard_id, nodes.c.number)


def add(tx: Connection, new: Iterable[Node]) -> None:
    """Insert nodes; the agents of their hosts then start them."""
    tx.execute(insert(nodes), [msgspec.to_builtins(node) for node in new])


def of_instance(tx: Connection, instance_id: str) -> list[Node]:
    """The instance's nodes, by shard and number."""
    return _many(tx, select(nodes).where(nodes.c.instance_id == instance_id).order_by(*_ORDER))


def of_instances(tx: Connection, instance_ids: Sequence[str]) -> list[Node]:
    """The nodes of several instances."""
    return _many(tx, select(nodes).where(nodes.c.instance_id.in_(instance_ids)).order_by(*_ORDER))


_FIGURES = [column.name for column in node_figures.c]
_MASTERS = (
    select(nodes.c.instance_id, nodes.c.seen_state, nodes.c.seen_since, *node_figures.c)
    .join_from(nodes, node_figures, isouter=True)
    .where(nodes.c.instance_id.in_(bindparam("ids", expanding=True)), nodes.c.role == Role.MASTER)
)


class Master(msgspec.Struct, frozen=True):
    """As little of a master as lists need: reading its settings for a hundred instances is what costs."""

    instance_id: str
    state: NodeState
    since: int
    figures: Figures | None  # None: never read yet


def masters_of(tx: Connection, instance_ids: Sequence[str]) -> list[Master]:
    """The masters of several instances, with what they last said."""
    return [
        Master(
            instance_id,
            NodeState(state),
            since,
            Figures(**dict(zip(_FIGURES, figures, strict=True))) if figures[0] is not None else None,
        )
        for instance_id, state, since, *figures in tx.execute(_MASTERS, {"ids": list(instance_ids)})
    ]


class Unsettled(msgspec.Struct, frozen=True):
    """A node that is not yet as wanted, and what was last seen of it."""

    instance_id: str
    role: Role
    seen: str


def unsettled(tx: Connection, instance_ids: Collection[str]) -> list[Unsettled]:
    """Those nodes of the instances that are not yet as wanted."""
    c = nodes.c
    as_wanted = or_(
        and_(
            c.run == Run.UP,
            c.seen_state == NodeState.ACTIVE,
            c.seen_incarnation == c.incarnation,
            c.seen_generation == c.generation,
        ),
        and_(c.run == Run.DOWN, c.seen_state == NodeState.STOPPED),
        and_(c.run == Run.GONE, c.seen_state == NodeState.GONE),
    )
    query = select(c.instance_id, c.role, c.ip, c.seen_state, c.seen_error).where(
        c.instance_id.in_(instance_ids), not_(as_wanted)
    )
    return [
        Unsettled(
            row.instance_id,
            Role(row.role),
            f"{row.ip} is {row.seen_state}" + (f": {row.seen_error}" if row.seen_error else ""),
        )
        for row in tx.execute(query)
    ]


def of_host(tx: Connection, host_id: str) -> list[Node]:
    """All that an agent has to see to."""
    return _many(tx, select(nodes).where(nodes.c.host_id == host_id).order_by(nodes.c.id))


def want(
    tx: Connection,
    node: Node,
    *,
    run: Run | None = None,
    role: Role | None = None,
    settings: NodeSettings | None = None,
    restart: bool = False,
    keep_data: bool = True,
) -> None:
    """Change what is wanted of `node`, as read in this transaction."""
    values: dict[str, Any] = {}
    if run is not None:
        values["run"] = run
    if role is not None:
        values["role"] = role
    if settings is not None and settings != node.settings:
        values["settings"] = msgspec.to_builtins(settings)
        values["port"] = settings.port
        values["generation"] = node.generation + 1
    if restart:
        values["incarnation"] = node.incarnation + 1
    if restart or run is not None:
        values["keep_data"] = keep_data
    if values:
        tx.execute(update(nodes).where(nodes.c.id == node.id).values(**values))


def report(
    tx: Connection,
    node_id: str,
    *,
    state: NodeState,
    since: int,
    incarnation: int,
    generation: int,
    pid: int | None,
    error: str | None,
) -> None:
    """Write what an agent saw of a node. A node that is no longer there is no error."""
    tx.execute(
        update(nodes)
        .where(nodes.c.id == node_id)
        .values(
            seen_state=state,
            seen_since=since,
            seen_incarnation=incarnation,
            seen_generation=generation,
            seen_pid=pid,
            seen_error=error,
        )
    )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent saw of a node: the seen half of its row."""

    node_id: str
    state: NodeState
    since: int
    incarnation: int
    generation: int
    pid: int | None
    error: str | None


def report_all(tx: Connection, seen: Iterable[Report]) -> None:
    """Write what an agent saw of several nodes, in one go."""
    values = [
        {
            "node_id": one.node_id,
            "seen_state": str(one.state),
            "seen_since": one.since,
            "seen_incarnation": one.incarnation,
            "seen_generation": one.generation,
            "seen_pid": one.pid,
            "seen_error": one.error,
        }
        for one in seen
    ]
    if values:
        tx.execute(update(nodes).where(nodes.c.id == bindparam("node_id")), values)


class Outline(msgspec.Struct, frozen=True):
    """As much of a node's row as tells whether its wanted half has changed."""

    id: str
    run: Run
    role: Role
    incarnation: int
    keep_data: bool
    generation: int


def outlines_of_host(tx: Connection, host_id: str) -> list[Outline]:
    """All nodes of a host in outline: a tenth of the cost of reading them whole."""
    c = nodes.c
    query = select(c.id, c.run, c.role, c.incarnation, c.keep_data, c.generation).where(c.host_id == host_id)
    return [
        Outline(id_, Run(run), Role(role), incarnation, keep_data, generation)
        for id_, run, role, incarnation, keep_data, generation in tx.execute(query)
    ]


def every(tx: Connection) -> list[Node]:
    """All nodes of all hosts."""
    return _many(tx, select(nodes).order_by(nodes.c.id))


def by_ids(tx: Connection, node_ids: Sequence[str]) -> list[Node]:
    """The nodes with these ids; those that are no longer there are absent."""
    return _many(tx, select(nodes).where(nodes.c.id.in_(node_ids)))


def remove_of_instance(tx: Connection, instance_id: str) -> None:
    """Delete the rows of an instance's nodes, once their processes and directories are gone."""
    tx.execute(delete(nodes).where(nodes.c.instance_id == instance_id))


def record_figures(tx: Connection, seen: Iterable[Figures]) -> None:
    """Keep the newest figures of each node; of nodes that are gone, nothing."""
    known = {row.id for row in tx.execute(select(nodes.c.id))}
    newest = [msgspec.to_builtins(figures) for figures in seen if figures.node_id in known]
    if newest:
        statement = upsert(node_figures)
        renewed = {c.name: statement.excluded[c.name] for c in node_figures.c if c.name != "node_id"}
        tx.execute(statement.on_conflict_do_update(index_elements=["node_id"], set_=renewed), newest)


def _many(tx: Connection, query: Any) -> list[Node]:
    return rows.all_of(Node, tx.execute(query))
