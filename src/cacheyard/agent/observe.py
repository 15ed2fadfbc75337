"""Reads INFO of every server that is up and writes the figures down, for statistics and the console.

The figures go to a table of their own and wake nobody; they are at most two rounds old.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from cacheyard.agent.parameters import end_script
from cacheyard.agent.watched import Watched
from cacheyard.clock import now_ms
from cacheyard.domain.nodes import Figures
from cacheyard.engine import redis
from cacheyard.engine.redis import NoAnswer, RedisError, ResponseError
from cacheyard.store import hosts, nodes
from cacheyard.store.db import Store

log = structlog.get_logger()

AT_ONCE = 8
BUSY = "BUSY "  # with a script, and begins what a server then answers


class Observer:
    """`look` is a chore of the supervisor."""

    def __init__(
        self,
        store: Store,
        host_id: str,
        watched: Mapping[str, Watched],
        silent: Callable[[Watched, str], None],
        differs: Callable[[str], None],
        spread: float,
    ) -> None:
        self._store = store
        self._host_id = host_id
        self._watched = watched
        self._silent = silent
        self._differs = differs
        self._spread = spread

    async def look(self) -> None:
        """One round: all servers that answer now, a few at a time over `spread` seconds.

        All at once, a hundred servers would hold up every request for 50 ms.
        """
        answering = [watched for watched in self._watched.values() if watched.answering]
        seen: list[Figures | None] = []
        for first in range(0, len(answering), AT_ONCE):
            if first:
                await asyncio.sleep(self._spread * AT_ONCE / len(answering))
            seen += await asyncio.gather(*map(self._ask, answering[first : first + AT_ONCE]))
        await self._store.run(self._write, [figures for figures in seen if figures is not None])

    def _write(self, seen: list[Figures]) -> None:
        with self._store.note() as tx:
            hosts.seen(tx, self._host_id, now_ms())
            nodes.record_figures(tx, seen)

    async def _ask(self, watched: Watched) -> Figures | None:
        if watched.server.link is None:
            return None
        try:
            figures = await redis.figures(watched.server.link, watched.node.id, now_ms())
            if figures.role is not watched.node.role:
                self._differs(watched.node.shard_id)
            return figures
        except NoAnswer as error:
            self._silent(watched, str(error))
        except ResponseError as error:
            if str(error).startswith(BUSY):
                await end_script(watched, str(error))
        except (RedisError, OSError):  # it has just gone, or is out of reach: the supervisor finds out
            pass
        return None
