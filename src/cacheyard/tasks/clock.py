"""What begins by itself, without a request: chores, each done again and again with a pause between.

One clock per process that runs the task engine. A chore finds in the rows whether there is something
to do; it needs no memory, so a crash loses nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from cacheyard.tasks.tools import Tools

log = structlog.get_logger()

TICK = 1.0  # seconds; how late a maintenance window is noticed
_PAUSE = 5.0  # seconds, after a chore that failed: a full disk fails them all


@dataclass(frozen=True)
class Chore:
    """Work that is done every so many seconds. It must not wait long: it is not begun anew meanwhile."""

    name: str
    seconds: float
    work: Callable[[Tools], Awaitable[None]]


class Clock:
    """`launch`, then `close`; each chore goes at its own pace."""

    def __init__(self, tools: Tools, chores: Sequence[Chore]) -> None:
        self._tools = tools
        self._chores = chores
        self._running: list[asyncio.Task[None]] = []

    def launch(self) -> None:
        """Begin with all chores."""
        self._running = [asyncio.create_task(self._keep_at(chore)) for chore in self._chores]

    async def close(self) -> None:
        """Stop where we are."""
        for running in self._running:
            running.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _keep_at(self, chore: Chore) -> None:
        while True:
            pause = chore.seconds
            # a chore that fails once is due again, and the others go on
            [error] = await asyncio.gather(chore.work(self._tools), return_exceptions=True)
            if error is not None:
                log.error("chore failed", chore=chore.name, exc_info=error)
                pause = max(pause, _PAUSE)
            await asyncio.sleep(pause)
