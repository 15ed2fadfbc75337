"""Sees to it that servers keep their parameters, and ends scripts that run too long where that is asked for.

Tenants cannot change parameters, but whoever has the machine can, and a server that starts may take another
value than it was given (fewer clients, as it has files for). So each server is asked now and then what it
has. What differs is logged and put right; what the server refuses is in the store, and the API shows it.
"""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress

import structlog

from cacheyard.agent.watched import Watched
from cacheyard.clock import now_ms
from cacheyard.domain.nodes import NodeSettings
from cacheyard.engine import redis
from cacheyard.engine.redis import RedisError, Refusal, ResponseError
from cacheyard.engine.redis_conf import append_only, for_version
from cacheyard.store import nodes
from cacheyard.store.db import Store
from cacheyard.store.nodes import Drift

log = structlog.get_logger()

PAUSE = 0.01  # seconds between two servers: a hundred in one go would hold up requests


class Parameters:
    """`look` is a chore of the supervisor."""

    def __init__(self, store: Store, watched: Mapping[str, Watched]) -> None:
        self._store = store
        self._watched = watched

    async def look(self) -> None:
        """One round over all servers to which nothing is being done."""
        looked: list[str] = []
        found: list[Drift] = []
        for watched in list(self._watched.values()):
            with suppress(RedisError, OSError):  # it has just gone: the supervisor finds out
                if (drift := await _mend(watched)) is not None:
                    looked.append(watched.node.id)
                    found += [drift] if drift.error else []
                    await asyncio.sleep(PAUSE)
        if looked:
            await self._store.run(self._write, looked, found)

    def _write(self, looked: list[str], found: list[Drift]) -> None:
        with self._store.note() as tx:
            nodes.note_drift(tx, looked, found)


async def _mend(watched: Watched) -> Drift | None:
    """Put right what the server has other than it should; None: it could not be asked. Only parameters are
    looked at, of which no task makes anything by itself."""
    node, link = watched.node, watched.server.link
    if link is None or not _at_rest(watched):
        return None
    version = await redis.server_version(link)
    wanted = for_version(_parameters(node.settings), version)
    now = await redis.parameters(link)
    differs = {name: (now[name], value) for name, value in wanted.items() if now.get(name, value) != value}
    drift = Drift(node_id=node.id, seen_at=now_ms(), differs=differs)
    if not differs:
        return drift
    if watched.node is not node or not _at_rest(watched):  # it has been changed meanwhile, and so is this
        return None
    about = log.bind(node=node.id, instance=node.instance_id, differs=differs)
    try:
        await redis.set_parameters(link, {name: value for name, (_, value) in differs.items()}, version)
    except Refusal as error:
        about.warning("parameters differ, and the server refuses to change them", why=str(error))
        return Drift(node_id=node.id, seen_at=now_ms(), differs=differs, error=str(error))
    about.warning("parameters differed, and were put right")
    return drift


def _at_rest(watched: Watched) -> bool:
    """Whether it answers, and is as its row wants it, by what is known."""
    seen, node = watched.seen, watched.node
    known = (seen.incarnation, seen.generation) == (node.incarnation, node.generation)
    return watched.answering and watched.task is None and known


def _parameters(settings: NodeSettings) -> dict[str, str]:
    more = {"maxclients": str(settings.maxclients), "maxmemory": str(settings.maxmemory)}
    return settings.parameters | more


async def end_script(watched: Watched, said: str) -> None:
    """A server says that it is busy with a script, and so that the script has had its time. Where such are
    ended, this one is. One that has written cannot be: its server is, if it keeps its data on disk, and what
    the script has written is in no file and on no replica."""
    link, node, running = watched.server.link, watched.node, watched.server.process
    if link is None or running is None or not node.settings.kills_scripts:
        return
    about = log.bind(node=node.id, instance=node.instance_id)
    try:
        await link.call("FUNCTION" if "FUNCTION KILL" in said else "SCRIPT", "KILL")
        about.warning("script ended: it ran too long")
    except ResponseError as error:
        if "UNKILLABLE" not in str(error):  # it has ended by itself
            return
        if not append_only(node.settings):
            about.warning("script runs too long, has written, and its server keeps nothing on disk")
            return
        about.warning("server ended: its script ran too long, and has written")
        running.signal(signal.SIGKILL)
    except (RedisError, OSError):  # the supervisor finds out
        pass
