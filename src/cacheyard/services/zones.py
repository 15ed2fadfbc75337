"""The nodes and proxies of an instance move to other zones ([newer]), now or in the maintenance window."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import MigrateAZRequestBody
from cacheyard.domain import flavors, placement
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance, floats, guarded
from cacheyard.domain.names import TTL
from cacheyard.domain.network import zone_of
from cacheyard.domain.nodes import Node, Role
from cacheyard.domain.placement import Move, moves, spread
from cacheyard.domain.proxies import Proxy
from cacheyard.domain.shape import by_shard
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import scheduled, work
from cacheyard.services.call import Begun, Call
from cacheyard.services.proxies import replacements
from cacheyard.services.room import check_memory
from cacheyard.services.successor import successor
from cacheyard.store import hosts, nodes, proxies


def migrate_az(call: Call[MigrateAZRequestBody]) -> Begun[None] | None:
    """Each node and proxy that is not in one of these zones is replaced by one that is; the places stay what
    they are. Where all are already, nothing is done."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if not guarded(instance):
            raise errors.NoReplicas
        scheduled.check_none(tx, instance)
        if not _moves(tx, call, instance) and not _proxy_moves(tx, call, instance):
            return None
        if call.body.execute_immediately is False:
            scheduled.write(tx, call, instance, begin)
            return None
        task_id = begin(tx, call, instance)
    call.house.start_task(task_id)
    return Begun(None, task_id)


def begin(tx: Connection, call: Call[MigrateAZRequestBody], instance: Instance) -> str:
    """Write the new nodes and the task that puts them in their places; its id."""
    wanted = _moves(tx, call, instance)
    flavor = flavors.find(instance.spec_code)
    if flavor is None:
        raise errors.BadFlavor(why=f"the instance's own, {instance.spec_code}, is sold no more")
    if wanted:
        # old and new nodes are there together for a while
        check_memory(tx, call, len(wanted) * flavor.shard_mb)
    there = nodes.of_instance(tx, instance.id)
    made = [(_successor(tx, instance, flavor, there, move), move.node) for move in wanted]
    in_name = call.house.settings.dns_port and floats(instance) and any(old.in_dns for _, old in made)
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.MIGRATE,
        name="MigrateAz",
        status=Status.RUNNING,
        arguments={
            "node_ids": [new.id for new, _ in made],
            "places": {new.id: _place(old) for new, old in made},
            "seconds": TTL if in_name else 0,
            "proxies": replacements(hosts.every(tx), _proxy_moves(tx, call, instance)),
            "spec_code": instance.spec_code,
            "az_codes": _zones(call),
            "undo": {"az_codes": instance.az_codes},
        },
        details={
            "source_ip": ",".join(old.ip for _, old in made),
            "target_ip": ",".join(new.ip for new, _ in made),
            "replica_az": ",".join(dict.fromkeys(new.az_code for new, _ in made)),
        },
    )
    if made:
        nodes.add(tx, [new for new, _ in made])
    return task_id


def _moves(tx: Connection, call: Call[MigrateAZRequestBody], instance: Instance) -> list[Move]:
    """Of all shards."""
    chosen = _zones(call)
    there = hosts.every(tx)
    if placement.place(there, chosen, 1, len(chosen)) is None:
        raise errors.ZoneSoldOut(why="a zone of new_available_zones has no host")
    return [move for shard in by_shard(nodes.of_instance(tx, instance.id)) for move in moves(shard, chosen)]


def _proxy_moves(
    tx: Connection, call: Call[MigrateAZRequestBody], instance: Instance
) -> list[tuple[Proxy, str]]:
    return spread(proxies.of_instance(tx, instance.id), _zones(call))


def _zones(call: Call[MigrateAZRequestBody]) -> list[str]:
    """Codes of the zones asked for, in their order; clients send codes or ids."""
    chosen = []
    for text in call.body.new_available_zones or []:
        zone = zone_of(call.house.region, text)
        if zone is None:
            raise errors.BadReplicaZones(why=f"new_available_zones has {text}, which does not exist")
        chosen.append(zone.code)
    if not chosen:
        raise errors.BadReplicaZones(why="new_available_zones must name at least one zone")
    return list(dict.fromkeys(chosen))


def _successor(tx: Connection, instance: Instance, flavor: Flavor, there: Sequence[Node], move: Move) -> Node:
    old = move.node
    master = next(node for node in there if node.shard_id == old.shard_id and node.role is Role.MASTER)
    new = successor(tx, instance, flavor, old, master, zone=move.zone, number=old.number, binary=old.binary)
    assert new is not None  # noqa: S101 - `_moves` has looked
    return new


def _place(old: Node) -> dict[str, Any]:
    return {"old_id": old.id, "priority": old.priority, "in_dns": old.in_dns}
