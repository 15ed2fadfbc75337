"""Waiting for something to become true, until a deadline, and saying what was waited for.

Nothing here or elsewhere uses `asyncio.wait_for`: until Python 3.12 it loses a cancellation that comes in
the moment in which what is waited for is done, and a loop that lost its own never ends.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")


class NotInTime(TimeoutError):  # noqa: N818 - read as "it was not in time"
    """What was waited for did not happen; the message says what was seen last."""


async def until(
    check: Callable[[], Awaitable[T | None]],
    *,
    seconds: float,
    what: str,
    pause: float = 0.01,
    longest: float = 0.2,
) -> T:
    """Call `check` until it answers something true, and return that. `OSError` counts as not yet.

    Raises `NotInTime`, which says `what` was waited for and what was seen last.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() + max(0.05, deadline - time.monotonic())
            ):
                seen: object = await check()
        except OSError as error:  # TimeoutError too
            seen = error
        if seen and not isinstance(seen, OSError):
            return seen  # type: ignore[return-value]
        if time.monotonic() >= deadline:
            raise NotInTime(f"waited {seconds:g} s for {what}; last seen: {seen!r}")
        await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 1.5, longest)


async def happens(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


@contextmanager
def heeding() -> Iterator[None]:
    """Around what uses `asyncio.wait_for`: a cancellation that it loses comes nevertheless, at the end."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
