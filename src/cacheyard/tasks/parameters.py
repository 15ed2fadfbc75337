"""Changed parameters reach servers and proxies, all or none: what one refuses is undone on all."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy import Connection

from cacheyard.domain.histories import ConfigStatus
from cacheyard.domain.instances import proxied
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.engine.redis import RedisError, keyspace, parse_info
from cacheyard.store import histories, instances
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.steps import configured, give_back_running, proxies_settled
from cacheyard.tasks.tools import look, release


async def check_keys(work: Work) -> None:
    """What may change while there are no keys alone is in the row when the masters have said that there are
    none."""
    chosen: dict[str, str] | None = work.task.arguments.get("when_empty")
    if chosen is None:
        return
    instance, there = await work.tools.read(look, work.task.instance_id)
    if instance.parameters == chosen:  # this step ran before, and there may be keys by now
        return

    async def keys(node: Node) -> int:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            return sum(one.keys for one in keyspace(parse_info(await link.call("INFO", "keyspace"))))

    try:
        found = sum(await asyncio.gather(*(keys(node) for node in there if node.role is Role.MASTER)))
    except (RedisError, OSError) as error:
        raise StepFailed(f"a master does not say how many keys it has: {error}") from error
    if found:
        raise StepFailed(f"the instance has {found} keys; this can be changed when it has none")
    await work.tools.write(_choose, work.task.instance_id, chosen)


async def configure_nodes(work: Work) -> None:
    """The servers are configured as the row says."""
    await configured(work)


async def configure_proxies(work: Work) -> None:
    """So are the proxies."""
    instance, _ = await work.tools.read(look, work.task.instance_id)
    if proxied(instance):
        await proxies_settled(work)


async def open_for_clients(work: Work) -> None:
    """The instance is free for the next change, and the record of this one says that it succeeded."""
    await work.tools.write(_succeed, work.task.instance_id, work.task.id)


async def undo(work: Work) -> None:
    """The row is as before, and so are all that can be told; who is away hears of it when it is back."""
    await work.tools.write(_put_back, work.task.instance_id, work.task.id, work.task.arguments["undo"])
    with suppress(StepFailed):
        await configured(work)
        await configure_proxies(work)
    await give_back_running(work)


def _choose(tx: Connection, instance_id: str, chosen: Mapping[str, str]) -> None:
    instances.change(tx, instance_id, parameters=chosen)


def _succeed(tx: Connection, instance_id: str, task_id: str) -> None:
    histories.end(tx, task_id, ConfigStatus.SUCCESS)
    release(tx, instance_id, task_id, Status.RUNNING)


def _put_back(tx: Connection, instance_id: str, task_id: str, old: Mapping[str, str]) -> None:
    _choose(tx, instance_id, old)
    histories.end(tx, task_id, ConfigStatus.FAILURE)


SET_PARAMETERS = Kind(steps=(check_keys, configure_nodes, configure_proxies, open_for_clients), undo=undo)
