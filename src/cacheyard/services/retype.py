"""The part of 5.1.7 that changes the type: master/standby or read/write splitting to Proxy Cluster, and back.
`tasks.retype` says how it is done."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import ResizeInstanceBody
from cacheyard.domain import placement
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import PROXIED_MODES, Instance, clustered, port_fault
from cacheyard.domain.nodes import Address, Node, Role, Run, Shard
from cacheyard.domain.parameters import for_proxies
from cacheyard.domain.placement import Spot
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import reshard, work
from cacheyard.services.call import Call
from cacheyard.services.replicas import further_replicas
from cacheyard.services.room import check_room
from cacheyard.store import hosts, nodes, shards

_PAIRS = ({"ha", "proxy"}, {"ha_rw_split", "proxy"})  # types that can become one another


def check_types(instance: Instance, old: Flavor, new: Flavor) -> None:
    """Refuse a change of the type that there is not."""
    what = f"from {old.cache_mode} to {new.cache_mode}"
    if {old.cache_mode, new.cache_mode} not in _PAIRS:
        raise errors.CannotResize(parameter="spec_code", why=f"no instance can go {what}")
    proxied = new if new.cache_mode == "proxy" else old
    for flavor in (proxied, new):
        if instance.engine_version not in flavor.engine_versions:
            raise errors.CannotResize(
                parameter="spec_code",
                why=f"{flavor.spec_code} is sold for {', '.join(flavor.engine_versions)}, "
                f"the instance is {instance.engine_version}",
            )
    if instance.public_access is not None:
        raise errors.CannotRetype(parameter="spec_code", why="switch public access off first")
    if instance.ssl and (old.cache_mode in PROXIED_MODES) is not (new.cache_mode in PROXIED_MODES):
        raise errors.CannotRetype(parameter="spec_code", why="it speaks TLS: switch that off for the time")
    if old.cache_mode == "proxy" and for_proxies(instance.parameters, instance.engine_version, old).databases:
        raise errors.CannotRetype(parameter="spec_code", why="it has several databases, by multi-db")
    if (why := port_fault(new.cache_mode, instance.port)) is not None:
        raise errors.CannotRetype(parameter="spec_code", why=f"its port is {instance.port}: {why}")


def begin_retype(
    tx: Connection, call: Call[ResizeInstanceBody], instance: Instance, old: Flavor, new: Flavor
) -> str:
    """Give the instance to the task that makes it one of the new type; the task's id.

    The servers of both are promised their memory until it ends.
    """
    reshard.check_filling(tx, instance, new)
    _check_databases(tx, instance, new)
    check_room(tx, call, old, new, beside=True)
    future = msgspec.structs.replace(
        instance, cache_mode=new.cache_mode, spec_code=new.spec_code, capacity_mb=new.capacity_mb
    )
    there = hosts.every(tx)
    if new.proxies and all(host.proxy is None for host in there):
        raise errors.ZoneSoldOut(why="no host has the proxy's program")
    spots = placement.place(there, instance.az_codes, new.shards, new.nodes_per_shard)
    if spots is None:
        raise errors.ZoneSoldOut(why="a zone of the instance has no host")
    first, *others = shards.of_instance(tx, instance.id)
    more = reshard.new_shards(instance, [first], new.shards) if clustered(future) else []
    change = Change.TO_PROXY if clustered(future) else Change.FROM_PROXY
    heir, *replicas = _first_shard(tx, future, new, first, spots[0])
    task_id = work.begin(
        tx,
        call.who,
        instance,
        change,
        name="EXTEND",
        status=Status.EXTENDING,
        arguments={
            "spec_code": new.spec_code,
            "old_spec_code": instance.spec_code,
            "heir": heir.id,
            "node_ids": [node.id for node in replicas],
            "shards": [shard.id for shard in more or others],
        },
        details=work.flavor_details(instance, old, new),
    )
    if more:
        shards.add(tx, more)
    nodes.add(tx, [heir, *replicas])
    for shard, there_ in zip(more, spots[1:], strict=False):
        nodes.add(tx, map(_asleep, reshard.new_nodes(tx, future, new, shard, there_, heir.binary)))
    return task_id


def _check_databases(tx: Connection, instance: Instance, new: Flavor) -> None:
    """Refuse what has keys where the new type has none, by what the master said last."""
    if new.databases > 1:
        return
    for master in nodes.masters_of(tx, [instance.id]):
        said = master.figures.databases if master.figures is not None else ""
        if other := [number for number in said.split(",") if number not in ("", "0")]:
            raise errors.CannotRetype(
                parameter="spec_code",
                why=f"{new.spec_code} has database 0 alone, and there are keys in {', '.join(other)}",
            )


def _first_shard(
    tx: Connection, future: Instance, flavor: Flavor, shard: Shard, spots: Sequence[Spot]
) -> list[Node]:
    """The nodes that the first shard is to have in the end. The first of them is the heir: it follows the
    master of today, whose place it will take. Until then nobody else promotes it. Plain servers follow it
    already; in a cluster, nobody can follow one that follows another."""
    there = nodes.of_shard(tx, shard.id)
    master = next(node for node in there if node.role is Role.MASTER)
    heir, *others = further_replicas(tx, future, flavor, there, spots)
    return [_second(heir, master, master), *(_second(node, master, heir) for node in others)]


def _second(node: Node, master: Node, followed: Node) -> Node:
    """Of lower rank than the nodes of today. The first shard of a new cluster has all data for a time."""
    memory = node.settings.maxmemory
    settings = msgspec.structs.replace(
        node.settings,
        priority=0,
        replica_of=Address(followed.ip, followed.port),
        maxmemory=max(memory, master.settings.maxmemory) if node.settings.clustered else memory,
    )
    return msgspec.structs.replace(_asleep(node), priority=0, in_dns=False, settings=settings)


def _asleep(node: Node) -> Node:
    """It is started when its time has come."""
    return msgspec.structs.replace(node, run=Run.DOWN)
