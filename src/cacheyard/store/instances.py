"""Rows of `instances` and `tags`."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from cacheyard.clock import now_ms
from cacheyard.domain.instances import Instance, Tag
from cacheyard.domain.statuses import Status
from cacheyard.store import rows
from cacheyard.store.tables import addresses, instances, nodes, shards, tags

# Clients poll: what each poll asks is put together once.
_BY_ID = select(instances).where(instances.c.id == bindparam("id"))
_TAGS = (
    select(tags.c.instance_id, tags.c.key, tags.c.value)
    .where(tags.c.instance_id.in_(bindparam("ids", expanding=True)))
    .order_by(tags.c.position)
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which instances a list asks for; None and empty mean all."""

    ids: Sequence[str] | None = None
    name: str | None = None
    name_is_exact: bool = False
    engine: str | None = None
    statuses: Sequence[Status] | None = None
    without: Sequence[Status] = ()
    ip: str | None = None
    capacity_mb: int | None = None
    tags: Sequence[tuple[str, str | None]] = ()  # all of them; a value of None means any


def add(tx: Connection, instance: Instance) -> None:
    """Insert an instance."""
    tx.execute(insert(instances).values(**msgspec.to_builtins(instance)))


def get(tx: Connection, instance_id: str) -> Instance | None:
    """The instance, whosever it is."""
    return rows.one_of(Instance, tx.execute(_BY_ID, {"id": instance_id}))


def public_at(tx: Connection, address: str, port: int) -> str | None:
    """The instance that has that port of a public address."""
    c = instances.c
    query = select(c.id, c.public_access).where(c.port == port, c.public_access.is_not(null()))
    return next((row.id for row in tx.execute(query) if row.public_access["address"] == address), None)


def find(
    tx: Connection,
    project_id: str,
    wanted: Wanted,
    *,
    offset: int = 0,
    limit: int | None = None,
    after: str | None = None,
) -> list[Instance]:
    """The project's instances, newest first; `after` starts behind that id."""
    query = select(instances).where(_fits(project_id, wanted))
    if after is not None:
        mark = select(instances.c.created_at).where(instances.c.id == after).scalar_subquery()
        query = query.where(
            or_(instances.c.created_at < mark, and_(instances.c.created_at == mark, instances.c.id > after))
        )
    query = query.order_by(instances.c.created_at.desc(), instances.c.id).offset(offset)
    if limit is not None:
        query = query.limit(limit)
    return rows.all_of(Instance, tx.execute(query))


def count(tx: Connection, project_id: str, wanted: Wanted) -> int:
    """How many instances of the project fit."""
    return tx.execute(
        select(func.count()).select_from(instances).where(_fits(project_id, wanted))
    ).scalar_one()


def with_bandwidth(tx: Connection) -> list[Instance]:
    """Those whose bandwidth was ever changed, or has a policy, of all projects."""
    return rows.all_of(Instance, tx.execute(select(instances).where(instances.c.bandwidth.is_not(None))))


def count_by_status(tx: Connection, project_id: str) -> dict[str, int]:
    """How many instances the project has in each status."""
    query = (
        select(instances.c.status, func.count())
        .where(instances.c.project_id == project_id)
        .group_by(instances.c.status)
    )
    return {row[0]: row[1] for row in tx.execute(query)}


def sizes(tx: Connection, project_id: str | None) -> list[tuple[str, int]]:
    """(spec code, capacity in MB) of each instance of the project, or of all."""
    query = select(instances.c.spec_code, instances.c.capacity_mb)
    if project_id is not None:
        query = query.where(instances.c.project_id == project_id)
    return [(code, mb) for code, mb in tx.execute(query)]


def seize(tx: Connection, instance_id: str, *, status: Status, task_id: str, among: Iterable[Status]) -> bool:
    """Give the instance to a task, if none has it and its status is `among` those; whether it worked."""
    done = tx.execute(
        update(instances)
        .where(
            instances.c.id == instance_id, instances.c.task_id.is_(None), instances.c.status.in_(list(among))
        )
        .values(status=status, task_id=task_id, updated_at=now_ms())
    )
    return done.rowcount == 1


def release(tx: Connection, instance_id: str, task_id: str, *, status: Status) -> None:
    """Take the instance back from a task that has ended. Done twice, it changes nothing."""
    tx.execute(
        update(instances)
        .where(instances.c.id == instance_id, instances.c.task_id == task_id)
        .values(status=status, task_id=None, updated_at=now_ms())
    )


def change(tx: Connection, instance_id: str, **values: Any) -> None:
    """Set columns of an instance."""
    tx.execute(update(instances).where(instances.c.id == instance_id).values(**values, updated_at=now_ms()))


def remove(tx: Connection, instance_id: str) -> None:
    """Delete the instance and what only it has; its nodes must be gone already."""
    for table in (tags, addresses, shards):
        tx.execute(delete(table).where(table.c.instance_id == instance_id))
    tx.execute(delete(instances).where(instances.c.id == instance_id))


def tags_of(tx: Connection, instance_ids: Sequence[str]) -> dict[str, list[Tag]]:
    """Tags by instance id, in the order they were given."""
    found: dict[str, list[Tag]] = {instance_id: [] for instance_id in instance_ids}
    for instance_id, key, value in tx.execute(_TAGS, {"ids": list(instance_ids)}):
        found[instance_id].append(Tag(key, value))
    return found


def set_tags(tx: Connection, instance_id: str, new: Sequence[Tag]) -> None:
    """Replace the instance's tags."""
    tx.execute(delete(tags).where(tags.c.instance_id == instance_id))
    if new:
        given = [
            {"instance_id": instance_id, "key": tag.key, "value": tag.value, "position": position}
            for position, tag in enumerate(new)
        ]
        tx.execute(insert(tags), given)


def tags_of_project(tx: Connection, project_id: str) -> dict[str, list[str]]:
    """All keys and their values in the project, both in order."""
    query = (
        select(tags.c.key, tags.c.value)
        .join(instances, instances.c.id == tags.c.instance_id)
        .where(instances.c.project_id == project_id)
        .distinct()
        .order_by(tags.c.key, tags.c.value)
    )
    found: dict[str, list[str]] = {}
    for key, value in tx.execute(query):
        found.setdefault(key, []).append(value)
    return found


def _fits(project_id: str, wanted: Wanted) -> ColumnElement[bool]:
    columns = instances.c
    tests: list[ColumnElement[bool]] = [columns.project_id == project_id]
    if wanted.ids is not None:
        tests.append(columns.id.in_(list(wanted.ids)))
    if wanted.name:
        name = columns.name
        tests.append(
            name == wanted.name if wanted.name_is_exact else name.contains(wanted.name, autoescape=True)
        )
    if wanted.engine is not None:
        tests.append(columns.engine == wanted.engine)
    if wanted.statuses is not None:
        tests.append(columns.status.in_(list(wanted.statuses)))
    if wanted.without:
        tests.append(columns.status.not_in(list(wanted.without)))
    if wanted.ip:
        own = select(nodes.c.instance_id).where(nodes.c.ip.contains(wanted.ip, autoescape=True))
        of_cluster = and_(columns.cache_mode == "cluster", columns.id.in_(own))
        tests.append(or_(columns.ip.contains(wanted.ip, autoescape=True), of_cluster))
    if wanted.capacity_mb is not None:
        tests.append(columns.capacity_mb == wanted.capacity_mb)
    for key, value in wanted.tags:
        having = select(tags.c.instance_id).where(tags.c.key == key)
        if value is not None:
            having = having.where(tags.c.value == value)
        tests.append(columns.id.in_(having))
    return and_(*tests)
