"""Replicas come and go: the parts of 5.1.7 that change their number, 8.3.1 and 8.3.2.

The shards of a cluster that got replicas one by one may differ: then the flavor of the instance is that
of its largest shard.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import CreateReplicationBodyV1, DeleteReplicationResponseV1, ResizeInstanceBody
from cacheyard.domain import flavors, placement
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance, clustered, floats, new_node
from cacheyard.domain.names import TTL
from cacheyard.domain.network import zone_of, zones
from cacheyard.domain.nodes import Node, Role
from cacheyard.domain.placement import Spot
from cacheyard.domain.replicas import empties_name, expendable, zones_for
from cacheyard.domain.shape import by_shard
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import scheduled, work
from cacheyard.services.call import Begun, Call
from cacheyard.services.groups import Group, group_of, node_of
from cacheyard.services.room import check_room
from cacheyard.store import hosts, instances, network, nodes, shards

Shard = list[Node]  # its nodes, the master first


def v1_create_replication(call: Call[CreateReplicationBodyV1 | None]) -> Begun[None]:
    """8.3.1: one more replica for one shard."""
    asked = call.body.az_code if call.body is not None else None
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        scheduled.check_none(tx, instance)
        mine = _group(tx, call, instance).nodes
        old, new = _flavors(tx, instance, mine, len(mine) + 1)
        if new is None:
            raise errors.TooManyReplicas(
                parameter="group_id", why=f"the shard has {len(mine)} nodes, and no flavor has more"
            )
        zone = zone_of(call.house.region, asked) if asked else None
        if asked and zone is None:
            raise errors.NoSuchZone(parameter="az_code", zone=asked)
        where = [zone.code] if zone is not None else zones_for(mine, 1, _all_zones(call, instance))
        task_id = _add(tx, call, instance, old, new, [(mine, where)])
    call.house.start_task(task_id)
    return Begun(None, task_id)


def v1_delete_replication(call: Call[None]) -> Begun[DeleteReplicationResponseV1]:
    """8.3.2: one replica of one shard goes."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        scheduled.check_none(tx, instance)
        group = _group(tx, call, instance)
        mine, node = group.nodes, node_of(tx, call, group)
        if node.role is Role.MASTER:
            raise errors.MasterStays(parameter="node_id", why=f"{node.ip} is the shard's master")
        if len(mine) <= 2:
            raise errors.LastReplica(parameter="node_id", why=f"{group.shard.name} has no other")
        if floats(instance) and empties_name(mine, [node]):
            raise errors.LastInName(parameter="node_id")
        old, new = _flavors(tx, instance, mine, len(mine) - 1)
        if new is None:
            raise errors.BadFlavor(why=f"no flavor like {old.spec_code} has fewer nodes a shard")
        task_id = _remove(tx, call, instance, old, new, [node])
    call.house.start_task(task_id)
    return Begun(DeleteReplicationResponseV1(job_id=task_id), task_id)


def begin_adding(
    tx: Connection, call: Call[ResizeInstanceBody], instance: Instance, old: Flavor, new: Flavor
) -> str:
    """All shards get as many nodes as the new flavor has."""
    given = [_zone(call, text) for text in call.body.available_zones or []]
    chosen = given or _all_zones(call, instance)
    wanted = [
        (shard, zones_for(shard, new.nodes_per_shard - len(shard), chosen))
        for shard in by_shard(nodes.of_instance(tx, instance.id))
    ]
    return _add(tx, call, instance, old, new, wanted)


def begin_removing(
    tx: Connection, call: Call[ResizeInstanceBody], instance: Instance, old: Flavor, new: Flavor
) -> str:
    """All shards keep as many nodes as the new flavor has."""
    there = by_shard(nodes.of_instance(tx, instance.id))
    if call.body.node_list:
        going = _named(call.body.node_list, instance, there, new)
    else:
        going = _chosen(call, instance, there, new)
    if floats(instance) and empties_name(there[0], going):
        raise errors.LastInName(parameter="node_list")
    return _remove(tx, call, instance, old, new, going)


def _named(node_list: Sequence[str], instance: Instance, there: Sequence[Shard], new: Flavor) -> list[Node]:
    """The replicas that the request names."""
    if clustered(instance):
        raise errors.BadNodeList(
            why="the replicas of a cluster are chosen by available_zones and reserved_ip"
        )
    mine = there[0]
    count = len(mine) - new.nodes_per_shard
    if len(set(node_list)) != count:
        raise errors.BadNodeList(why=f"{new.spec_code} has {count} nodes less; name all of them, or none")
    going = []
    for node_id in node_list:
        node = _one(mine, node_id)
        if node is None:
            raise errors.BadNodeList(why=f"the instance has no node {node_id}")
        if node.role is Role.MASTER:
            raise errors.MasterStays(parameter="node_list", why=f"{node.ip} is the master")
        going.append(node)
    return going


def _chosen(
    call: Call[ResizeInstanceBody], instance: Instance, there: Sequence[Shard], new: Flavor
) -> list[Node]:
    """The replicas that can best be spared, of each shard as many as are too many. The address that the
    instance was first known by stays if it can."""
    body = call.body
    in_zones = [_zone(call, text) for text in body.available_zones or []]
    spared = {address.partition(":")[0] for address in body.reserved_ip or []}
    if strange := spared - {node.ip for shard in there for node in shard}:
        raise errors.Invalid(parameter="reserved_ip", why=f"{min(strange)} is no node of the instance")
    going: list[Node] = []
    for shard in there:
        count = len(shard) - new.nodes_per_shard
        own = expendable(shard, count, spared=spared | {instance.ip}, zones=in_zones)
        if len(own) < count:
            own = expendable(shard, count, spared=spared, zones=in_zones)
        if len(own) < count:
            which = "" if len(there) == 1 else f" of the shard of {shard[0].ip}"
            why = f"{len(own)} of {count} replicas{which} could go"
            if in_zones:
                raise errors.BadReplicaZones(why=f"of these zones only {why}")
            raise errors.Invalid(parameter="reserved_ip", why=f"only {why}")
        going += own
    return going


def _add(
    tx: Connection,
    call: Call[Any],
    instance: Instance,
    old: Flavor,
    new: Flavor,
    wanted: Sequence[tuple[Shard, Sequence[str]]],
) -> str:
    """Write the new nodes: in the zones that stand with each shard. They are promised memory from now on."""
    check_room(tx, call, old, new)
    spots = _spots(tx, {zone for _, chosen in wanted for zone in chosen})
    made = [
        _never_promoted(node)
        for shard, chosen in wanted
        for node in further_replicas(tx, instance, new, shard, [spots[zone] for zone in chosen])
    ]
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.ADD_REPLICAS,
        name="AddReplica",
        status=Status.EXTENDING,
        arguments={
            "node_ids": [node.id for node in made],
            "undo": {"spec_code": instance.spec_code, "az_codes": instance.az_codes},
        },
        details=work.flavor_details(instance, old, new) | _details(tx, made),
    )
    nodes.add(tx, made)
    more = dict.fromkeys(node.az_code for node in made if node.az_code not in instance.az_codes)
    instances.change(tx, instance.id, spec_code=new.spec_code, az_codes=[*instance.az_codes, *more])
    return task_id


def further_replicas(
    tx: Connection, instance: Instance, flavor: Flavor, shard: Sequence[Node], spots: Sequence[Spot]
) -> list[Node]:
    """Replicas of the shard that has these nodes today, one in each of the places, as `instance` is to be."""
    master = next(node for node in shard if node.role is Role.MASTER)
    last = max(node.number for node in shard)
    return [
        new_node(
            instance,
            flavor,
            shard_id=master.shard_id,
            number=last + 1 + number,
            role=Role.REPLICA,
            ip=network.take_address(tx, instance.subnet_id, instance.id),
            master_ip=master.ip,
            spot=spot,
            binary=master.binary,
            added=True,
        )
        for number, spot in enumerate(spots)
    ]


def _never_promoted(node: Node) -> Node:
    """Not before it is all that it will be."""
    return msgspec.structs.replace(
        node, priority=0, settings=msgspec.structs.replace(node.settings, priority=0)
    )


def _remove(
    tx: Connection, call: Call[Any], instance: Instance, old: Flavor, new: Flavor, going: Sequence[Node]
) -> str:
    """The read-only name loses the replicas at once; they go when no resolver remembers them any more."""
    in_name = call.house.settings.dns_port and floats(instance) and any(node.in_dns for node in going)
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.REMOVE_REPLICAS,
        name="DelReplica",
        status=Status.EXTENDING,
        arguments={
            "node_ids": [node.id for node in going],
            "spec_code": new.spec_code,
            "seconds": TTL if in_name else 0,
            "undo": {node.id: {"priority": node.priority, "in_dns": node.in_dns} for node in going},
        },
        details=work.flavor_details(instance, old, new) | _details(tx, going),
    )
    for node in going:
        nodes.want(tx, node, in_dns=False)
    return task_id


def _group(tx: Connection, call: Call[Any], instance: Instance) -> Group:
    """The shard that the path names."""
    if instance.cache_mode == "single":
        raise errors.NoReplicas
    return group_of(tx, call, instance)


def _flavors(tx: Connection, instance: Instance, mine: Shard, count: int) -> tuple[Flavor, Flavor | None]:
    """The instance's flavor, and what it is when that shard has `count` nodes."""
    old = flavors.find(instance.spec_code)
    if old is None:
        raise errors.BadFlavor(why=f"the instance's own, {instance.spec_code}, is sold no more")
    others = [
        shard
        for shard in by_shard(nodes.of_instance(tx, instance.id))
        if shard[0].shard_id != mine[0].shard_id
    ]
    most = max([count, *map(len, others)])
    return old, old if most == old.nodes_per_shard else flavors.alike(old, nodes_per_shard=most)


def _one(shard: Iterable[Node], node_id: str) -> Node | None:
    return next((node for node in shard if node.id == node_id), None)


def _zone(call: Call[Any], text: str) -> str:
    """The code of a zone in available_zones; clients send codes or ids."""
    zone = zone_of(call.house.region, text)
    if zone is None:
        raise errors.BadReplicaZones(why=f"there is no zone {text}")
    return zone.code


def _all_zones(call: Call[Any], instance: Instance) -> list[str]:
    """All zones of the region, the instance's first."""
    return list(dict.fromkeys([*instance.az_codes, *(zone.code for zone in zones(call.house.region))]))


def _spots(tx: Connection, wanted: Iterable[str]) -> dict[str, Spot]:
    there = hosts.every(tx)
    found = {}
    for zone in wanted:
        spots = placement.place(there, [zone], 1, 1)
        if spots is None:
            raise errors.ZoneSoldOut(why=f"{zone} has no host")
        found[zone] = spots[0][0]
    return found


def _details(tx: Connection, changed: Sequence[Node]) -> dict[str, str]:
    """What the task list shows of the replicas."""
    names = {shard.id: shard.name for shard in shards.of_instance(tx, changed[0].instance_id)}
    return {
        "replica_ip": ",".join(node.ip for node in changed),
        "replica_az": ",".join(dict.fromkeys(node.az_code for node in changed)),
        "group_name": ",".join(dict.fromkeys(names[node.shard_id] for node in changed)),
    }
