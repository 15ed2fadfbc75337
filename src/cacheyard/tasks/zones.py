"""Nodes move to other zones: new ones are made there and take over, then the old ones go. So do proxies.

The steps are those of adding and of removing replicas, with the hand-over of masters between them.
"""

import asyncio

import msgspec
from sqlalchemy import Connection

from cacheyard.domain.nodes import Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Task
from cacheyard.store import instances, nodes, shards
from cacheyard.tasks import proxies, replicas, switchover
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.steps import proxies_settled
from cacheyard.tasks.tools import release
from cacheyard.tasks.topology import verify_from_outside


async def start_replicas(work: Work) -> None:
    """The new nodes are up."""
    await replicas.start_replicas(work)


async def join_shards(work: Work) -> None:
    """They have their masters' data; in a cluster, the others know them; and so do the proxies."""
    await replicas.join_shards(work)
    await proxies_settled(work)


async def take_places(work: Work) -> None:
    """The new nodes are what the old ones were to be: found by name, promoted early or late. The old ones are
    masters of nothing."""
    there = await work.tools.read(shards.of_instance, work.task.instance_id)
    if not all(shard.watched for shard in there):  # a hand-over may have broken off in the middle
        await switchover.put_right(work)
    await work.tools.write(_give_places, work.task)
    await asyncio.sleep(work.task.arguments["seconds"])  # until no resolver remembers the old ones
    await replicas.retire_replicas(_of_old(work))


async def remove_old_nodes(work: Work) -> None:
    """Their processes and directories are gone."""
    await replicas.remove_nodes(_of_old(work))


async def forget_old_nodes(work: Work) -> None:
    """No node of a cluster, no row and no address is left of them."""
    await replicas.forget(_of_old(work))


async def move_proxies(work: Work) -> None:
    """They are in the zones asked for."""
    await proxies.replaced(work)


async def open_for_clients(work: Work) -> None:
    """The instance is in its new zones, RUNNING and free for the next change."""
    await work.tools.write(_open, work.task)


async def undo(work: Work) -> None:
    """The new nodes go, and the others are what they were. Once a new one is master, or an old one was given
    up, there is no way back: then the old ones go."""
    await proxies.withdraw(work)
    await switchover.put_right(work)
    if await work.tools.write(_take_places_back, work.task):
        await replicas.withdraw(work)
        return
    await take_places(work)
    await remove_old_nodes(work)
    await forget_old_nodes(work)
    await open_for_clients(work)


MIGRATE = Kind(
    steps=(
        start_replicas,
        join_shards,
        take_places,
        remove_old_nodes,
        forget_old_nodes,
        move_proxies,
        verify_from_outside,
        open_for_clients,
    ),
    undo=undo,
)


def _of_old(work: Work) -> Work:
    """The work as the steps of removing see it."""
    old_ids = [place["old_id"] for place in work.task.arguments["places"].values()]
    arguments = work.task.arguments | {"node_ids": old_ids, "seconds": 0}
    return Work(msgspec.structs.replace(work.task, arguments=arguments), work.tools)


def _give_places(tx: Connection, task: Task) -> None:
    for new in nodes.by_ids(tx, task.arguments["node_ids"]):
        place = task.arguments["places"][new.id]
        nodes.want(tx, new, priority=place["priority"], in_dns=place["in_dns"])
        for old in nodes.by_ids(tx, [place["old_id"]]):
            nodes.want(tx, old, in_dns=False)


def _take_places_back(tx: Connection, task: Task) -> bool:
    """Whether that could be."""
    new = nodes.by_ids(tx, task.arguments["node_ids"])
    places = task.arguments["places"]
    old = {node.id: node for node in nodes.by_ids(tx, [place["old_id"] for place in places.values()])}
    if len(old) < len(places) or any(node.run is Run.GONE for node in old.values()):
        return False
    if any(node.role is Role.MASTER for node in new):
        return False
    for node in new:
        place = places[node.id]
        nodes.want(tx, node, priority=0, in_dns=False)
        nodes.want(tx, old[place["old_id"]], priority=place["priority"], in_dns=place["in_dns"])
    return True


def _open(tx: Connection, task: Task) -> None:
    instance = instances.get(tx, task.instance_id)
    if instance is not None and instance.task_id == task.id:
        instances.change(tx, instance.id, az_codes=task.arguments["az_codes"])
        release(tx, instance.id, task.id, Status.RUNNING)
