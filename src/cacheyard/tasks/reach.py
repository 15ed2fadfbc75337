"""Waiting for servers, which may just not be there."""

from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from cacheyard.tasks.errors import StepFailed
from cacheyard.waiting import NotInTime, until


async def reach(check: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """Wait until `check`, which may ask a server that is just not there, answers True."""

    async def tried() -> bool:
        try:
            return await check()
        except RedisError as error:
            raise OSError(str(error)) from error  # not yet

    try:
        await until(tried, seconds=seconds, what=what)
    except NotInTime as late:
        raise StepFailed(str(late)) from late
