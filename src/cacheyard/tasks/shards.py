"""A Redis Cluster gets more shards, or fewer, while clients read and write. `engine.slots` moves the slots.

Failovers may come at any moment: steps ask the cluster who is master, and believe no row.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
from redis.exceptions import RedisError
from sqlalchemy import Connection

from cacheyard.domain import slots
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, Task
from cacheyard.engine import cluster
from cacheyard.engine.redis import Link, figures
from cacheyard.engine.slots import Mover, NotMoved
from cacheyard.store import network, nodes, shards
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.flavor import flavor_of, is_held, set_flavor
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import (
    EMPTY_SECONDS,
    SECONDS_A_NODE,
    SETTLE_SECONDS,
    configured,
    open_for_clients,
    proxies_settled,
    settled,
)
from cacheyard.tasks.tools import look, release
from cacheyard.tasks.topology import CLUSTER_SECONDS, VERIFY_SECONDS, forgotten, in_sync, verify_from_outside

T = TypeVar("T")

FULL = 0.9  # of a shard's new size, by its share of the keys; 70 % of all is what the request may come to


async def check_fit(work: Work) -> None:
    """What each shard is to hold will fit it, even if many keys are in few slots; of their sizes nothing is
    known."""
    instance, old, moved = await _shape(work)
    if work.task.kind == Change.REMOVE_SHARDS:
        keep, old = [*old], old | moved
    else:
        keep = [*old, *moved]
    used = dict(
        zip(old, await asyncio.gather(*(_used(work, instance, old[name]) for name in old)), strict=True)
    )
    async with _mover(work, instance, old) as mover:
        counts = await _or_fail(mover.keys())
    holds = dict.fromkeys(keep, 0.0) | used
    for slot, source, target in slots.moves({name: [*count] for name, count in counts.items()}, keep):
        share = used[source] * counts[source][slot] / max(1, sum(counts[source].values()))
        holds[source] -= share
        holds[target] += share
    limit = flavor_of(work.task, "spec_code").shard_mb << 20
    if (most := max(holds[name] for name in keep)) > FULL * limit:
        raise StepFailed(f"a shard would hold some {round(most) >> 20} MB of its {limit >> 20} MB")


async def raise_limits(work: Work) -> None:
    """While data are under way no server has less memory than before and after."""
    await work.tools.write(_want_memory, work.task, flavor_of(work.task, "spec_code").shard_mb << 20)
    await settled(work)


async def start_shards(work: Work) -> None:
    """The servers of the new shards are up."""
    _, _, new = await _shape(work)
    many = sum(map(len, new.values()))

    async def up() -> bool:
        for node in await work.tools.read(_nodes_of, work.task):
            if not node.settled:
                raise OSError(f"{node.ip} is {node.seen_state}: {node.seen_error}")
        return True

    await reach(up, EMPTY_SECONDS + SECONDS_A_NODE * many, "the new shards' servers to be up")


async def join_shards(work: Work) -> None:
    """All nodes know each other, the new replicas follow their masters, and a new master that dies is
    replaced. All shards know the same functions."""
    instance, old, new = await _shape(work)
    before, added = _flat(old), _flat(new)
    seconds = CLUSTER_SECONDS + SECONDS_A_NODE * (len(before) + len(added))

    async def introduced(link: Link, _: Node) -> str | None:
        known = {member.engine_id for member in await cluster.members(link)}
        strangers = [node for node in added if node.engine_id not in known]
        await cluster.meet(link, (Address(node.ip, node.port) for node in strangers))
        return f"it does not know {strangers[0].ip}" if strangers else None

    async def whole(link: Link, node: Node) -> str | None:
        if node in added and node.role is Role.REPLICA:
            await cluster.follow_at_once(link)
        return await cluster.fault(link, [*before, *added])

    await _each(work, instance, before, introduced, seconds, "{ip} to know the new shards")
    await _each(work, instance, [*before, *added], whole, seconds, "{ip} to see the cluster whole")
    await asyncio.gather(*(in_sync(work, instance, node) for node in added if node.role is Role.REPLICA))
    async with _mover(work, instance, old | new) as mover:
        await _or_fail(mover.equip([*new]))
    await work.tools.write(shards.watch, work.task.instance_id, True)


async def move_slots(work: Work) -> None:
    """The shards that are to be there have all slots, as equal as can be, with all keys."""
    instance, others, moved = await _shape(work)
    keep = others if work.task.kind == Change.REMOVE_SHARDS else others | moved
    async with _mover(work, instance, others | moved) as mover:
        await _or_fail(mover.settle([*keep]))


async def forget_shards(work: Work) -> None:
    """No other node knows the nodes of these shards."""
    instance, others, moved = await _shape(work)
    if moved:
        await forgotten(work, instance, _flat(moved), _flat(others))


async def remove_shards(work: Work) -> None:
    """No process, directory, address or row is left of these shards."""
    await work.tools.write(_want_gone, work.task)

    async def gone() -> bool:
        for node in await work.tools.read(_nodes_of, work.task):
            if not node.settled:
                raise OSError(f"{node.ip} is {node.seen_state}: {node.seen_error}")
        return True

    await reach(gone, SETTLE_SECONDS, "the shards' servers to be gone")
    await work.tools.write(_remove_rows, work.task)


async def gather(work: Work) -> None:
    """The shards that stay have all slots; the others are still there."""
    instance, others, moved = await _shape(work)
    async with _mover(work, instance, others | moved) as mover:
        await _or_fail(mover.settle([*others]))


async def spread(work: Work) -> None:
    """All shards have slots again."""
    instance, others, moved = await _shape(work)
    await _settle_back(work, instance, others | moved, [*others, *moved])


async def configure_nodes(work: Work) -> None:
    """The instance has its new flavor, and its servers the new limits. Also those that were away before."""
    await _configured(work, "spec_code")
    instance, others, moved = await _shape(work)
    async with _mover(work, instance, others | moved) as mover:
        await _or_fail(mover.stable())


async def close_slots(work: Work) -> None:
    """No slot of a Redis Cluster is open: what a change of shards that failed has left half done is done to
    its end, or undone."""
    instance, everyone = await work.tools.read(look, work.task.instance_id)
    family: Family = {}
    for node in everyone:
        if node.settings.clustered:
            family.setdefault(node.shard_id, []).append(node)
    if family:
        async with _mover(work, instance, family) as mover:
            try:
                await mover.stable()
            except NotMoved:
                await _or_fail(mover.turn_back())


async def undo_adding(work: Work) -> None:
    """The old shards have all slots again, and nothing is left of the new ones. What cannot be had back from
    them is not thrown away: then they stay, and the instance is faulty."""
    if not await work.tools.read(is_held, work.task):
        return
    instance, old, new = await _shape(work)
    began = {
        name: shard for name, shard in new.items() if any(node.seen_incarnation > 0 for node in shard)
    }  # others never had anything
    await _settle_back(work, instance, old | began, [*old])
    await forget_shards(work)
    await remove_shards(work)
    await _configured(work, "old_spec_code")
    await work.tools.write(_release, work.task)


async def undo_removing(work: Work) -> None:
    """All shards have slots again. Once a node has forgotten another there is no way back: then they go."""
    if not await work.tools.read(is_held, work.task):
        return
    instance, others, going = await _shape(work)
    if await _given_up(work, instance, others, going):
        await forget_shards(work)
        await remove_shards(work)
        await _configured(work, "spec_code")
    else:
        await _settle_back(work, instance, others | going, [*others, *going])
        await _configured(work, "old_spec_code")
    await work.tools.write(_release, work.task)


ADD_SHARDS = Kind(
    steps=(
        check_fit,
        start_shards,
        join_shards,
        raise_limits,
        move_slots,
        configure_nodes,
        verify_from_outside,
        open_for_clients,
    ),
    undo=undo_adding,
)
REMOVE_SHARDS = Kind(
    steps=(
        check_fit,
        raise_limits,
        move_slots,
        forget_shards,
        remove_shards,
        configure_nodes,
        verify_from_outside,
        open_for_clients,
    ),
    undo=undo_removing,
)

Family = dict[str, list[Node]]  # the nodes of each shard, by its id, in the order of the shards


async def _shape(work: Work) -> tuple[Instance, Family, Family]:
    """The instance, the shards that were there before and will be after the task, and those that come or
    go with it."""
    instance, everyone = await work.tools.read(look, work.task.instance_id)
    there = [node for node in everyone if node.settings.clustered]
    order = [shard.id for shard in await work.tools.read(shards.of_instance, work.task.instance_id)]
    family = {name: [node for node in there if node.shard_id == name] for name in order}
    moved = {name: family.pop(name) for name in work.task.arguments["shards"] if name in family}
    return instance, family, moved


def _flat(family: Family) -> list[Node]:
    return [node for shard in family.values() for node in shard]


def _mover(work: Work, instance: Instance, family: Family) -> Mover:
    secret = work.tools.sealer.open(instance.internal_secret)
    return Mover(family, partial(work.tools.link, instance), secret, work.tools.trust_of(instance))


async def _or_fail(act: Awaitable[T]) -> T:
    try:
        return await act
    except NotMoved as failed:
        raise StepFailed(str(failed)) from failed


async def _settle_back(work: Work, instance: Instance, family: Family, keep: Sequence[str]) -> None:
    """As before the task: what cannot be moved on is moved back."""
    async with _mover(work, instance, family) as mover:
        try:
            await mover.settle(keep)
        except NotMoved:
            await _or_fail(mover.turn_back())
            await _or_fail(mover.settle(keep))


async def _given_up(work: Work, instance: Instance, others: Family, going: Family) -> bool:
    """Whether any node has been told to forget one of those that go."""
    wanted = {node.engine_id for node in _flat(going)}
    if not wanted or any(node.run is Run.GONE for node in _flat(going)):
        return True
    for node in _flat(others):
        with suppress(RedisError, OSError):
            async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                if wanted - {member.engine_id for member in await cluster.members(link)}:
                    return True
    return False


async def _each(
    work: Work,
    instance: Instance,
    these: Collection[Node],
    fault: Callable[[Link, Node], Awaitable[str | None]],
    seconds: float,
    what: str,
) -> None:
    """Wait until `fault` finds none with any of these nodes."""

    async def sound(node: Node) -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            if (why := await fault(link, node)) is not None:
                raise OSError(why)
        return True

    await asyncio.gather(*(reach(partial(sound, node), seconds, what.format(ip=node.ip)) for node in these))


async def _used(work: Work, instance: Instance, shard: Sequence[Node]) -> int:
    """Bytes that the shard's data take."""
    found: list[int] = []

    async def said() -> bool:
        for node in shard:
            with suppress(RedisError, OSError):
                async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                    found.append((await figures(link, node.id, 0)).used_memory)
                    return True
        return False

    await reach(said, VERIFY_SECONDS, f"{shard[0].ip} or a replica of its to say what it holds")
    return found[-1]


async def _configured(work: Work, which: str) -> None:
    if await work.tools.write(set_flavor, work.task, flavor_of(work.task, which)):
        await configured(work)
        await proxies_settled(work)


def _nodes_of(tx: Connection, task: Task) -> list[Node]:
    """The nodes that come or go."""
    return [node for shard_id in task.arguments["shards"] for node in nodes.of_shard(tx, shard_id)]


def _want_memory(tx: Connection, task: Task, least: int) -> None:
    for node in nodes.of_instance(tx, task.instance_id):
        more = max(least, node.settings.maxmemory)
        nodes.want(tx, node, settings=msgspec.structs.replace(node.settings, maxmemory=more))


def _want_gone(tx: Connection, task: Task) -> None:
    for node in _nodes_of(tx, task):
        nodes.want(tx, node, run=Run.GONE, keep_data=False)


def _remove_rows(tx: Connection, task: Task) -> None:
    gone = _nodes_of(tx, task)
    network.free_addresses(tx, task.instance_id, [node.ip for node in gone])
    nodes.remove(tx, [node.id for node in gone])
    for shard_id in task.arguments["shards"]:
        shards.remove(tx, shard_id)


def _release(tx: Connection, task: Task) -> None:
    release(tx, task.instance_id, task.id, Status.RUNNING)
