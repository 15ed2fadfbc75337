"""Instances are restarted, stopped, started and flushed. Replicas go first and come back last."""

from functools import partial

from cacheyard.domain.nodes import Address, Role
from cacheyard.domain.statuses import Status
from cacheyard.engine.redis import flush
from cacheyard.store import nodes
from cacheyard.tasks import topology
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.reach import reach
from cacheyard.tasks.shards import close_slots
from cacheyard.tasks.steps import (
    SETTLE_SECONDS,
    give_back_broken,
    give_back_running,
    open_for_clients,
    proxies_settled,
    restarted,
    start_nodes,
    stopped,
    unwatched,
)
from cacheyard.tasks.tools import look, release
from cacheyard.tasks.topology import verify_from_outside


async def restart_replicas(work: Work) -> None:
    """All replicas have been restarted. (Of a cluster, another node may become master between the steps; the
    second one sees to all that are left.)"""
    await unwatched(work)
    await restarted(work, Role.REPLICA)


async def restart_masters(work: Work) -> None:
    """All nodes have been restarted, in the role they had."""
    await restarted(work, None)


async def form_topology(work: Work) -> None:
    """The nodes are what they are to each other, and no slot is open: a restart is what heals a cluster whose
    change of shards has failed."""
    await topology.form_topology(work)
    await close_slots(work)


async def stop_replicas(work: Work) -> None:
    """No replica runs."""
    await unwatched(work)
    await stopped(work, Role.REPLICA)


async def stop_masters(work: Work) -> None:
    """No node runs, and no proxy."""
    await stopped(work, None)
    await proxies_settled(work)


async def close(work: Work) -> None:
    """The instance is CLOSED and free for the next change."""
    await work.tools.write(release, work.task.instance_id, work.task.id, Status.CLOSED)


async def flush_masters(work: Work) -> None:
    """No master has a key; replicas follow."""
    instance, there = await work.tools.read(look, work.task.instance_id)

    async def flushed(shard_id: str) -> bool:
        shard = await work.tools.read(nodes.of_shard, shard_id)  # it may just have got another master
        master = next(node for node in shard if node.role is Role.MASTER)
        async with work.tools.link(instance, Address(master.ip, master.port)) as link:
            await flush(link)
        return True

    for node in there:
        if node.role is Role.MASTER:
            await reach(partial(flushed, node.shard_id), SETTLE_SECONDS, f"{node.ip} to be flushed")


RESTART = Kind(
    steps=(restart_replicas, restart_masters, form_topology, verify_from_outside, open_for_clients),
    undo=give_back_broken,
)
STOP = Kind(steps=(stop_replicas, stop_masters, close), undo=give_back_broken)
START = Kind(steps=(start_nodes, form_topology, verify_from_outside, open_for_clients), undo=give_back_broken)
FLUSH = Kind(steps=(flush_masters, open_for_clients), undo=give_back_running)
