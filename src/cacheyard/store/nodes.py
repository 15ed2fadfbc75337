"""Rows of `nodes` and `node_figures`: the wanted half for tasks, the seen half for agents."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, update
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
    """Change what is wanted of `node` (as read in this transaction): run or not, role, settings, a restart."""
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


def figures_of(tx: Connection, node_ids: Sequence[str]) -> dict[str, Figures]:
    """The newest figures by node id; a node that was never read is absent."""
    found = tx.execute(select(node_figures).where(node_figures.c.node_id.in_(node_ids)))
    return {figures.node_id: figures for figures in rows.all_of(Figures, found)}


def _many(tx: Connection, query: Any) -> list[Node]:
    return rows.all_of(Node, tx.execute(query))
