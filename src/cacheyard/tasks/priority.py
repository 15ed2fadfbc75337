"""A replica gets another priority. Its row says so since the request, and its agent tells the server."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Connection

from cacheyard.domain.nodes import Node, Role, Run
from cacheyard.engine import sentinel
from cacheyard.engine.redis import Link
from cacheyard.store import nodes, shards
from cacheyard.store.sentinels import sentinel_facts
from cacheyard.store.shards import Guarded, name_of
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import SETTLE_SECONDS, give_back_running, open_for_clients
from cacheyard.waiting import NotInTime, until

log = structlog.get_logger()

HEARD_SECONDS = 12.0  # a Sentinel that cannot be hurried reads what servers say every ten


async def tell_server(work: Work) -> None:
    """The replica's server has the priority."""

    async def has_it() -> bool:
        return all(node.settled for node in await work.tools.read(nodes.by_ids, [_node_id(work)]))

    await reach(has_it, SETTLE_SECONDS, "the server to take its priority")


async def tell_sentinels(work: Work) -> None:
    """The Sentinels that watch the shard have read it. One that is not there will when it starts."""
    _, watched = await work.tools.read(_watched, _node_id(work))
    if watched is None:
        return
    async with _sentinels(work, encrypted=watched.encrypted) as links:

        async def all_know() -> bool:
            node, shard = await work.tools.read(_watched, _node_id(work))
            if shard is None:
                return True
            return shard.seen_watch == shard.watch and all([await _knows(one, shard, node) for one in links])

        try:
            await until(all_know, seconds=HEARD_SECONDS, what="the Sentinels to read a priority")
        except NotInTime as late:  # they will; the server has it
            log.warning("priority not heard", instance=work.task.instance_id, why=str(late))


async def undo(work: Work) -> None:
    """The row says what it said before. Its server hears of it as soon as it is there."""
    await work.tools.write(_put_back, _node_id(work), work.task.arguments["undo"])
    await give_back_running(work)


def _node_id(work: Work) -> str:
    return str(work.task.arguments["node_id"])


def _put_back(tx: Connection, node_id: str, priority: int) -> None:
    for node in nodes.by_ids(tx, [node_id]):
        nodes.want(tx, node, priority=priority)


@asynccontextmanager
async def _sentinels(work: Work, *, encrypted: bool) -> AsyncIterator[list[Link]]:
    """Connections to those that are there. In the end they read as often as ever."""
    ip, secret = await work.tools.store.run(sentinel_facts, work.tools.store, work.tools.sealer)
    links = []
    async with AsyncExitStack() as stack:
        for address in sentinel.addresses(ip, encrypted=encrypted):
            trust = work.tools.trust if encrypted else None
            link = Link(address, sentinel.password_of(secret), user=None, trust=trust)
            with suppress(RedisError):
                links.append(await stack.enter_async_context(link))
        try:
            yield links
        finally:
            for link in links:
                with suppress(RedisError):
                    await sentinel.read_every(link, sentinel.READ_MS)


def _watched(tx: Connection, node_id: str) -> tuple[Node, Guarded | None]:
    """The node, and its shard if Sentinels should know of the node."""
    (node,) = nodes.by_ids(tx, [node_id])
    shard = shards.guarded_one(tx, node.shard_id)
    if shard is None or not shard.watched or shard.clustered:
        return node, None
    return node, shard if node.role is Role.REPLICA and node.run is Run.UP else None


async def _knows(link: Link, shard: Guarded, node: Node) -> bool:
    """Whether that Sentinel has read the node's priority. If it has not, it is to read soon."""
    try:
        if (await sentinel.priorities(link, name_of(shard))).get(node.ip) == node.priority:
            return True
        await sentinel.read_every(link, sentinel.READ_SOON_MS)
    except RedisError:
        return True  # it has gone; the next one reads everything
    return False


PRIORITIZE = Kind(steps=(tell_server, tell_sentinels, open_for_clients), undo=undo)
