"""A changed row reaches the servers: password, port, renamed commands. Else the row becomes what it was."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard.domain.accounts import Account, as_before
from cacheyard.store import instances
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import configured, give_back_running, open_for_clients, unwatched
from cacheyard.tasks.topology import form_topology, verify_from_outside


async def configure_nodes(work: Work) -> None:
    """The servers are configured as the row says; with a restart if the request named incarnations."""
    if _goes_unwatched(work):
        await unwatched(work)
    await configured(work, restarts=1 if _needs_restart(work) else 0)


async def undo(work: Work) -> None:
    """Row and servers are as before the request."""
    if _goes_unwatched(work):
        await unwatched(work)
    await work.tools.write(_put_back, work.task.instance_id, work.task.arguments["undo"])
    await configured(work, restarts=2 if _needs_restart(work) else 0)
    await give_back_running(work)


def _goes_unwatched(work: Work) -> bool:
    """Whether Sentinels would take what happens for a failure, or are others afterwards."""
    return _needs_restart(work) or "ssl" in work.task.arguments["undo"]


def _needs_restart(work: Work) -> bool:
    return "incarnations" in work.task.arguments


def _put_back(tx: Connection, instance_id: str, columns: dict[str, Any]) -> None:
    if "accounts" in columns and (instance := instances.get(tx, instance_id)) is not None:
        before = msgspec.convert(columns["accounts"], list[Account])
        columns = columns | {"accounts": msgspec.to_builtins(as_before(instance.accounts, before))}
    instances.change(tx, instance_id, **columns)


RECONFIGURE = Kind(steps=(configure_nodes, form_topology, verify_from_outside, open_for_clients), undo=undo)
