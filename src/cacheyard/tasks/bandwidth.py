"""An instance has another bandwidth since the request, or the clock, wrote it down: where clients are held to
theirs, it takes effect. Else the row becomes what it was."""

import msgspec
from sqlalchemy import Connection

from cacheyard.domain.bandwidth import UNCHANGED, Bandwidth
from cacheyard.store import instances
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import capped, give_back_running, open_for_clients


async def set_caps(work: Work) -> None:
    """The caps in force are those that the row wants."""
    await capped(work)


async def undo(work: Work) -> None:
    """The row says what it said before, but for what others wrote since. The agent follows."""
    await work.tools.write(_put_back, work)
    await give_back_running(work)


def _put_back(tx: Connection, work: Work) -> None:
    instance = instances.get(tx, work.task.instance_id)
    assert instance is not None  # noqa: S101 - the task holds it
    before = msgspec.convert(work.task.arguments["undo"], Bandwidth)
    now = instance.bandwidth or UNCHANGED
    kept = msgspec.structs.replace(now, shards=before.shards, raised=before.raised)
    instances.change(tx, instance.id, bandwidth=msgspec.to_builtins(kept))


SET_BANDWIDTH = Kind(steps=(set_caps, open_for_clients), undo=undo)
