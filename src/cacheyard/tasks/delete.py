"""An instance goes: first its processes and data, then its rows, which frees its addresses."""

from sqlalchemy import Connection

from cacheyard.domain.nodes import Run
from cacheyard.domain.tasks import Task, TaskStatus
from cacheyard.store import instances, nodes, proxies, shards, tasks
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import give_back_broken, proxies_settled, settled, unwatched


async def remove_nodes(work: Work) -> None:
    """No process and no data directory is left, and nobody watches for them."""
    await work.tools.write(_want_gone, work.task.instance_id)
    await settled(work)
    await proxies_settled(work)  # which is that none runs, as no server does
    await unwatched(work)


async def forget(work: Work) -> None:
    """No row and no address is left. (The task's own record stays, and says that it is done.)"""
    await work.tools.write(_remove_rows, work.task)


def _want_gone(tx: Connection, instance_id: str) -> None:
    shards.watch(tx, instance_id, False)
    for node in nodes.of_instance(tx, instance_id):
        nodes.want(tx, node, run=Run.GONE, keep_data=False)


def _remove_rows(tx: Connection, task: Task) -> None:
    proxies.remove_of_instance(tx, task.instance_id)
    nodes.remove_of_instance(tx, task.instance_id)
    instances.remove(tx, task.instance_id)
    tasks.end(tx, task.id, TaskStatus.SUCCESS)


DELETE = Kind(steps=(remove_nodes, forget), undo=give_back_broken)
