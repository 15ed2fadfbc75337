"""A master hands over to one of its replicas, as planned: no acknowledged write is lost.

Of a master/standby instance it goes like this, and nobody ever sees two masters:

1. The replica is in sync and close behind. Writes are paused; it has them all.
2. The old master becomes its replica, and gives up the address that clients use. Once it takes no
   writes, it is asked again whether the other has all of them.
3. The rows say who is master.
4. The new master is promoted and takes the address.
5. Clients that are still connected to the old one are sent away: they come back to the new one.

Before 3 all can be taken back, and is if anything goes wrong: the agent makes the servers again what
their rows say. From 3 on there is only forward, and the agent sees to it too. So a task that broke
off at any moment begins again and looks at what is.

With read/write splitting it is the same but for the address: the proxies' clients stay, and a write that
comes to the old master is refused there and sent on to the new one.

In a cluster the replica takes the slots over instead of 2, which makes the old master a replica; 3 comes
after. Its clients are sent to the new master by Redis' own means. Of two claims to a slot the newer
one counts: so it is made sure first that the replica's will be newer.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial

from sqlalchemy import Connection

from cacheyard.domain.instances import Instance, beside, clustered
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.engine import cluster
from cacheyard.engine.redis import Link, RedisError
from cacheyard.engine.replication import (
    Epochs,
    demote,
    epochs,
    pause_writes,
    promote,
    resume_writes,
    send_away,
    standing,
    take_over,
    tell_epoch,
)
from cacheyard.store import instances, nodes
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import SETTLE_SECONDS, give_back_running, open_for_clients, settled, unwatched
from cacheyard.tasks.tools import look
from cacheyard.tasks.topology import in_sync, verify_from_outside

CHOICE_SECONDS = 5.0  # for a replica to be in sync
SWAP_SECONDS = 15.0  # for all tries to pause writes until the replica has them all
CLOSE = 65_536  # bytes that the replica may be behind when writes are paused
PAUSE_MS = 3000  # how long writes wait if we die meanwhile
EQUAL_SECONDS = 0.1  # how long they wait for the replica in one try; usually it takes a millisecond
AT_ONCE = 16  # masters of a cluster that are asked at a time
DEPART_SECONDS = 10.0
BACK_SECONDS = 10.0


async def hand_over_masters(work: Work) -> None:
    """Each shard that the request names has another master than then; the one it asked for, if it did."""
    await unwatched(work)
    instance, _ = await work.tools.read(look, work.task.instance_id)
    asked: dict[str, str] = work.task.arguments["to"]
    for shard_id, old_id in work.task.arguments["from"].items():
        among = None if shard_id not in asked else (asked[shard_id],)
        while True:
            master = await master_of(work, instance, shard_id)
            if master.id in among if among is not None else master.id != old_id:
                break
            if (new_id := await choose(work, instance, master, among)) is not None:
                await move(work, instance, shard_id, new_id)
        await settle(work, instance, shard_id)
        for old in await work.tools.read(nodes.by_ids, [old_id]):
            await in_sync(work, instance, old)


async def undo(work: Work) -> None:
    """Whoever is master by the rows is it in fact. One that does not answer is then its watch's affair."""
    await put_right(work)
    await give_back_running(work)


SWITCHOVER = Kind(steps=(hand_over_masters, verify_from_outside, open_for_clients), undo=undo)


async def put_right(work: Work) -> None:
    """The servers are what their rows say: what was half done when a switchover broke off is taken back, if
    the rows do not say yet that it is done. It is no failure here if a master does not answer."""
    await work.tools.write(_want_all_anew, work.task.instance_id)
    with suppress(StepFailed):
        await settled(work, Role.MASTER, BACK_SECONDS)


async def choose(
    work: Work, instance: Instance, master: Node, among: Collection[str] | None = None
) -> str | None:
    """The replica in sync that is to be promoted first: by its priority, then by what it has of the data.
    `among`: only these come into question. None: that is no longer the master."""
    found: list[tuple[int, int, str]] = []

    async def look_at(node: Node) -> None:
        with suppress(RedisError, OSError):
            async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                now = await standing(link)
            if now.link_up and now.master == Address(master.ip, master.port):
                found.append((node.priority, -now.offset, node.id))

    async def any_in_sync() -> bool:
        if (await master_of(work, instance, master.shard_id)).id != master.id:
            return True
        shard = await work.tools.read(nodes.of_shard, master.shard_id)
        await asyncio.gather(*(look_at(node) for node in shard if _may_be_promoted(node, among)))
        return bool(found)

    await reach(any_in_sync, CHOICE_SECONDS, "a replica in sync that may be promoted")
    return min(found)[2] if found else None


def _may_be_promoted(node: Node, among: Collection[str] | None) -> bool:
    """One that was chosen by name may have the priority of those that never are."""
    return node.answers and (node.priority > 0 if among is None else node.id in among)


async def hand_over(work: Work, instance: Instance, shard_id: str, to_node_id: str) -> None:
    """That node is the master of its shard, by the rows and in fact, and clients reach it. The shards must be
    `unwatched`. The old master then is on its way to be a replica `in_sync`.

    Run again after it broke off, it goes on; but if another node is named then, from the beginning.
    """
    await move(work, instance, shard_id, to_node_id)
    await settle(work, instance, shard_id)


async def move(work: Work, instance: Instance, shard_id: str, to_node_id: str) -> None:
    """That node is the master of its shard, by the rows; it remains to `settle` it."""
    while (old := await master_of(work, instance, shard_id)).id != to_node_id:
        (new,) = await work.tools.read(nodes.by_ids, [to_node_id])
        act = _taken_over if clustered(instance) else _taken_down
        await reach(
            partial(act, work, instance, old, new), SWAP_SECONDS, f"{old.ip} to hand over to {new.ip}"
        )
        await work.tools.write(_write_master, instance.id, shard_id, old.id, new.id)


async def master_of(work: Work, instance: Instance, shard_id: str) -> Node:
    """The shard's master by its row. A cluster's row first is made what the cluster has decided."""
    shard = await work.tools.read(nodes.of_shard, shard_id)
    master = next(node for node in shard if node.role is Role.MASTER)
    if clustered(instance):
        decided = await _decided(work, instance, shard)
        if decided is not None and decided.id != master.id:
            await work.tools.write(_write_master, instance.id, shard_id, master.id, decided.id)
            return decided
    return master


async def settle(work: Work, instance: Instance, shard_id: str) -> None:
    """The shard's master by the rows is master in fact, and no client is left with another node."""
    shard = await work.tools.read(nodes.of_shard, shard_id)
    master = next(node for node in shard if node.role is Role.MASTER)
    if not clustered(instance):
        await reach(partial(_promoted, work, instance, master), SETTLE_SECONDS, f"{master.ip} to be master")
    others = [node for node in shard if node is not master and node.answers]
    await asyncio.gather(*(_left(work, instance, node) for node in others))

    async def as_wanted() -> bool:
        (now,) = await work.tools.read(nodes.by_ids, [master.id])
        if not now.settled:
            raise OSError(f"it is {now.seen_state}: {now.seen_error}")
        return True

    await reach(as_wanted, SETTLE_SECONDS, f"{master.ip} to be as wanted")


# --- Master/standby -------------------------------------------------------------------------------


async def _taken_down(work: Work, instance: Instance, old: Node, new: Node) -> bool:
    """Whether the old master takes no writes any more and the new one has all that it ever took."""
    if not all(node.settled for node in await work.tools.read(nodes.by_ids, [old.id, new.id])):
        raise OSError("the agent is just changing them")  # it must not promote again what we demote
    to = Address(new.ip, new.port)
    async with (
        work.tools.link(instance, Address(old.ip, old.port)) as one,
        work.tools.link(instance, to) as other,
    ):
        now = await standing(one)
        if now.role is Role.MASTER:
            if not await all_passed_on(one, other, old):
                return False
            await demote(one, old.ip, to)
            now = await standing(one)
        if now.master == to and await _has_all(other, now.offset):
            return True  # nothing moves the one or the other now
    await work.tools.write(_want_anew, old.id)  # something came in between, or an earlier try had another aim
    raise OSError(f"{old.ip} is {now.role} at {now.offset}, {new.ip} is elsewhere")


async def all_passed_on(one: Link, other: Link, old: Node, pause_ms: int = PAUSE_MS) -> bool:
    """Whether writes are paused and the replica has them all; else they go on."""
    if (await standing(one)).offset - await _offset(other) > CLOSE:
        return False
    await pause_writes(one, pause_ms)
    aim, deadline = (await standing(one)).offset, time.monotonic() + EQUAL_SECONDS
    while time.monotonic() < deadline:
        if await _has_all(other, aim):
            return True
    await resume_writes(one, old.settings)
    return False


async def _offset(replica: Link) -> int:
    now = await standing(replica)
    if not now.link_up:
        raise OSError(f"{replica.address.ip} is not in sync")
    return now.offset


async def _has_all(replica: Link, offset: int) -> bool:
    return (await standing(replica)).offset == offset


async def _promoted(work: Work, instance: Instance, master: Node) -> bool:
    """The agent would do it as well, a little later."""
    async with work.tools.link(instance, Address(master.ip, master.port)) as link:
        await promote(link, master.settings.bind)
    return True


async def _left(work: Work, instance: Instance, node: Node) -> None:
    """Nobody is connected to the replica at the address that is the master's, and no client of it waits. As
    long as it has not heard that it is a replica, it takes no writes."""

    async def left() -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            if (await standing(link)).role is Role.MASTER:
                await pause_writes(link, PAUSE_MS)
                return False
            for other in beside(instance):
                await send_away(link, Address(other.removeprefix("-"), instance.port))
            await resume_writes(link, node.settings)
        return True

    await reach(left, DEPART_SECONDS, f"clients to leave {node.ip}")


# --- Cluster --------------------------------------------------------------------------------------


async def _decided(work: Work, instance: Instance, shard: Sequence[Node]) -> Node | None:
    """The node of a cluster's shard that says it is the master; of several the one that became it last: one
    that was just started again may not have heard yet that it was replaced."""
    claims: list[tuple[int, Node]] = []

    async def ask(node: Node) -> None:
        with suppress(RedisError, OSError):
            async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                me = cluster.myself(await cluster.members(link))
            if me.role is Role.MASTER and me.slots:
                claims.append((me.epoch, node))

    await asyncio.gather(*(ask(node) for node in shard if node.answers))
    return max(claims, key=lambda claim: claim[0])[1] if claims else None


async def _taken_over(work: Work, instance: Instance, old: Node, new: Node) -> bool:
    """Whether the new master has the slots of the old one, and all its data."""
    async with work.tools.link(instance, Address(new.ip, new.port)) as other:
        if cluster.myself(await cluster.members(other)).role is Role.MASTER:
            decided = await _decided(work, instance, [old, new])
            return decided is not None and decided.id == new.id
        await _agreed(work, instance, new)
        async with work.tools.link(instance, Address(old.ip, old.port)) as one:
            if (await standing(one)).role is not Role.MASTER:
                raise OSError(f"{old.ip} is no master")
            began = time.monotonic()
            if not await all_passed_on(one, other, old):
                return False
            late = time.monotonic() - began > PAUSE_MS / 3000  # we were stopped: writes may soon go on
            if late or (await epochs(one)).mine > (await epochs(other)).current:
                await resume_writes(one, old.settings)
                return False
            await take_over(other)
            deadline = time.monotonic() + EQUAL_SECONDS
            while time.monotonic() < deadline:  # it takes a millisecond; else `settle` sees to it
                if (await standing(one)).role is Role.REPLICA:
                    await resume_writes(one, old.settings)
                    break
    return True


async def _agreed(work: Work, instance: Instance, new: Node) -> None:
    """The replica's claim will be newer than its master's, whatever happens. Raises `OSError` as long as that
    is not sure: two masters have the same epoch, of which one will soon take a higher one, or the replica
    has not heard of the newest. With no newer claim, the old master would take its slots back, and what the
    new one was told meanwhile would be lost."""
    there = await work.tools.read(nodes.of_instance, instance.id)
    found: dict[str, tuple[Epochs, Node]] = {}
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(node: Node) -> None:
        with suppress(RedisError, OSError):
            async with slots, work.tools.link(instance, Address(node.ip, node.port)) as link:
                found[node.id] = await epochs(link), node

    await asyncio.gather(*(ask(node) for node in there if node.role is Role.MASTER or node.id == new.id))
    if new.id not in found:
        raise OSError(f"{new.ip} does not answer")
    newest, who = max(found.values(), key=lambda one: one[0].current)
    if found[new.id][0].current < newest.current:
        async with work.tools.link(instance, Address(who.ip, who.port)) as link:
            await tell_epoch(link, Address(new.ip, new.port))
        raise OSError(f"{new.ip} has not heard of epoch {newest.current}")
    claims = [said.mine for said, node in found.values() if node.role is Role.MASTER]
    if len(set(claims)) < len(claims):
        raise OSError("two masters have the same epoch")


# --- Rows -----------------------------------------------------------------------------------------


def _write_master(tx: Connection, instance_id: str, shard_id: str, old_id: str, new_id: str) -> None:
    instance, shard = instances.get(tx, instance_id), nodes.of_shard(tx, shard_id)
    assert instance is not None  # noqa: S101 - the task holds it
    if any(node.id == old_id and node.role is Role.MASTER for node in shard):
        nodes.hand_over(tx, instance, shard, new_id)


def _want_all_anew(tx: Connection, instance_id: str) -> None:
    for node in nodes.of_instance(tx, instance_id):
        nodes.want(tx, node, anew=True)


def _want_anew(tx: Connection, node_id: str) -> None:
    for node in nodes.by_ids(tx, [node_id]):
        nodes.want(tx, node, anew=True)
