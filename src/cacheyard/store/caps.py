"""Caps: which a host is to have and which its agent saw in force. And what shards' traffic was lately."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain import flavors
from cacheyard.domain.caps import Cap, caps, digest
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Node, Shard
from cacheyard.store import identity, instances, nodes, rows, shards
from cacheyard.store.tables import hosts, seen_caps, traffic
from cacheyard.store.tables import instances as instance_rows
from cacheyard.store.tables import nodes as node_rows

_SLICE = "slice"  # the fact that has the region's part of 127.0.0.0/8


class SeenCaps(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `seen_caps`."""

    host_id: str
    instance_id: str
    digest: str
    error: str | None = None


def of_host(tx: Connection, host_id: str) -> dict[str, tuple[Cap, ...]]:
    """What is wanted of a host, by instance; those that need none are left out."""
    there: dict[str, list[Node]] = {}
    for node in rows.all_of(Node, tx.execute(select(node_rows).where(node_rows.c.host_id == host_id))):
        there.setdefault(node.instance_id, []).append(node)
    query = select(instance_rows).where(instance_rows.c.id.in_(list(there)))
    of_all: dict[str, list[Shard]] = {}
    for shard in shards.of_instances(tx, list(there)):
        of_all.setdefault(shard.instance_id, []).append(shard)
    found = {}
    for instance in rows.all_of(Instance, tx.execute(query)):
        if wanted := _wanted(instance, of_all[instance.id], there[instance.id]):
            found[instance.id] = wanted
    return found


def region(tx: Connection) -> str:
    """The slice whose addresses are held to nothing among themselves."""
    return str(identity.fact(tx, _SLICE))


def unsettled(tx: Connection, instance_id: str) -> str | None:
    """Why the caps of an instance are not as the rows want by now; None: they are, or its hosts have none."""
    instance = instances.get(tx, instance_id)
    if instance is None:
        return None
    there = nodes.of_instance(tx, instance_id)
    for host_id in {node.host_id for node in there}:
        if not tx.execute(select(hosts.c.caps).where(hosts.c.id == host_id)).scalar_one():
            continue
        here = [node for node in there if node.host_id == host_id]
        wanted = _wanted(instance, shards.of_instance(tx, instance_id), here)
        query = select(seen_caps).where(
            seen_caps.c.host_id == host_id, seen_caps.c.instance_id == instance_id
        )
        seen = rows.one_of(SeenCaps, tx.execute(query))
        known = seen.digest if seen is not None else digest(())
        if known != digest(wanted):
            return (seen.error if seen is not None else None) or "the caps are not in force yet"
    return None


def _wanted(instance: Instance, groups: Sequence[Shard], there: Iterable[Node]) -> tuple[Cap, ...]:
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance got it
    return caps(instance, flavor, groups, there)


def report(tx: Connection, host_id: str, seen: Iterable[SeenCaps]) -> None:
    """What an agent saw now is all that there is on its host."""
    there = set(tx.scalars(select(instance_rows.c.id)))
    tx.execute(delete(seen_caps).where(seen_caps.c.host_id == host_id))
    for one in seen:
        if one.instance_id in there:
            tx.execute(upsert(seen_caps).values(**msgspec.to_builtins(one)))


def add_traffic(tx: Connection, minute: int, looks: Mapping[str, float], keep: int) -> None:
    """One look at the shards' traffic in that minute, in Mbit/s; what is older than `keep` minutes goes."""
    for shard_id, mbit in looks.items():
        kbit = round(mbit * 1000)
        tx.execute(
            upsert(traffic)
            .values(shard_id=shard_id, minute=minute, total=kbit, looks=1)
            .on_conflict_do_update(
                index_elements=["shard_id", "minute"],
                set_={"total": traffic.c.total + kbit, "looks": traffic.c.looks + 1},
            )
        )
    tx.execute(delete(traffic).where(traffic.c.minute < minute - keep))


def traffic_of(tx: Connection, shard_ids: Iterable[str], first: int, last: int) -> dict[str, float]:
    """Mbit/s of each shard, on average over these minutes. One in which nobody looked was a quiet one."""
    columns = traffic.c
    query = (
        select(columns.shard_id, func.sum(columns.total * 1.0 / columns.looks))
        .where(columns.shard_id.in_(list(shard_ids)), columns.minute.between(first, last))
        .group_by(columns.shard_id)
    )
    return {shard_id: kbit / 1000 / (last - first + 1) for shard_id, kbit in tx.execute(query)}
