"""Feels whether a server answers, from its start to its end. The supervisor has one for each process.

A server that starts is asked often, to see it up as soon as it is; one that is up, once a second.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from cacheyard.engine.redis import BusyLoadingError, Link, RedisError, ResponseError

FIRST_PAUSE = 0.003  # a server of 7.0 answers 12 ms after exec, one of 6.2 after 5
LONGEST_PAUSE = 0.25
STEADY_PAUSE = 1.0  # with the link's time-out of a second, a hung server is noticed after 2 s at most


class Pulse:
    """Asks until it is stopped; tells `felt(answering, why not)` when that changes."""

    def __init__(self, link: Link, felt: Callable[[bool, str | None], None]) -> None:
        self._link = link
        self._felt = felt
        self._answered = asyncio.Event()
        self._answering: bool | None = None
        self._task = asyncio.create_task(self._beat())

    async def first_answer(self, seconds: float) -> None:
        """Return when the server has answered, or ended, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._answered.wait()

    def stop(self) -> None:
        """The process is gone, or nobody wants to know any more."""
        self._task.cancel()
        self._answered.set()

    async def _beat(self) -> None:
        pause, silent_since = FIRST_PAUSE, time.monotonic()
        while True:
            why = await self._ask()
            if why is None:
                self._tell(True, None)
                self._answered.set()
                pause, silent_since = STEADY_PAUSE, time.monotonic()
            else:
                if time.monotonic() - silent_since > STEADY_PAUSE:
                    self._tell(False, why)
                pause = FIRST_PAUSE if pause == STEADY_PAUSE else min(pause * 1.3, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    def _tell(self, answering: bool, why: str | None) -> None:
        if answering is not self._answering:
            self._answering = answering
            self._felt(answering, why)

    async def _ask(self) -> str | None:
        """None when it answers, else why not."""
        try:
            await self._link.ping()
        except BusyLoadingError as error:
            return str(error)
        except ResponseError as error:
            # BUSY running a script, MISCONF, MASTERDOWN: it answers; only not letting us in is no answer
            return str(error) if "NOAUTH" in str(error) or "WRONGPASS" in str(error) else None
        except (RedisError, OSError) as error:
            if "max number of clients" in str(error):
                return None
            return str(error) or type(error).__name__
        return None
