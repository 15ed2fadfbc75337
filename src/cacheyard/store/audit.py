"""Rows of the audit log. Written by `api.audit`, read by `cacheyard audit`."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, func, insert, select

from cacheyard.store.rows import all_of
from cacheyard.store.tables import audit


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `audit`: a request, who sent it and what became of it."""

    at: int
    request_id: str
    user_id: str | None
    user_name: str | None
    project_id: str | None
    operation: str
    action: str | None
    resources: list[str]
    status: int
    error_code: str | None
    source: str


def add(tx: Connection, entries: Sequence[Entry]) -> None:
    """Write them down."""
    tx.execute(insert(audit), [msgspec.to_builtins(entry) for entry in entries])


def find(
    tx: Connection,
    *,
    user: str | None = None,
    instance: str | None = None,
    since: int = 0,
    failed: bool = False,
    limit: int,
) -> list[Entry]:
    """The newest that fit, newest first. `user` is a name or an id, `instance` the id of anything."""
    query = select(*(audit.c[name] for name in Entry.__struct_fields__)).where(audit.c.at >= since)
    if user is not None:
        query = query.where((audit.c.user_name == user) | (audit.c.user_id == user))
    if instance is not None:
        each = func.json_each(audit.c.resources).table_valued("value")
        query = query.where(select(each.c.value).where(each.c.value == instance).exists())
    if failed:
        query = query.where(audit.c.status >= 400)
    return all_of(Entry, tx.execute(query.order_by(audit.c.id.desc()).limit(limit)))


def forget(tx: Connection, before: int) -> None:
    """Delete what is older."""
    tx.execute(delete(audit).where(audit.c.at < before))
