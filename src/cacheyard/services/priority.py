"""Chapter 5.3.1: how early a replica is promoted."""

from collections.abc import Iterable

from cacheyard import errors
from cacheyard.contract.types import PriorityBody
from cacheyard.domain.instances import Instance, guarded
from cacheyard.domain.nodes import Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call
from cacheyard.services.groups import group_of, node_of
from cacheyard.store import nodes


def update_slave_priority(call: Call[PriorityBody]) -> Begun[None] | None:
    """5.3.1: the replica with the smallest number is promoted first, one with 0 never. The request waits
    until the server and who promotes know."""
    priority = call.body.slave_priority_weight
    assert priority is not None  # noqa: S101 - the contract requires it
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        group = group_of(tx, call, instance)
        node = node_of(tx, call, group)
        _check(instance, group.nodes, node, priority)
        if priority == node.priority and instance.task_id is None:
            return None
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.PRIORITIZE,
            name="UpdateSlavePriority",
            status=Status.RUNNING,
            arguments={"node_id": node.id, "undo": node.priority},
            details={"replica_ip": node.ip, "replica_az": node.az_code, "group_name": group.shard.name},
        )
        nodes.want(tx, node, priority=priority)
    call.house.start_task(task_id)
    return Begun(None, task_id, wait=True)


def _check(instance: Instance, shard: Iterable[Node], node: Node, priority: int) -> None:
    if not guarded(instance):
        raise errors.NoReplicas
    if node.role is Role.MASTER:
        raise errors.NotOnThisNode(parameter="node_id", why="it is the master")
    others = [one for one in shard if one.role is Role.REPLICA and one.id != node.id]
    if priority == 0 and all(one.priority == 0 for one in others):
        raise errors.NoPromotion(parameter="slave_priority_weight")
