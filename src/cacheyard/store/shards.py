"""Rows of `shards`: what is wanted of them for tasks, who guards them for agents."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, and_, bindparam, case, delete, insert, select, update

from cacheyard.domain.instances import CLUSTERED_MODES, GUARDED_MODES, PROXIED_MODES
from cacheyard.domain.nodes import Role, Shard
from cacheyard.store import rows
from cacheyard.store.tables import instances, nodes, shards

_ORDER = (shards.c.instance_id, shards.c.number)


def add(tx: Connection, new: Iterable[Shard]) -> None:
    """Insert shards."""
    tx.execute(insert(shards), [msgspec.to_builtins(shard) for shard in new])


def of_instance(tx: Connection, instance_id: str) -> list[Shard]:
    """The instance's shards in their order."""
    return of_instances(tx, [instance_id])


def of_instances(tx: Connection, instance_ids: Sequence[str]) -> list[Shard]:
    """The shards of several instances, by instance and number."""
    query = select(shards).where(shards.c.instance_id.in_(instance_ids)).order_by(*_ORDER)
    return rows.all_of(Shard, tx.execute(query))


def remove(tx: Connection, shard_id: str) -> None:
    """Delete a shard; its nodes must be gone already."""
    tx.execute(delete(shards).where(shards.c.id == shard_id))


def watch(tx: Connection, instance_id: str, on: bool) -> None:
    """Whether the instance's masters may be replaced without a task. Each beginning is a watch of its own;
    one that is on already stays as it is."""
    columns = shards.c
    tx.execute(
        update(shards)
        .where(columns.instance_id == instance_id, columns.watched.is_(not on))
        .values(watched=on, watch=columns.watch + (1 if on else 0))
    )


def watch_anew(tx: Connection, shard_id: str) -> None:
    """A watch that is on forgets what it knew: replicas have gone, or the master moved as planned."""
    columns = shards.c
    tx.execute(
        update(shards)
        .where(columns.id == shard_id)
        .values(watch=case((columns.watched, columns.watch + 1), else_=columns.watch))
    )


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """A shard whose master may be replaced without a task, or could be if it were watched."""

    id: str
    instance_id: str
    cache_mode: str
    internal_secret: str  # sealed
    watched: bool
    watch: int
    seen_watch: int
    master_id: str
    master_ip: str
    port: int
    ssl: bool

    @property
    def clustered(self) -> bool:
        """Whether the cluster protocol decides who is master; else Sentinels do."""
        return self.cache_mode in CLUSTERED_MODES

    @property
    def encrypted(self) -> bool:
        """Whether its servers speak TLS, and so must Sentinels that watch them. Behind proxies none do."""
        return self.ssl and self.cache_mode not in PROXIED_MODES


def name_of(shard: Guarded) -> str:
    """What Sentinels call a shard's master, for as long as one watch lasts."""
    return f"{shard.id}.{shard.watch}"


_GUARDED = (
    select(
        *(shards.c[name] for name in ("id", "instance_id", "watched", "watch", "seen_watch")),
        *(instances.c[name] for name in ("cache_mode", "internal_secret", "ssl")),
        nodes.c.id.label("master_id"),
        nodes.c.ip.label("master_ip"),
        nodes.c.port,
    )
    .join(instances, instances.c.id == shards.c.instance_id)
    .join(nodes, and_(nodes.c.shard_id == shards.c.id, nodes.c.role == Role.MASTER))
    .where(instances.c.cache_mode.in_(GUARDED_MODES))
)


def guarded(tx: Connection) -> list[Guarded]:
    """All shards with replicas that could take the master's place."""
    return rows.all_of(Guarded, tx.execute(_GUARDED))


def guarded_one(tx: Connection, shard_id: str) -> Guarded | None:
    """The shard, if it is one of those."""
    return rows.one_of(Guarded, tx.execute(_GUARDED.where(shards.c.id == shard_id)))


def seen_watch(tx: Connection, seen: dict[str, int]) -> None:
    """Write which watch of each shard is on, by shard id; 0: none."""
    if seen:
        tx.execute(
            update(shards).where(shards.c.id == bindparam("shard_id")),
            [{"shard_id": shard_id, "seen_watch": watch} for shard_id, watch in seen.items()],
        )
