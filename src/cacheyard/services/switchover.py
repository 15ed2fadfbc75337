"""Chapters 5.2.2, 5.2.10 and 5.2.11: a master hands over to a replica. See docs/switchover.md."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import ChangeMasterStandbyAsyncResponse, ExecuteClusterSwitchoverResponse
from cacheyard.domain.instances import Instance, clustered, guarded
from cacheyard.domain.nodes import Node, NodeState, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call
from cacheyard.services.groups import group_of, groups_of, node_of


def change_master_standby(call: Call[None]) -> Begun[None]:
    """5.2.2: the request waits for the end."""
    return Begun(None, _swap(call), wait=True)


def change_master_standby_async(call: Call[None]) -> Begun[ChangeMasterStandbyAsyncResponse]:
    """5.2.11: the same as a job."""
    task_id = _swap(call)
    return Begun(ChangeMasterStandbyAsyncResponse(job_id=task_id), task_id)


def execute_cluster_switchover(call: Call[None]) -> Begun[ExecuteClusterSwitchoverResponse]:
    """5.2.10: in one shard of a cluster, to the replica that the path names."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if not guarded(instance):
            raise errors.NoReplicas
        if not clustered(instance):
            raise errors.NoSwitchover(why="a master/standby instance is switched by swap or async-swap")
        group = group_of(tx, call, instance)
        node = node_of(tx, call, group)
        if node.role is Role.MASTER:
            raise errors.NotOnThisNode(parameter="node_id", why="it is the master already")
        if not _answers(node):
            raise errors.NotOnThisNode(parameter="node_id", why=f"it is {node.seen_state}")
        task_id = _begin(tx, call, instance, group.nodes[0], to=node, name="clusterSwitchoverJob")
    call.house.start_task(task_id)
    return Begun(ExecuteClusterSwitchoverResponse(job_id=task_id), task_id)


def _swap(call: Call[None]) -> str:
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if not guarded(instance):
            raise errors.NoSwitchover(why="the instance has no replicas")
        if clustered(instance):
            raise errors.NoSwitchover(why="the shards of a cluster are switched one by one")
        (group,) = groups_of(tx, [instance])[instance.id]
        replicas = [node for node in group.nodes if node.role is Role.REPLICA]
        if all(node.priority == 0 for node in replicas):
            raise errors.NoPromotion(parameter="slave_priority_weight")
        if not any(_answers(node) and node.priority > 0 for node in replicas):
            raise errors.NoSwitchover(why="no replica that may be promoted answers")
        task_id = _begin(tx, call, instance, group.nodes[0], to=None, name="masterStandbySwapJob")
    call.house.start_task(task_id)
    return task_id


def _begin(
    tx: Connection, call: Call[Any], instance: Instance, old: Node, *, to: Node | None, name: str
) -> str:
    wanted: Mapping[str, str] = {} if to is None else {to.shard_id: to.id}
    return work.begin(
        tx,
        call.who,
        instance,
        Change.SWITCHOVER,
        name=name,
        status=Status.RUNNING,
        arguments={"from": {old.shard_id: old.id}, "to": wanted},
    )


def _answers(node: Node) -> bool:
    return node.run is Run.UP and node.seen_state is NodeState.ACTIVE
