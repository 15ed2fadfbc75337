"""The part of 5.1.7 that gives a Redis Cluster more shards, or fewer. See docs/resize.md."""

from collections.abc import Sequence
from itertools import count, islice

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import ResizeInstanceBody
from cacheyard.domain import placement
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import FILLED, Instance, new_node
from cacheyard.domain.nodes import Node, Role, Shard
from cacheyard.domain.placement import Spot
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.ids import new_id
from cacheyard.services import work
from cacheyard.services.call import Call
from cacheyard.store import hosts, instances, network, nodes, shards


def begin_reshard(
    tx: Connection, call: Call[ResizeInstanceBody], instance: Instance, old: Flavor, new: Flavor
) -> str:
    """Give the instance to the task that makes it have as many shards as the new flavor; the task's id.

    More memory is promised from now on, less when it is done.
    """
    check_filling(tx, instance, new)
    there = shards.of_instance(tx, instance.id)
    kept = _reserved(tx, call, instance)
    if new.shards > len(there):
        change, moved = Change.ADD_SHARDS, new_shards(instance, there, new.shards)
    else:
        change, moved = Change.REMOVE_SHARDS, _going(there, kept, new)
    task_id = work.begin(
        tx,
        call.who,
        instance,
        change,
        name="EXTEND",
        status=Status.EXTENDING,
        arguments={
            "shards": [shard.id for shard in moved],
            "spec_code": new.spec_code,
            "old_spec_code": instance.spec_code,
        },
        details=work.flavor_details(instance, old, new),
    )
    if change is Change.ADD_SHARDS:
        _write(tx, instance, new, moved)
    if new.memory_mb > old.memory_mb:
        instances.change(tx, instance.id, spec_code=new.spec_code, capacity_mb=new.capacity_mb)
    return task_id


def check_filling(tx: Connection, instance: Instance, new: Flavor) -> None:
    """Refuse a size that all data would fill too much from the start, by what the masters said last."""
    said = [master.figures for master in nodes.masters_of(tx, [instance.id])]
    used = sum(figures.used_memory for figures in said if figures is not None)
    if used >= FILLED * (new.capacity_mb << 20):
        raise errors.BadCapacity(
            parameter="new_capacity",
            why=f"{used >> 20} MB are used, more than {FILLED:.0%} of {new.capacity_mb} MB",
        )


# --- More -----------------------------------------------------------------------------------------


def new_shards(instance: Instance, there: Sequence[Shard], wanted: int) -> list[Shard]:
    """As many as are lacking, with the lowest numbers that are free."""
    taken = {shard.number for shard in there}
    numbers = islice((number for number in count() if number not in taken), wanted - len(there))
    return [
        Shard(id=new_id(), instance_id=instance.id, number=number, name=f"group-{number}")
        for number in numbers
    ]


def _write(tx: Connection, instance: Instance, flavor: Flavor, new: Sequence[Shard]) -> None:
    """The new shards and their nodes, which the agents then start."""
    binary = nodes.of_instance(tx, instance.id)[0].binary
    highest = max(shard.number for shard in new)
    spots = placement.place(hosts.every(tx), instance.az_codes, highest + 1, flavor.nodes_per_shard)
    if spots is None:
        raise errors.ZoneSoldOut(why="a zone of the instance has no host")
    shards.add(tx, new)
    for shard in new:
        nodes.add(tx, new_nodes(tx, instance, flavor, shard, spots[shard.number], binary))


def new_nodes(
    tx: Connection, instance: Instance, flavor: Flavor, shard: Shard, spots: Sequence[Spot], binary: str
) -> list[Node]:
    """The nodes of a new shard."""
    ips = [network.take_address(tx, instance.subnet_id, instance.id) for _ in spots]
    return [
        new_node(
            instance,
            flavor,
            shard_id=shard.id,
            number=number,
            role=Role.REPLICA if number else Role.MASTER,
            ip=ips[number],
            master_ip=ips[0],
            spot=spot,
            binary=binary,
            added=True,
        )
        for number, spot in enumerate(spots)
    ]


# --- Fewer ----------------------------------------------------------------------------------------


def _reserved(tx: Connection, call: Call[ResizeInstanceBody], instance: Instance) -> dict[str, str | None]:
    """The shards that must stay, each with the address for which the request says so; None for the one that
    stays because clients know the instance by its address. (An address of proxies is no shard's.)"""
    by_ip = {node.ip: node.shard_id for node in nodes.of_instance(tx, instance.id)}
    named: dict[str, str | None] = {}
    for asked in call.body.reserved_ip or ():
        ip = asked.partition(":")[0]
        if ip not in by_ip:
            raise errors.Invalid(parameter="reserved_ip", why=f"{asked} is no node of the instance")
        named[by_ip[ip]] = asked
    own = {by_ip[instance.ip]: None} if instance.ip in by_ip else {}
    return own | named


def _going(there: Sequence[Shard], kept: dict[str, str | None], new: Flavor) -> list[Shard]:
    """The shards that go: of those that may, the ones with the highest numbers."""
    excess = len(there) - new.shards
    able = [shard for shard in there if shard.id not in kept]
    if len(able) < excess:
        own = next((" and that of the instance's own address" for ip in kept.values() if ip is None), "")
        raise errors.Invalid(
            parameter="reserved_ip",
            why=f"it names addresses of {sum(ip is not None for ip in kept.values())} shards, "
            f"which would stay{own}; {new.spec_code} has {new.shards} of {len(there)}",
        )
    return able[-excess:]
