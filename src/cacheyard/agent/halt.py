"""Ends all servers of a data directory while no agent runs: `cacheyard down --instances`."""

import asyncio

import structlog

from cacheyard.agent.process import AlreadyRuns
from cacheyard.agent.server import NotSaved, Server
from cacheyard.domain.nodes import Node
from cacheyard.engine.redis import RedisError
from cacheyard.settings import Settings
from cacheyard.store import nodes
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

log = structlog.get_logger()

AT_ONCE = 16


async def halt(settings: Settings) -> int:
    """End every server gracefully, memory-only ones with a dump for the next start. Answers how many ran."""
    if not settings.database.exists():
        return 0
    store = Store(settings.database)
    try:
        rows = {node.id: node for node in await store.run(_every_node, store)}
    finally:
        store.close()
    sealer = Sealer.of(settings.secret_key)
    slots = asyncio.Semaphore(AT_ONCE)

    async def end(node: Node) -> bool:
        server = Server(settings.nodes / node.id, lambda _process: None)
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


def _every_node(store: Store) -> list[Node]:
    with store.read() as tx:
        return nodes.every(tx)
