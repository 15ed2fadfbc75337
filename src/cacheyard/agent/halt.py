"""Ends all servers of a data directory while no agent runs: `cacheyard down --instances`."""

import asyncio
from pathlib import Path

import structlog

from cacheyard.agent.certifier import Certifier
from cacheyard.agent.process import AlreadyRuns
from cacheyard.agent.proxy import ProxyProcess
from cacheyard.agent.server import NotSaved, Server, end_and_remove
from cacheyard.domain.nodes import Node
from cacheyard.engine import sentinel
from cacheyard.engine.redis import RedisError
from cacheyard.settings import Settings
from cacheyard.store import nodes
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

log = structlog.get_logger()

AT_ONCE = 16


async def halt(settings: Settings) -> int:
    """End every server gracefully, memory-only ones with a dump for the next start. Answers how many ran."""
    for number in range(
        sentinel.COUNT * sentinel.SETS
    ):  # first, so that they do not take the others' end for a failure
        await end_and_remove(settings.sentinels / str(number))
    await _end_proxies(settings.proxies)
    if not settings.database.exists():
        return 0
    store, sealer = Store(settings.database), Sealer.of(settings.secret_key)
    try:
        certifier = await store.run(Certifier.of, store, sealer, settings)
        rows = {node.id: node for node in await store.run(_every_node, store)}
    finally:
        store.close()
    slots = asyncio.Semaphore(AT_ONCE)

    async def end(node: Node) -> bool:
        server = Server(settings.nodes / node.id, lambda _process: None, certifier)
        async with slots:
            try:
                if not server.adopt(node, sealer.open(node.settings.internal_secret)):
                    return False
                await server.stop(node, keep=True)
            except (OSError, RedisError, AlreadyRuns, NotSaved) as error:
                log.warning("node not stopped", node=node.id, why=str(error))
                return False
        return True

    present = [rows[path.name] for path in settings.nodes.iterdir() if path.name in rows]
    return sum(await asyncio.gather(*(end(node) for node in present)))


async def _end_proxies(root: Path) -> None:
    """Before the servers, so that clients see the end of a connection and no errors."""
    there = [ProxyProcess(path, lambda _process: None) for path in root.iterdir()] if root.is_dir() else []
    for one in there:
        one.adopt()
    await asyncio.gather(*(one.remove() for one in there))


def _every_node(store: Store) -> list[Node]:
    with store.read() as tx:
        return nodes.every(tx)
