"""An instance's servers get a newer patch of their version. Replicas first, then their masters hand over and
follow, shard by shard: clients lose their connections once. A single node is restarted, with its data. But
proxies come before all, if they are to be of another version: one after another is replaced."""

from collections.abc import Callable

from sqlalchemy import Connection

from cacheyard.domain.nodes import Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.store import instances, nodes
from cacheyard.tasks import proxies, switchover
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.nodes import as_wanted
from cacheyard.tasks.steps import unwatched
from cacheyard.tasks.tools import look, release
from cacheyard.tasks.topology import form_topology, in_sync, verify_from_outside


async def upgrade_proxies(work: Work) -> None:
    """All proxies are of the version asked for."""
    await proxies.replaced(work)


async def upgrade_replicas(work: Work) -> None:
    """All replicas run the new version, and are in sync."""
    await unwatched(work)
    await _upgraded(work, lambda node: node.role is Role.REPLICA)


async def hand_over_masters(work: Work) -> None:
    """All masters that have a running replica run the new version."""
    await unwatched(work)
    instance, there = await work.tools.read(look, work.task.instance_id)
    for shard in _by_shard(there):
        able = [node.id for node in shard if node.run is Run.UP and _is_new(work, node)]
        if not able:
            continue
        while (master := await switchover.master_of(work, instance, shard[0].shard_id)).id not in able:
            if (new_id := await switchover.choose(work, instance, master, able)) is not None:
                await switchover.move(work, instance, master.shard_id, new_id)
        await switchover.settle(work, instance, shard[0].shard_id)


async def upgrade_others(work: Work) -> None:
    """All nodes run the new version."""
    await unwatched(work)
    await _upgraded(work, lambda _: True)


async def open_for_clients(work: Work) -> None:
    """The instance says so, is RUNNING and free for the next change."""
    await work.tools.write(_open, work)


async def undo(work: Work) -> None:
    """All nodes run the old version, if it is still there. Proxies that were replaced remain so."""
    await proxies.withdraw(work)
    changed = await work.tools.write(_want_old, work)
    await as_wanted(work, changed)
    await switchover.undo(work)


UPGRADE = Kind(
    steps=(
        upgrade_proxies,
        upgrade_replicas,
        hand_over_masters,
        upgrade_others,
        form_topology,
        verify_from_outside,
        open_for_clients,
    ),
    undo=undo,
)


async def _upgraded(work: Work, which: Callable[[Node], bool]) -> None:
    """Those nodes run the new version; of each shard before the next one begins."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    for shard in _by_shard(there):
        changed = await work.tools.write(_want_new, work, shard[0].shard_id, which)
        await as_wanted(work, changed)
        for node in await work.tools.read(nodes.by_ids, changed):
            if node.role is Role.REPLICA and node.run is Run.UP:
                await in_sync(work, instance, node)


def _by_shard(there: list[Node]) -> list[list[Node]]:
    shards: dict[str, list[Node]] = {}
    for node in there:
        shards.setdefault(node.shard_id, []).append(node)
    return list(shards.values())


def _is_new(work: Work, node: Node) -> bool:
    """Whether the node has been restarted with the new version, or need not be: nothing is newer."""
    incarnations: dict[str, int] = work.task.arguments["incarnations"]
    return node.incarnation >= incarnations.get(node.id, 0)


def _want_new(tx: Connection, work: Work, shard_id: str, which: Callable[[Node], bool]) -> list[str]:
    """The ids of those nodes, which are all wanted new now."""
    wanted = [node for node in nodes.of_shard(tx, shard_id) if which(node)]
    for node in wanted:
        if not _is_new(work, node):
            nodes.want(tx, node, binary=work.task.arguments["binary"], restart=True)
    return [node.id for node in wanted]


def _want_old(tx: Connection, work: Work) -> list[str]:
    """The ids of the nodes that need another restart."""
    arguments, changed = work.task.arguments, []
    for node in nodes.of_instance(tx, work.task.instance_id):
        old = arguments["undo"].get(node.id, node.binary)
        if _is_new(work, node) and old != arguments["binary"]:
            changed.append(node.id)
            if node.binary != old:
                nodes.want(tx, node, binary=old, restart=True)
    return changed


def _open(tx: Connection, work: Work) -> None:
    instance, version = instances.get(tx, work.task.instance_id), work.task.arguments["version"]
    if instance is not None and instance.task_id == work.task.id:
        instances.change(tx, instance.id, internal_version=version)
        release(tx, instance.id, work.task.id, Status.RUNNING)
