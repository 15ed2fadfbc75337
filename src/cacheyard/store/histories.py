"""Rows of `config_histories`: the changes of instances' parameters."""

import msgspec
from sqlalchemy import Connection, func, insert, select, update

from cacheyard.clock import now_ms
from cacheyard.domain.histories import ConfigStatus, History
from cacheyard.store import rows
from cacheyard.store.tables import config_histories as histories


def add(tx: Connection, history: History) -> None:
    """Insert a change that has begun."""
    tx.execute(insert(histories).values(**msgspec.to_builtins(history)))


def end(tx: Connection, task_id: str, status: ConfigStatus) -> None:
    """Say what became of the change that a task makes. What was said first stays."""
    tx.execute(
        update(histories)
        .where(histories.c.task_id == task_id, histories.c.status == ConfigStatus.UPDATING)
        .values(status=status, ended_at=now_ms())
    )


def get(tx: Connection, instance_id: str, history_id: str) -> History | None:
    """The change of that instance with that id."""
    query = select(histories).where(histories.c.instance_id == instance_id, histories.c.id == history_id)
    return rows.one_of(History, tx.execute(query))


def page(tx: Connection, instance_id: str, offset: int, limit: int) -> list[History]:
    """Changes of the instance, newest first."""
    query = select(histories).where(histories.c.instance_id == instance_id)
    newest_first = query.order_by(histories.c.created_at.desc(), histories.c.id)
    return rows.all_of(History, tx.execute(newest_first.offset(offset).limit(limit)))


def count(tx: Connection, instance_id: str) -> int:
    """How many there are."""
    query = select(func.count()).select_from(histories).where(histories.c.instance_id == instance_id)
    return int(tx.execute(query).scalar_one())
