"""What the agent does over and over, so that nothing that fails in it ends it.

What a turn did not do, the next one does. No other place of the agent survives what it does not expect.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

log = structlog.get_logger()

PAUSE_SECONDS = 1.0  # after a turn that failed


async def forever(turn: Callable[[], Awaitable[None]], at: str) -> NoReturn:
    """Turn after turn until it is cancelled; `at` says whose turns."""
    while True:
        try:
            await turn()
        except Exception:
            log.exception("agent stumbled", at=at)
            await asyncio.sleep(PAUSE_SECONDS)


def tell_failure(task: "asyncio.Task[None]", **about: object) -> None:
    """For the end of a task that nobody waits for: why it failed, if it did."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("agent stumbled", exc_info=error, **about)
