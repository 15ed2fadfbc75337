"""A new replica takes the place of one that does not come back: first it is made, then the old one goes.

Begun by `services.caretaker`. The steps are those of adding and removing replicas, on one node each.
"""

import msgspec
from sqlalchemy import Connection

from cacheyard.domain.nodes import Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Task
from cacheyard.store import instances, nodes
from cacheyard.tasks import replicas
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.tools import release


async def start_replica(work: Work) -> None:
    """The new node is up."""
    await replicas.start_replicas(work)


async def join_shard(work: Work) -> None:
    """It has its master's data; in a cluster, the others know it."""
    await replicas.join_shards(work)


async def remove_old_node(work: Work) -> None:
    """The old node's process and directory are gone, unless it is back after all: then it stays."""
    for old in await work.tools.read(nodes.by_ids, [work.task.arguments["old_id"]]):
        if old.run is Run.UP and old.settled:
            raise StepFailed(f"{old.ip} is back")
    await replicas.remove_nodes(_of_old(work))


async def forget_old_node(work: Work) -> None:
    """No node of the cluster, no row and no address is left of the old one."""
    await replicas.forget(_of_old(work))


async def open_for_clients(work: Work) -> None:
    """The new replica is what the old one was, and the instance is free for the next change."""
    await work.tools.write(_open, work.task)


async def undo(work: Work) -> None:
    """The new node goes. Once the old one was given up there is no way back: then it is gone for good."""
    there = await work.tools.read(nodes.by_ids, [work.task.arguments["old_id"]])
    if there and there[0].run is Run.UP:
        await replicas.withdraw(work)
        return
    await replicas.remove_nodes(_of_old(work))
    await forget_old_node(work)
    await open_for_clients(work)


def _of_old(work: Work) -> Work:
    """The work as the steps of removing see it."""
    arguments = work.task.arguments | {"node_ids": [work.task.arguments["old_id"]]}
    return Work(msgspec.structs.replace(work.task, arguments=arguments), work.tools)


def _open(tx: Connection, task: Task) -> None:
    instance = instances.get(tx, task.instance_id)
    if instance is None or instance.task_id != task.id:
        return  # done already, and the next task may want something else
    for node in nodes.by_ids(tx, task.arguments["node_ids"]):
        nodes.want(tx, node, priority=task.arguments["priority"], in_dns=task.arguments["in_dns"])
    release(tx, task.instance_id, task.id, Status.RUNNING)


REPLACE = Kind(
    steps=(start_replica, join_shard, remove_old_node, forget_old_node, open_for_clients), undo=undo
)
