"""What a resize of an instance is: which task does it, or why it cannot be.

`services.resize` has the requests that lead here: at once, later, or only to know.
"""

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import ResizeInstanceBody
from cacheyard.domain import flavors
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import FILLED, Instance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import replicas, reshard, retype, work
from cacheyard.services.call import Call
from cacheyard.services.room import check_room
from cacheyard.store import instances, nodes

ADDING, REMOVING, SHARDING, RETYPING = "createReplication", "deleteReplication", "addSharding", "instanceType"


def begin(tx: Connection, call: Call[ResizeInstanceBody], instance: Instance) -> str:
    """Give the instance to the task that resizes it, whose id this is."""
    body = call.body
    old = flavors.find(instance.spec_code)
    if old is None:
        raise errors.BadFlavor(why=f"the instance's own, {instance.spec_code}, is sold no more")
    _check_number(body, old)
    new = _flavor(body, instance, old)
    if body.change_type not in _fitting(old, new):
        wanted = " or ".join(name or "left out" for name in _fitting(old, new))
        raise errors.CannotResize(
            parameter="change_type",
            why=f"from {old.spec_code} to {new.spec_code} it must be {wanted}",
        )
    if new.cache_mode != old.cache_mode:
        return retype.begin_retype(tx, call, instance, old, new)
    if new.shards != old.shards:
        check_room(tx, call, old, new)
        return reshard.begin_reshard(tx, call, instance, old, new)
    if new.nodes_per_shard > old.nodes_per_shard:
        return replicas.begin_adding(tx, call, instance, old, new)
    if new.nodes_per_shard < old.nodes_per_shard:
        return replicas.begin_removing(tx, call, instance, old, new)
    return _begin_capacity(tx, call, instance, old, new)


def change_type(old: Flavor, new: Flavor) -> str | None:
    """What a client that does not say it means."""
    return _fitting(old, new)[0]


def _fitting(old: Flavor, new: Flavor) -> tuple[str | None, ...]:
    """What `change_type` may say, None for nothing."""
    if new.cache_mode != old.cache_mode:
        return (RETYPING,)
    if new.nodes_per_shard > old.nodes_per_shard:
        return (ADDING,)
    if new.nodes_per_shard < old.nodes_per_shard:
        return (REMOVING,)
    return (None, SHARDING) if new.shards > old.shards else (None,)


def _check_number(body: ResizeInstanceBody, old: Flavor) -> None:
    """Beyond the most and the fewest replicas there is no flavor to ask for: say why."""
    if old.cache_mode == "single":
        return
    if body.change_type == ADDING and flavors.alike(old, nodes_per_shard=old.nodes_per_shard + 1) is None:
        raise errors.TooManyReplicas(
            parameter="change_type", why=f"{old.spec_code} has {old.nodes_per_shard} nodes a shard"
        )
    if body.change_type == REMOVING and flavors.alike(old, nodes_per_shard=old.nodes_per_shard - 1) is None:
        raise errors.LastReplica(
            parameter="change_type", why=f"no flavor like {old.spec_code} has fewer nodes a shard"
        )


def _flavor(body: ResizeInstanceBody, instance: Instance, old: Flavor) -> Flavor:
    new = flavors.find(body.spec_code or "")
    if new is None:
        raise errors.BadFlavor(why=f"there is no flavor {body.spec_code}")
    if body.new_capacity is None or round(body.new_capacity * 1024) != new.capacity_mb:
        raise errors.BadCapacity(
            parameter="new_capacity",
            why=f"{new.spec_code} has {new.capacity_text} GB, not {body.new_capacity or 0:g}",
        )
    if new.cpu != old.cpu:
        raise errors.CannotResize(
            parameter="spec_code", why=f"it runs on {old.cpu}, {new.spec_code} is for {new.cpu}"
        )
    if new.cache_mode != old.cache_mode:
        retype.check_types(instance, old, new)
        return new
    same_size = new.capacity_mb == old.capacity_mb and new.shards == old.shards
    if new.nodes_per_shard != old.nodes_per_shard:
        if not same_size:
            raise errors.CannotResize(
                parameter="spec_code", why="replicas and capacity change in separate requests"
            )
    elif same_size:
        raise errors.SameSize(parameter="spec_code", why="the instance has this flavor already")
    return new


def _begin_capacity(
    tx: Connection, call: Call[ResizeInstanceBody], instance: Instance, old: Flavor, new: Flavor
) -> str:
    """Another memory limit for all servers. More memory is promised from now on, less when it is done."""
    check_filling(tx, instance, new)
    check_room(tx, call, old, new)
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.RESIZE,
        name="EXTEND",
        status=Status.EXTENDING,
        arguments={"spec_code": new.spec_code, "old_spec_code": instance.spec_code},
        details=work.flavor_details(instance, old, new),
    )
    if new.capacity_mb > old.capacity_mb:
        instances.change(tx, instance.id, spec_code=new.spec_code, capacity_mb=new.capacity_mb)
    return task_id


def check_filling(tx: Connection, instance: Instance, new: Flavor) -> None:
    """Refuse a size that a shard would fill too much from the start, by what the masters said last."""
    said = [master.figures for master in nodes.masters_of(tx, [instance.id])]
    used = max((figures.used_memory for figures in said if figures is not None), default=0)
    if used >= FILLED * (new.shard_mb << 20):
        where = "" if new.shards == 1 else " in one shard"
        raise errors.BadCapacity(
            parameter="new_capacity",
            why=f"{used >> 20} MB are used{where}, more than {FILLED:.0%} of {new.shard_mb} MB",
        )
