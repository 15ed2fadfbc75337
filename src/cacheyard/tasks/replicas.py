"""Shards get replicas, and lose some. Their rows say which; a failover may come at any moment.

Nobody promotes a node while it is being added or removed: its priority is 0 then.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from cacheyard.domain.instances import Instance, clustered
from cacheyard.domain.nodes import PRIORITY, Address, Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Task
from cacheyard.engine import cluster, redis
from cacheyard.engine.redis import RedisError
from cacheyard.store import instances, network, nodes, proxies, shards
from cacheyard.tasks import switchover
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.flavor import fit_proxies, is_held
from cacheyard.tasks.names import outlive_caches
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import (
    SECONDS_A_NODE,
    SETTLE_SECONDS,
    give_back_running,
    proxies_settled,
    unwatched,
)
from cacheyard.tasks.steps import open_for_clients as give_back
from cacheyard.tasks.tools import look, release
from cacheyard.tasks.topology import CLUSTER_SECONDS, forgotten, in_sync, verify_from_outside

START_SECONDS = 15.0  # it takes well under one; what is in the way then stays there

# --- Adding ---------------------------------------------------------------------------------------


async def start_replicas(work: Work) -> None:
    """The new nodes are up. How the others are does not matter here: one that is broken may be why."""

    async def up() -> bool:
        for node in await work.tools.read(nodes.by_ids, _node_ids(work.task)):
            if not node.settled:
                raise OSError(f"{node.ip} is {node.seen_state}: {node.seen_error}")
        return True

    seconds = START_SECONDS + SECONDS_A_NODE * len(_node_ids(work.task))
    await reach(up, seconds, "the new replicas to be up")


async def join_shards(work: Work) -> None:
    """The new nodes follow their masters, and have their data; in a cluster, the others know them."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    new = [node for node in there if node.id in _node_ids(work.task)]
    if clustered(instance):
        others = [node for node in there if node not in new and node.answers]
        seconds = CLUSTER_SECONDS + SECONDS_A_NODE * len(there)

        async def introduced(other: Node) -> None:
            known = partial(_introduced, work, instance, new, other)
            await reach(known, seconds, f"{other.ip} to know the new replicas")

        async def following(node: Node) -> None:
            follows = partial(_follows, work, instance, node)
            await reach(follows, seconds, f"{node.ip} to follow its master")

        await asyncio.gather(*map(introduced, others))
        await asyncio.gather(*map(following, new))
    await asyncio.gather(*(in_sync(work, instance, node) for node in new))
    await proxies_settled(work)


async def open_for_clients(work: Work) -> None:
    """The new replicas may be promoted, and the instance is RUNNING and free for the next change."""
    await work.tools.write(_open, work.task)


async def withdraw(work: Work) -> None:
    """Nothing of the new nodes is left, and the instance has the flavor that it had."""
    await work.tools.write(_want_gone, work.task)
    await _gone(work)
    await _forgotten(work)
    await work.tools.write(_remove_rows, work.task, work.task.arguments["undo"], True)


ADD_REPLICAS = Kind(steps=(start_replicas, join_shards, verify_from_outside, open_for_clients), undo=withdraw)


async def _introduced(work: Work, instance: Instance, new: Sequence[Node], other: Node) -> bool:
    """Whether a node of the cluster knows the new ones; it is told of those whom it does not."""
    async with work.tools.link(instance, Address(other.ip, other.port)) as link:
        seen = {member.engine_id: member for member in await cluster.members(link)}
        if strangers := [node for node in new if node.engine_id not in seen]:
            await cluster.meet(link, [Address(node.ip, node.port) for node in strangers])
            raise OSError(f"it does not know {strangers[0].ip}")
    return True


async def _follows(work: Work, instance: Instance, node: Node) -> bool:
    """Whether the node is the replica of its shard's master, who may have changed since it was started."""
    shard = await work.tools.read(nodes.of_shard, node.shard_id)
    master = next(other for other in shard if other.role is Role.MASTER)
    async with work.tools.link(instance, Address(node.ip, node.port)) as link:
        followed = cluster.myself(await cluster.members(link)).master_id
        if followed != master.engine_id:
            await link.call("CLUSTER", "REPLICATE", str(master.engine_id))
            raise OSError(f"it follows {followed}")
        await cluster.follow_at_once(link)
    return True


def _open(tx: Connection, task: Task) -> None:
    if is_held(tx, task):
        for node in nodes.by_ids(tx, _node_ids(task)):
            nodes.want(tx, node, priority=PRIORITY)
        release(tx, task.instance_id, task.id, Status.RUNNING)


# --- Removing -------------------------------------------------------------------------------------


async def retire_replicas(work: Work) -> None:
    """The nodes that go are masters of nothing, will not be, and no client finds them by name."""
    await _rows_right(work)  # else the agent would make a master that was just promoted a replica again
    await work.tools.write(_retire, work.task)

    async def retired() -> bool:
        for node in await work.tools.read(nodes.by_ids, _node_ids(work.task)):
            if node.answers and not node.settled:
                raise OSError(f"{node.ip} has not taken its priority")
        return True

    await reach(retired, SETTLE_SECONDS, "the replicas to retire")
    await _handed_over(work)
    await outlive_caches(work)


async def remove_nodes(work: Work) -> None:
    """Their processes and directories are gone."""
    await _handed_over(work)  # whoever promotes may have done so before it knew that they had retired
    await work.tools.write(_want_gone, work.task)
    await _gone(work)


async def forget(work: Work) -> None:
    """No node of the cluster, no row and no address is left of them; the instance has its new flavor."""
    await _forgotten(work)
    await work.tools.write(_remove_rows, work.task, {"spec_code": work.task.arguments["spec_code"]}, False)
    await proxies_settled(work)


async def undo(work: Work) -> None:
    """The nodes are what they were. Once they have been given up there is no way back: then they go."""
    if await work.tools.write(_reinstate, work.task):
        await (switchover.undo if await _unguarded(work) else give_back_running)(work)
        return
    await remove_nodes(work)
    await forget(work)
    await give_back(work)


REMOVE_REPLICAS = Kind(steps=(retire_replicas, remove_nodes, forget, give_back), undo=undo)


async def _handed_over(work: Work) -> None:
    """Nodes that became masters since they were chosen have handed over to others."""
    await _rows_right(work)
    instance, there = await work.tools.read(look, work.task.instance_id)
    going = {node.id: node for node in there if node.id in _node_ids(work.task) and node.run is Run.UP}
    if any(node.role is Role.MASTER for node in going.values()):
        await unwatched(work)
    if await _unguarded(work):  # since now, or since an earlier try that broke off in the middle
        for shard_id in dict.fromkeys(node.shard_id for node in going.values()):
            while (master := await switchover.master_of(work, instance, shard_id)).id in going:
                if (to := await switchover.choose(work, instance, master)) is not None:
                    await switchover.move(work, instance, shard_id, to)
            await switchover.settle(work, instance, shard_id)


async def _rows_right(work: Work) -> None:
    await reach(partial(_rows_are_right, work), SETTLE_SECONDS, "the rows to say who is master")


async def _rows_are_right(work: Work) -> bool:
    """Whether the nodes that go are in fact what their rows say: while we were not there, somebody may have
    been promoted, and the keeper then takes a moment to write it down."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    for node in there:
        if node.id not in _node_ids(work.task) or node.run is not Run.UP:
            continue
        try:
            async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                is_master = (await redis.role(link))[0] == "master"
        except RedisError:
            if node.answers or node.role is Role.MASTER:
                raise  # it is started again, or another takes its place
            continue
        if is_master != (node.role is Role.MASTER):
            raise OSError(f"{node.ip} is {'a' if is_master else 'no'} master, its row says {node.role}")
    return True


async def _unguarded(work: Work) -> bool:
    """Whether this task has begun to hand over: nobody else may replace the masters then."""
    return not all(
        shard.watched for shard in await work.tools.read(shards.of_instance, work.task.instance_id)
    )


def _retire(tx: Connection, task: Task) -> None:
    for node in nodes.by_ids(tx, _node_ids(task)):
        nodes.want(tx, node, priority=0)


def _reinstate(tx: Connection, task: Task) -> bool:
    """Take the retirement back; whether that could be."""
    going = nodes.by_ids(tx, _node_ids(task))
    if not going or any(node.run is Run.GONE for node in going):
        return False
    if is_held(tx, task):
        for node in going:
            nodes.want(tx, node, **task.arguments["undo"][node.id])
    return True


# --- Both -----------------------------------------------------------------------------------------


def _node_ids(task: Task) -> list[str]:
    return list(task.arguments["node_ids"])


def _want_gone(tx: Connection, task: Task) -> None:
    """Whoever promotes masters forgets what it knew of the shards: so nobody promotes what is to go."""
    for node in nodes.by_ids(tx, _node_ids(task)):
        if node.run is Run.GONE:
            continue
        if node.role is Role.MASTER:
            raise StepFailed(f"{node.ip} has become master meanwhile")
        nodes.want(tx, node, run=Run.GONE, keep_data=False)
        shards.watch_anew(tx, node.shard_id)


async def _gone(work: Work) -> None:
    async def gone() -> bool:
        for node in await work.tools.read(nodes.by_ids, _node_ids(work.task)):
            if not node.settled:
                raise OSError(f"{node.ip} is {node.seen_state}: {node.seen_error}")
        return True

    await reach(gone, SETTLE_SECONDS, "the replicas to be gone")


async def _forgotten(work: Work) -> None:
    instance, there = await work.tools.read(look, work.task.instance_id)
    gone = [node for node in there if node.id in _node_ids(work.task)]
    if clustered(instance) and gone:
        await forgotten(work, instance, gone, [node for node in there if node not in gone])


def _remove_rows(tx: Connection, task: Task, changes: dict[str, Any], give_back: bool) -> None:
    """The rows and addresses of the nodes go; zones that nothing is in any more are not the instance's."""
    if not is_held(tx, task):
        return
    instance, there = look(tx, task.instance_id)
    gone = [node for node in there if node.id in _node_ids(task)]
    left = [node for node in there if node not in gone]
    used = {node.az_code for node in left}
    used |= {proxy.az_code for proxy in proxies.of_instance(tx, instance.id)}
    empty = {node.az_code for node in gone} - used
    columns = {"az_codes": [zone for zone in instance.az_codes if zone not in empty]} | changes
    if instance.ip in {node.ip for node in gone}:  # of a cluster, which has no address of its own
        columns["ip"] = left[0].ip
    network.free_addresses(tx, instance.id, [node.ip for node in gone])
    nodes.remove(tx, [node.id for node in gone])
    instances.change(tx, instance.id, **columns)
    fit_proxies(tx, instance.id)
    if give_back:
        release(tx, task.instance_id, task.id, Status.RUNNING)
