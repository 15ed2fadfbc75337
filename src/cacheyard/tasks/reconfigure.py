"""A changed row reaches the servers: password, port, renamed commands. Else the row becomes what it was."""

from typing import Any

from sqlalchemy import Connection

from cacheyard.store import instances
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import (
    configured,
    form_topology,
    give_back_running,
    open_for_clients,
    verify_from_outside,
)


async def configure_nodes(work: Work) -> None:
    """The servers are configured as the row says; with a restart if the request named incarnations."""
    await configured(work, restarts=1 if _needs_restart(work) else 0)


async def undo(work: Work) -> None:
    """Row and servers are as before the request."""
    await work.tools.write(_put_back, work.task.instance_id, work.task.arguments["undo"])
    await configured(work, restarts=2 if _needs_restart(work) else 0)
    await give_back_running(work)


def _needs_restart(work: Work) -> bool:
    return "incarnations" in work.task.arguments


def _put_back(tx: Connection, instance_id: str, columns: dict[str, Any]) -> None:
    instances.change(tx, instance_id, **columns)


RECONFIGURE = Kind(steps=(configure_nodes, form_topology, verify_from_outside, open_for_clients), undo=undo)
