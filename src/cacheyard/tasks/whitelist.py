"""An instance's whitelist comes in force: its row says so since the request, the agents do it."""

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from cacheyard.store import fences, instances
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import give_back_running, open_for_clients

SECONDS = 6.0  # it takes some hundredths of one; the request waits for it and for its undoing
UNDO_SECONDS = 3.0


async def close_addresses(work: Work) -> None:
    """Only who may come gets in, on all hosts; who was in and may not has been cut off."""
    await _in_force(work, SECONDS)


async def undo(work: Work) -> None:
    """The row says what it said before the request. A host that could not follow has kept to that."""
    await work.tools.write(_put_back, work.task.instance_id, work.task.arguments["undo"])
    with suppress(StepFailed):
        await _in_force(work, UNDO_SECONDS)
    await give_back_running(work)


async def _in_force(work: Work, seconds: float) -> None:
    async def standing() -> bool:
        now = await work.tools.read(fences.standing, work.task.instance_id)
        if now.error is not None:
            raise StepFailed(now.error)
        return now.in_force

    await reach(standing, seconds, "the whitelist to be in force")


def _put_back(tx: Connection, instance_id: str, columns: dict[str, Any]) -> None:
    instances.change(tx, instance_id, **columns)


WHITELIST = Kind(steps=(close_addresses, open_for_clients), undo=undo)
