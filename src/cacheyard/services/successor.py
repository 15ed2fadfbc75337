"""A node that comes in the place of another, which moves or does not come back."""

import msgspec
from sqlalchemy import Connection

from cacheyard.domain import placement
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance, new_node
from cacheyard.domain.nodes import Node, Role
from cacheyard.store import hosts, network


def successor(
    tx: Connection,
    instance: Instance,
    flavor: Flavor,
    old: Node,
    master: Node,
    *,
    zone: str,
    number: int,
    binary: str,
) -> Node | None:
    """A replica of that master with the old node's place, and the ids that go with it; None: the zone has no
    host. Until it has the data it is in no name, and nobody promotes it."""
    spots = placement.place(hosts.every(tx), [zone], 1, 1)
    if spots is None:
        return None
    node = new_node(
        instance,
        flavor,
        shard_id=old.shard_id,
        number=number,
        role=Role.REPLICA,
        ip=network.take_address(tx, instance.subnet_id, instance.id),
        master_ip=master.ip,
        spot=spots[0][0],
        binary=binary,
        added=old.added,
    )
    return msgspec.structs.replace(
        node,
        logical_id=old.logical_id,
        replication_id=old.replication_id,
        priority=0,
        in_dns=False,
        settings=msgspec.structs.replace(node.settings, priority=0),
    )
