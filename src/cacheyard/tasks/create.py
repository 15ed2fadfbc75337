"""An instance comes to be. Its rows are there; the agents have begun to start its nodes."""

from sqlalchemy import Connection

from cacheyard.domain.nodes import Run
from cacheyard.domain.statuses import Status
from cacheyard.store import nodes
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import open_for_clients, start_nodes
from cacheyard.tasks.tools import release
from cacheyard.tasks.topology import form_topology, verify_from_outside


async def undo(work: Work) -> None:
    """The processes and their directories go; the instance stays, to show that its creation failed."""
    await work.tools.write(_give_up, work.task.instance_id, work.task.id)


def _give_up(tx: Connection, instance_id: str, task_id: str) -> None:
    for node in nodes.of_instance(tx, instance_id):
        nodes.want(tx, node, run=Run.GONE, keep_data=False)
    release(tx, instance_id, task_id, Status.CREATEFAILED)


CREATE = Kind(steps=(start_nodes, form_topology, verify_from_outside, open_for_clients), undo=undo)
