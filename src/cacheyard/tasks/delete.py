"""An instance goes: first its processes and data, then its rows, which frees its addresses."""

from sqlalchemy import Connection

from cacheyard.domain.nodes import Run
from cacheyard.store import instances, nodes
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import give_back_broken, settled


async def remove_nodes(work: Work) -> None:
    """No process and no data directory is left."""
    await work.tools.write(_want_gone, work.task.instance_id)
    await settled(work)


async def forget(work: Work) -> None:
    """No row and no address is left. (The task's own record stays.)"""
    await work.tools.write(_remove_rows, work.task.instance_id)


def _want_gone(tx: Connection, instance_id: str) -> None:
    for node in nodes.of_instance(tx, instance_id):
        nodes.want(tx, node, run=Run.GONE, keep_data=False)


def _remove_rows(tx: Connection, instance_id: str) -> None:
    nodes.remove_of_instance(tx, instance_id)
    instances.remove(tx, instance_id)


DELETE = Kind(steps=(remove_nodes, forget), undo=give_back_broken)
