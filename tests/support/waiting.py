"""Waiting in tests: a condition, a deadline in seconds, and a name for what is waited for."""

import time
from collections.abc import Callable
from typing import TypeVar

import redis

T = TypeVar("T")

PASSING = (OSError, redis.ConnectionError, redis.TimeoutError)


def until(check: Callable[[], T | None], *, seconds: float, what: str, pause: float = 0.005) -> T:
    """Call `check` until it answers something true, and return that. A connection that cannot be made, or
    breaks, counts as not yet: Sentinel, for one, ends all connections to the replica that it promotes."""
    deadline = time.monotonic() + seconds
    while True:
        seen: object
        try:
            seen = check()
        except PASSING as error:
            seen = error
        if seen and not isinstance(seen, PASSING):
            return seen
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}; last seen: {seen!r}")
        time.sleep(pause)
