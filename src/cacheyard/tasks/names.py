"""An address leaves a name. The row says so since the request; what remains are memories of the answer."""

import asyncio

from cacheyard.clock import now_ms
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import give_back_running, open_for_clients


async def outlive_caches(work: Work) -> None:
    """No resolver remembers the address any more."""
    seconds: float = work.task.arguments["seconds"]
    gone = (now_ms() - work.task.created_at) / 1000
    await asyncio.sleep(min(seconds, seconds - gone))  # a clock set back makes it no longer


REMOVE_ADDRESS = Kind(steps=(outlive_caches, open_for_clients), undo=give_back_running)
