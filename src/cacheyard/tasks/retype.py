"""The type of an instance changes, live: master/standby or read/write splitting to Proxy Cluster, and back.

The nodes of the new type are made beside the old ones. One of them, the *heir*, is in the first shard a
replica of today's master, across the types: a plain server follows the master of a cluster by REPLICAOF; a
node of a cluster begins with a nodes.conf that takes the plain master for the owner of all slots. So, towards
Proxy Cluster, the heir is all of the new cluster at first, and other shards get their slots from it
afterwards; from Proxy Cluster, the first shard gets all slots before. `change_type` is the moment: writes are
paused, the heir has them all, and one transaction changes the type, the roles and the proxies; the old master
is ended without having written again. Clients lose their connections and find the new type at the same
address. Whatever fails before that transaction is taken back; from there on there is only forward. Until it,
rows of the new type stand beside those in force (`domain.instances.in_force`), and no client, proxy or
Sentinel makes use of their servers.
"""

import asyncio
import socket
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard.domain import slots
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import FILLED, Instance, floats, in_force, tenants, with_master
from cacheyard.domain.nodes import PRIORITY, AclUser, Address, Figures, Node, Role, Run
from cacheyard.domain.tasks import Change, Task
from cacheyard.engine import cluster
from cacheyard.engine.masters import key_counts
from cacheyard.engine.redis import Link, RedisError, figures
from cacheyard.engine.replication import (
    end_in_other_databases,
    give_up_address,
    is_fed,
    promote,
    resume_writes,
    standing,
)
from cacheyard.store import instances, network, nodes, proxies, shards
from cacheyard.tasks import replicas
from cacheyard.tasks import shards as resharding
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.flavor import flavor_of, is_held, proxies_for
from cacheyard.tasks.reach import reach
from cacheyard.tasks.shards import FULL, configure_nodes, move_slots
from cacheyard.tasks.steps import (
    SETTLE_SECONDS,
    configured,
    give_back_running,
    open_for_clients,
    proxies_settled,
    settled,
    start_nodes,
    unwatched,
)
from cacheyard.tasks.switchover import SWAP_SECONDS, all_passed_on
from cacheyard.tasks.tools import look
from cacheyard.tasks.topology import SYNC_SECONDS, VERIFY_SECONDS, form_topology, in_sync, verify_from_outside

PAUSE_MS = 60_000  # how long writes wait, if we die meanwhile and do not come back before
FRESH_SECONDS = 5.0  # after which the moment is missed; it takes some milliseconds

# Commands by which a tenant would get keys into another database than 0.
_DATABASE_0 = ("-select", "+select|0", "-move", "-swapdb")


async def check_fit(work: Work) -> None:
    """What the instance holds now fits its new type."""
    new = flavor_of(work.task, "spec_code")
    said = await _all_figures(work)
    used = sum(one.used_memory for one in said)
    if used >= FILLED * (new.capacity_mb << 20):
        raise StepFailed(f"{used >> 20} MB are used, more than {FILLED:.0%} of {new.capacity_mb} MB")
    _check_databases(new, said)


async def keep_to_one_database(work: Work) -> None:
    """Tenants have keys in database 0 alone, and can have none in others: the heir of a cluster would take
    them for keys of database 0."""
    await work.tools.write(_want_one_database, work.task)
    await settled(work)

    async def ended(node: Node) -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            await end_in_other_databases(link)
        return True

    instance, there = await work.tools.read(look, work.task.instance_id)
    for node in there:
        if in_force(instance, node) and node.run is Run.UP:
            await reach(
                partial(ended, node), VERIFY_SECONDS, f"clients of {node.ip} to leave their databases"
            )
    _check_databases(flavor_of(work.task, "spec_code"), await _all_figures(work))


async def gather_slots(work: Work) -> None:
    """The first shard has all slots, with all keys."""
    await work.tools.write(_want_memory, work.task)
    await settled(work)
    await resharding.gather(work)


async def copy_data(work: Work) -> None:
    """The heir has the data of the master, and is told what is new. So are its replicas, if it is no member
    of a cluster, in which nobody follows one that follows another."""
    await work.tools.write(_want_heir, work.task)
    await reach(partial(_in_sync, work), SYNC_SECONDS, "the first server of the new type to have all data")
    if work.task.kind == Change.FROM_PROXY:
        instance, _ = await work.tools.read(look, work.task.instance_id)
        others = await work.tools.read(nodes.by_ids, work.task.arguments["node_ids"])
        await asyncio.gather(*(in_sync(work, instance, node) for node in others))
    if flavor_of(work.task, "spec_code").shards > 1:
        await _check_shares(work)


async def change_type(work: Work) -> None:
    """The instance is of the new type, and serves."""
    await unwatched(work)
    if not await work.tools.read(_is_changed, work.task):
        await _take_back(work)
        await reach(partial(_changed, work), SWAP_SECONDS, "the old master to hand over to the new type")
    await _heir_as_wanted(work)
    instance, _ = await work.tools.read(look, work.task.instance_id)
    if floats(instance):
        await reach(partial(_has_address, work), SETTLE_SECONDS, f"the new master to get {instance.ip}")
        await work.tools.write(_want_address, work.task)
        await _heir_as_wanted(work)
    await proxies_settled(work)


async def remove_old_nodes(work: Work) -> None:
    """No process, directory, address or row is left of the old type."""
    await _end_other_type(work)


async def join_shards(work: Work) -> None:
    """All nodes know each other, replicas have their masters' data, and a master that dies is replaced."""
    await replicas.join_shards(work)
    await resharding.join_shards(work)


async def undo(work: Work) -> None:
    """As before the task; or if the type is changed already, all that remains to be done."""
    if not await work.tools.read(is_held, work.task):
        return
    if await work.tools.read(_is_changed, work.task):
        steps = (TO_PROXY if work.task.kind == Change.TO_PROXY else FROM_PROXY).steps
        for step in steps[steps.index(change_type) :]:
            await step(work)
        return
    await _take_back(work)
    await _end_other_type(work)
    if work.task.kind == Change.FROM_PROXY:
        await resharding.spread(work)
    await configured(work)
    await give_back_running(work)


TO_PROXY = Kind(
    steps=(
        check_fit,
        keep_to_one_database,
        copy_data,
        change_type,
        remove_old_nodes,
        start_nodes,
        join_shards,
        move_slots,
        configure_nodes,
        verify_from_outside,
        open_for_clients,
    ),
    undo=undo,
)
FROM_PROXY = Kind(
    steps=(
        check_fit,
        gather_slots,
        copy_data,
        change_type,
        remove_old_nodes,
        start_nodes,
        form_topology,
        verify_from_outside,
        open_for_clients,
    ),
    undo=undo,
)


# --- What is there --------------------------------------------------------------------------------


async def _all_figures(work: Work) -> list[Figures]:
    """What the masters of today say, of each shard."""
    found: list[Figures] = []

    async def said(shard_id: str) -> bool:
        instance, there = await work.tools.read(look, work.task.instance_id)
        master = next(
            node for node in there if node.shard_id == shard_id and _is_master(instance, node)
        )  # it may have changed since
        async with work.tools.link(instance, Address(master.ip, master.port)) as link:
            found.append(await figures(link, master.id, 0))
        return True

    instance, there = await work.tools.read(look, work.task.instance_id)
    for node in there:
        if _is_master(instance, node):
            await reach(partial(said, node.shard_id), VERIFY_SECONDS, f"{node.ip} to say what it holds")
    return found


def _is_master(instance: Instance, node: Node) -> bool:
    return node.role is Role.MASTER and in_force(instance, node)


def _check_databases(new: Flavor, said: Iterable[Figures]) -> None:
    other = {number for one in said for number in one.databases.split(",")} - {"", "0"}
    if new.databases == 1 and other:
        raise StepFailed(f"there are keys in database {', '.join(sorted(other))}")


async def _check_shares(work: Work) -> None:
    """No shard will come to more than it can hold, by the number of its keys. Afterwards is too late."""
    instance, _, heir = await work.tools.read(_both, work.task)
    new, moved = flavor_of(work.task, "spec_code"), work.task.arguments["shards"]
    async with work.tools.link(instance, Address(heir.ip, heir.port)) as link:
        counts, used = await key_counts(link), (await figures(link, heir.id, 0)).used_memory
    first = heir.shard_id
    keys = dict.fromkeys([first, *moved], 0) | {first: sum(counts.values())}
    for slot, source, target in slots.moves({first: range(slots.SLOTS)}, list(keys)):
        keys[source] -= counts.get(slot, 0)
        keys[target] += counts.get(slot, 0)
    most = used * max(keys.values()) / max(1, sum(keys.values()))
    if most > FULL * (new.shard_mb << 20):
        raise StepFailed(f"a shard would hold some {round(most) >> 20} MB of its {new.shard_mb} MB")


# --- The heir -------------------------------------------------------------------------------------


async def _in_sync(work: Work) -> bool:
    """Whether the heir follows the master of today, whoever that is by now, and has its data."""
    instance, old, heir = await work.tools.read(_both, work.task)
    async with (
        work.tools.link(instance, Address(old.ip, old.port)) as one,
        work.tools.link(instance, Address(heir.ip, heir.port)) as other,
    ):
        await _follows(work, old, heir, other)
        return (await standing(other)).link_up and await is_fed(other, one)


async def _follows(work: Work, old: Node, heir: Node, link: Link) -> None:
    """Raise `OSError` unless the heir follows the old master, and see to it that it soon does."""
    if not heir.settled or not old.settled:
        raise OSError(f"{old.ip} or {heir.ip} is just being changed: {heir.seen_error or old.seen_error}")
    now = await standing(link)
    if now.master != Address(old.ip, old.port):
        await work.tools.write(_want_to_follow, heir.id, old.id)
        raise OSError(f"{heir.ip} follows {now.master}")


async def _changed(work: Work) -> bool:
    """Whether the heir has taken the place of the old master, by the rows too."""
    instance, old, heir = await work.tools.read(_both, work.task)
    async with (
        work.tools.link(instance, Address(old.ip, old.port)) as one,
        work.tools.link(instance, Address(heir.ip, heir.port)) as other,
    ):
        await _follows(work, old, heir, other)
        began = time.monotonic()
        try:
            if not await all_passed_on(one, other, old, PAUSE_MS):
                return False
            await give_up_address(one, old.settings.bind)
            if heir.settings.clustered:
                await cluster.replace(other)
            await _to_the_end(work.tools.write(_write_type, work.task, began + FRESH_SECONDS))
        except (RedisError, OSError):
            await _take_back(work)
            raise
    return True


async def _to_the_end(write: Coroutine[Any, Any, None]) -> None:
    """Who is told to stop meanwhile, stops when it is known whether the rows have changed."""
    task = asyncio.ensure_future(write)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _take_back(work: Work) -> None:
    """The old master is master, and writes go on: whatever of the change has been begun, now or before."""
    await work.tools.write(_want_old_anew, work.task)
    instance, old, _ = await work.tools.read(_both, work.task)
    with suppress(RedisError, OSError):
        async with work.tools.link(instance, Address(old.ip, old.port)) as link:
            await resume_writes(link, old.settings)


async def _heir_as_wanted(work: Work) -> None:
    async def as_wanted() -> bool:
        (heir,) = await work.tools.read(nodes.by_ids, [work.task.arguments["heir"]])
        if not heir.settled:
            raise OSError(f"it is {heir.seen_state}: {heir.seen_error}")
        return True

    await reach(as_wanted, SETTLE_SECONDS, "the new master to be as wanted")


async def _has_address(work: Work) -> bool:
    """Whether the new master listens at the address that clients use: it does as soon as the last proxy has
    left it. The agent would see to it a little later."""
    instance, _, heir = await work.tools.read(_both, work.task)
    async with work.tools.link(instance, Address(heir.ip, heir.port)) as link:
        _, bound = await link.call("CONFIG", "GET", "bind")
        if instance.ip not in bound.split(" "):
            with socket.socket() as probe:  # not every server can be asked to try
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((instance.ip, instance.port))
            await promote(link, (heir.ip, instance.ip))
    return True


async def _end_other_type(work: Work) -> None:
    """No process, directory, address or row is left of the nodes that are not of the instance's type."""
    await work.tools.write(_want_others_gone, work.task)

    async def gone() -> bool:
        instance, there = await work.tools.read(look, work.task.instance_id)
        for node in there:
            if not in_force(instance, node) and not node.settled:
                raise OSError(f"{node.ip} is {node.seen_state}: {node.seen_error}")
        return True

    await reach(gone, SETTLE_SECONDS, "the servers to be gone")
    await work.tools.write(_remove_others, work.task)


# --- Rows -----------------------------------------------------------------------------------------


def _is_changed(tx: Connection, task: Task) -> bool:
    instance = instances.get(tx, task.instance_id)
    return instance is not None and instance.cache_mode == flavor_of(task, "spec_code").cache_mode


def _both(tx: Connection, task: Task) -> tuple[Instance, Node, Node]:
    """The instance, the master of the first shard by now, and the heir."""
    instance, _ = look(tx, task.instance_id)
    (heir,) = nodes.by_ids(tx, [task.arguments["heir"]])
    return instance, next(one for one in nodes.of_shard(tx, heir.shard_id) if one.role is Role.MASTER), heir


def _want_one_database(tx: Connection, task: Task) -> None:
    instance, there = look(tx, task.instance_id)
    users = tuple(_kept_to_database_0(user) for user in tenants(instance))
    for node in there:
        if in_force(instance, node):
            nodes.want(tx, node, settings=msgspec.structs.replace(node.settings, users=users))


def _kept_to_database_0(user: AclUser) -> AclUser:
    return msgspec.structs.replace(user, rules=(*user.rules, *_DATABASE_0))


def _want_memory(tx: Connection, task: Task) -> None:
    """Of the first shard, for all data."""
    (heir,) = nodes.by_ids(tx, [task.arguments["heir"]])
    for node in nodes.of_shard(tx, heir.shard_id):
        if node.id != heir.id:
            more = max(node.settings.maxmemory, heir.settings.maxmemory)
            nodes.want(tx, node, settings=msgspec.structs.replace(node.settings, maxmemory=more))


def _want_heir(tx: Connection, task: Task) -> None:
    others = task.arguments["node_ids"] if task.kind == Change.FROM_PROXY else []
    for node in nodes.by_ids(tx, [task.arguments["heir"], *others]):
        if node.run is Run.DOWN:
            nodes.want(tx, node, run=Run.UP)


def _want_to_follow(tx: Connection, heir_id: str, master_id: str) -> None:
    """A plain server is told; a node of a cluster has to begin anew."""
    heir, master = (nodes.by_ids(tx, [node_id])[0] for node_id in (heir_id, master_id))
    settings = msgspec.structs.replace(heir.settings, replica_of=Address(master.ip, master.port))
    nodes.want(tx, heir, settings=settings, restart=heir.settings.clustered, anew=True)


def _want_old_anew(tx: Connection, task: Task) -> None:
    """The nodes in force are made again what their rows say."""
    instance, there = look(tx, task.instance_id)
    for node in there:
        if in_force(instance, node):
            nodes.want(tx, node, anew=True)


def _write_type(tx: Connection, task: Task, until: float) -> None:
    """The instance is of the new type, unless it is too late to be sure that writes are still paused. Old
    servers that have clients of their own are ended now, which sends these away; behind proxies that waits
    until they have let them go."""
    if time.monotonic() > until:
        raise OSError("writes were paused too long ago")
    before, _, heir = _both(tx, task)
    new = flavor_of(task, "spec_code")
    instances.change(
        tx,
        before.id,
        cache_mode=new.cache_mode,
        spec_code=new.spec_code,
        capacity_mb=new.capacity_mb,
    )
    instance, there = look(tx, task.instance_id)
    shard = [node for node in there if node.shard_id == heir.shard_id]
    for node, role, settings in with_master(instance, shard, heir.id):
        if in_force(instance, node):
            own = msgspec.structs.replace(settings, bind=(node.ip,))
            nodes.want(tx, node, role=role, settings=own, priority=PRIORITY, in_dns=True)
        else:
            nodes.want(tx, node, role=role, run=Run.GONE if floats(before) else None, keep_data=False)
    old = {proxy.number: proxy for proxy in proxies.of_instance(tx, instance.id)}
    proxies.remove_of_instance(tx, instance.id)  # one cannot turn from the one kind into the other
    for proxy in proxies_for(tx, instance):
        known = old.get(proxy.number, proxy)
        proxies.add(tx, [msgspec.structs.replace(proxy, logical_id=known.logical_id)])


def _want_address(tx: Connection, task: Task) -> None:
    """The new master has the address that clients use."""
    instance, _, heir = _both(tx, task)
    settings = msgspec.structs.replace(heir.settings, bind=(heir.ip, instance.ip))
    nodes.want(tx, heir, settings=settings)


def _want_others_gone(tx: Connection, task: Task) -> None:
    instance, there = look(tx, task.instance_id)
    for node in there:
        if not in_force(instance, node):
            nodes.want(tx, node, run=Run.GONE, keep_data=False)


def _remove_others(tx: Connection, task: Task) -> None:
    """With the shards that have no node then."""
    instance, there = look(tx, task.instance_id)
    others = [node for node in there if not in_force(instance, node)]
    network.free_addresses(tx, instance.id, [node.ip for node in others])
    nodes.remove(tx, [node.id for node in others])
    left = {node.shard_id for node in there if in_force(instance, node)}
    for shard in shards.of_instance(tx, instance.id):
        if shard.id not in left:
            shards.remove(tx, shard.id)
