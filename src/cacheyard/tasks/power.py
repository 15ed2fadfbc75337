"""Instances are restarted, stopped, started and flushed. Replicas go first and come back last."""

from functools import partial

from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.engine.redis import flush
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import (
    SETTLE_SECONDS,
    form_topology,
    give_back_broken,
    give_back_running,
    open_for_clients,
    reach,
    restarted,
    start_nodes,
    stopped,
    verify_from_outside,
)
from cacheyard.tasks.tools import look, release


async def restart_replicas(work: Work) -> None:
    """All replicas have been restarted."""
    await restarted(work, Role.REPLICA)


async def restart_masters(work: Work) -> None:
    """All masters have been restarted, in the role they had."""
    await restarted(work, Role.MASTER)


async def stop_replicas(work: Work) -> None:
    """No replica runs."""
    await stopped(work, Role.REPLICA)


async def stop_masters(work: Work) -> None:
    """No master runs."""
    await stopped(work, Role.MASTER)


async def close(work: Work) -> None:
    """The instance is CLOSED and free for the next change."""
    await work.tools.write(release, work.task.instance_id, work.task.id, Status.CLOSED)


async def flush_masters(work: Work) -> None:
    """No master has a key; replicas follow."""
    instance, there = await work.tools.read(look, work.task.instance_id)

    async def flushed(node: Node) -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            await flush(link)
        return True

    for node in there:
        if node.role is Role.MASTER:
            await reach(partial(flushed, node), SETTLE_SECONDS, f"{node.ip} to be flushed")


RESTART = Kind(
    steps=(restart_replicas, restart_masters, form_topology, verify_from_outside, open_for_clients),
    undo=give_back_broken,
)
STOP = Kind(steps=(stop_replicas, stop_masters, close), undo=give_back_broken)
START = Kind(steps=(start_nodes, form_topology, verify_from_outside, open_for_clients), undo=give_back_broken)
FLUSH = Kind(steps=(flush_masters, open_for_clients), undo=give_back_running)
