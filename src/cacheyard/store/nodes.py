"""Rows of `nodes` and `node_figures`: the wanted half for tasks, the seen half for agents."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, insert, not_, or_, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain.instances import Instance, with_master
from cacheyard.domain.nodes import LOADING, Address, Figures, Node, NodeSettings, NodeState, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.store import rows
from cacheyard.store.tables import hosts, instances, node_drift, node_figures, nodes, shards

_BY_PLACE = (
    select(nodes)
    .join(shards, shards.c.id == nodes.c.shard_id, isouter=True)
    .order_by(nodes.c.instance_id, shards.c.number, nodes.c.number)
)


def add(tx: Connection, new: Iterable[Node]) -> None:
    """Insert nodes; the agents of their hosts then start them."""
    tx.execute(insert(nodes), [msgspec.to_builtins(node) for node in new])


def of_instance(tx: Connection, instance_id: str) -> list[Node]:
    """The instance's nodes, by shard and number."""
    return _many(tx, _BY_PLACE.where(nodes.c.instance_id == instance_id))


def of_shard(tx: Connection, shard_id: str) -> list[Node]:
    """The shard's nodes, by number."""
    return _many(tx, _BY_PLACE.where(nodes.c.shard_id == shard_id))


def of_instances(tx: Connection, instance_ids: Sequence[str]) -> list[Node]:
    """The nodes of several instances."""
    return _many(tx, _BY_PLACE.where(nodes.c.instance_id.in_(instance_ids)))


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


def figures_of(tx: Connection, instance_id: str) -> dict[str, Figures]:
    """What the instance's servers last said, by node; of those that were never asked, nothing."""
    query = select(node_figures).join(nodes).where(nodes.c.instance_id == instance_id)
    return {found.node_id: found for found in rows.all_of(Figures, tx.execute(query))}


def figures_of_all(tx: Connection, instance_ids: Sequence[str]) -> dict[str, list[Figures]]:
    """What the servers of several instances last said, by instance."""
    found: dict[str, list[Figures]] = {instance_id: [] for instance_id in instance_ids}
    query = select(nodes.c.instance_id, *node_figures.c).join_from(node_figures, nodes)
    for instance_id, *figures in tx.execute(query.where(nodes.c.instance_id.in_(instance_ids))):
        found[instance_id].append(Figures(**dict(zip(_FIGURES, figures, strict=True))))
    return found


def addresses_of(tx: Connection, instance_ids: Collection[str]) -> dict[str, list[Address]]:
    """Where the nodes of several instances answer, by shard and number; without those that are to go."""
    c = nodes.c
    query = (
        select(c.instance_id, c.ip, c.port)
        .join(shards, shards.c.id == c.shard_id)
        .where(c.instance_id.in_(instance_ids), c.run != Run.GONE)
        .order_by(shards.c.number, c.number)
    )
    found: dict[str, list[Address]] = {}
    for instance_id, ip, port in tx.execute(query):
        found.setdefault(instance_id, []).append(Address(ip, port))
    return found


class Unsettled(msgspec.Struct, frozen=True):
    """A node that is not yet as wanted, and what was last seen of it."""

    instance_id: str
    role: Role
    seen: str
    refused: bool = False  # by the server, what is wanted now: it will not be so by waiting


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
    query = select(
        *(c.instance_id, c.role, c.ip, c.seen_state, c.seen_error),
        (c.seen_refused == c.generation).label("no"),
    ).where(c.instance_id.in_(instance_ids), not_(as_wanted))
    return [
        Unsettled(
            row.instance_id,
            Role(row.role),
            f"{row.ip} is {row.seen_state}" + (f": {row.seen_error}" if row.seen_error else ""),
            row.no,
        )
        for row in tx.execute(query)
    ]


class Away(msgspec.Struct, frozen=True):
    """A replica that should run and does not answer."""

    node_id: str
    instance_id: str
    since: int  # when it was last seen to answer, or not to
    loading: bool  # it is there, and reads its data


def replicas_away(tx: Connection, heard_after: int) -> list[Away]:
    """Those of running instances that nothing is being done to. An agent that was not heard of after that
    moment says nothing of its nodes."""
    c = nodes.c
    query = (
        select(c.id, c.instance_id, c.seen_since, c.seen_error)
        .join(instances, instances.c.id == c.instance_id)
        .join(hosts, hosts.c.id == c.host_id)
        .where(
            c.role == Role.REPLICA,
            c.run == Run.UP,
            c.seen_state != NodeState.ACTIVE,
            instances.c.status == Status.RUNNING,
            instances.c.task_id.is_(None),
            hosts.c.seen_at > heard_after,
        )
    )
    return [
        Away(node_id, instance_id, since, error == LOADING)
        for node_id, instance_id, since, error in tx.execute(query)
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
    priority: int | None = None,
    in_dns: bool | None = None,
    binary: str | None = None,
    anew: bool = False,
) -> None:
    """Change what is wanted of `node`, as read in this transaction. `anew`: a task has changed the server by
    itself, and it is to be made again what the settings say."""
    values: dict[str, Any] = {}
    if priority is not None:
        values["priority"] = priority
        settings = msgspec.structs.replace(settings or node.settings, priority=priority)
    if in_dns is not None:
        values["in_dns"] = in_dns
    if run is not None:
        values["run"] = run
    if role is not None:
        values["role"] = role
    if settings is not None and settings != node.settings:
        values["settings"] = msgspec.to_builtins(settings)
        values["port"] = settings.port
        values["generation"] = node.generation + 1
    if binary is not None:
        values["binary"] = binary
    if anew:
        values["generation"] = node.generation + 1
    if restart:
        values["incarnation"] = node.incarnation + 1
    if restart or run is not None:
        values["keep_data"] = keep_data
    if values:
        tx.execute(update(nodes).where(nodes.c.id == node.id).values(**values))


def hand_over(tx: Connection, instance: Instance, shard: Sequence[Node], master_id: str) -> None:
    """Want that node to be the master of its shard, of which these are all nodes."""
    for node, role, settings in with_master(instance, shard, master_id):
        want(tx, node, role=role, settings=settings)


def remove(tx: Connection, node_ids: Collection[str]) -> None:
    """Delete the rows of nodes, once their processes and directories are gone."""
    tx.execute(delete(nodes).where(nodes.c.id.in_(node_ids)))


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent saw of a node: the seen half of its row."""

    node_id: str
    state: NodeState
    since: int
    incarnation: int
    generation: int
    pid: int | None
    error: str | None
    expires: int | None = None  # until when its certificate is valid
    refused: int = 0


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
            "seen_expires": one.expires,
            "seen_refused": one.refused,
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


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `node_drift`."""

    node_id: str
    seen_at: int
    differs: dict[str, tuple[str, str]]  # by parameter: what the server has, and what it should have
    error: str | None = None


def note_drift(tx: Connection, looked_at: Collection[str], found: Iterable[Drift]) -> None:
    """Keep what was found of the nodes that were looked at, and nothing older."""
    tx.execute(delete(node_drift).where(node_drift.c.node_id.in_(looked_at)))
    there = set(tx.scalars(select(nodes.c.id).where(nodes.c.id.in_(looked_at))))
    if new := [msgspec.to_builtins(one) for one in found if one.node_id in there]:
        tx.execute(insert(node_drift), new)


def drift_of(tx: Connection, instance_id: str) -> list[Drift]:
    """What servers of the instance have other than they should."""
    query = select(node_drift).join(nodes).where(nodes.c.instance_id == instance_id)
    return rows.all_of(Drift, tx.execute(query))


def _many(tx: Connection, query: Any) -> list[Node]:
    return rows.all_of(Node, tx.execute(query))
