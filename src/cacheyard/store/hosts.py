"""Rows of `hosts`: machines that run nodes. Written by the agent of each, read by placement."""

import msgspec
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain.placement import Host
from cacheyard.store import rows
from cacheyard.store.tables import hosts


def register(tx: Connection, host: Host) -> None:
    """Add the host, or renew what is known of it."""
    values = msgspec.to_builtins(host)
    tx.execute(upsert(hosts).values(**values).on_conflict_do_update(index_elements=["id"], set_=values))


def seen(tx: Connection, host_id: str, at: int) -> None:
    """Note that the host's agent is alive."""
    tx.execute(update(hosts).where(hosts.c.id == host_id).values(seen_at=at))


def every(tx: Connection) -> list[Host]:
    """All hosts, by id."""
    return rows.all_of(Host, tx.execute(select(hosts).order_by(hosts.c.id)))
