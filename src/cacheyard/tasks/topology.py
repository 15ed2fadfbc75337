"""The shape of an instance: replicas that follow their masters, clusters whose nodes know each other."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

from redis.exceptions import OutOfMemoryError

from cacheyard.domain.instances import Instance, clustered, proxied
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.domain.slots import Range
from cacheyard.engine import cluster
from cacheyard.engine.redis import Link, check_write
from cacheyard.engine.replication import is_fed, standing
from cacheyard.store import nodes
from cacheyard.tasks.engine import Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import proxies_settled
from cacheyard.tasks.tools import look

Act = Callable[[Link, Node], Awaitable[bool]]

SYNC_SECONDS = 120.0  # a replica's first copy of a large master
CLUSTER_SECONDS = 30.0  # masters that restart serve nothing for two seconds, and gossip takes some
GOSSIP_SECONDS = 1.0  # nodes that know each other and do not meet by themselves in so long are introduced
SECONDS_A_NODE = 0.05  # more of both, as all talk to all
VERIFY_SECONDS = 10.0
BACK_SECONDS = 10.0  # how long to wait for a node that has just gone and is started again


async def form_topology(work: Work) -> None:
    """The nodes of a cluster know each other and serve all slots; all replicas follow their master, and have
    its data. Nodes that are stopped may be away. Proxies know all that."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    if clustered(instance):
        await _cluster_formed(work, instance, there)
    replicas = [node for node in there if node.role is Role.REPLICA and node.run is Run.UP]
    await asyncio.gather(*(in_sync(work, instance, node) for node in replicas))
    if proxied(instance):
        await proxies_settled(work)


async def in_sync(work: Work, instance: Instance, node: Node) -> None:
    """The replica follows its master, has its data, and is sent what is new."""

    async def synced() -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as replica:
            now = await standing(replica)
            if now.master is None or not now.link_up:
                return False
            async with work.tools.link(instance, now.master) as master:
                return await is_fed(replica, master)

    await reach(synced, SYNC_SECONDS, f"replica {node.ip} to be in sync")


async def forgotten(work: Work, instance: Instance, gone: Sequence[Node], others: Sequence[Node]) -> None:
    """The other nodes of a cluster do not know those that go, within the minute after which one that still
    does would tell the rest of them again. Who is away for long is not waited for."""

    async def forgot(node: Node) -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            for one in gone:
                await cluster.forget(link, str(one.engine_id))
            known = {member.engine_id for member in await cluster.members(link)}
        return known.isdisjoint(one.engine_id for one in gone)

    async def told(node: Node) -> None:
        try:
            await reach(partial(forgot, node), BACK_SECONDS, f"{node.ip} to forget what goes")
        except StepFailed:
            if any(now.answers for now in await work.tools.read(nodes.by_ids, [node.id])):
                raise

    await asyncio.gather(*map(told, others))


async def verify_from_outside(work: Work) -> None:
    """A client at the instance's address, or at each master of a Redis Cluster, can write, read and delete:
    through proxies in each shard."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    secret = work.tools.sealer.open(instance.internal_secret)

    async def usable(shard_id: str) -> bool:
        slots: tuple[Range, ...] = ()
        address = Address(instance.ip, instance.port)
        if clustered(instance):
            shard = await work.tools.read(nodes.of_shard, shard_id)  # it may just have got another master
            master = next(Address(node.ip, node.port) for node in shard if node.role is Role.MASTER)
            async with work.tools.link(instance, master) as link:
                slots = cluster.myself(await cluster.members(link)).slots
            if not proxied(instance):
                address = master
        with suppress(OutOfMemoryError):  # full of its owner's data, but it takes commands
            trust = work.tools.trust if instance.ssl else None
            await check_write(address, secret, slots=slots, trust=trust)
        return True

    masters = [node for node in there if node.role is Role.MASTER]
    await asyncio.gather(
        *(
            reach(
                partial(usable, master.shard_id), VERIFY_SECONDS, f"{master.ip}:{master.port} to take a write"
            )
            for master in masters
        )
    )


async def _cluster_formed(work: Work, instance: Instance, there: list[Node]) -> None:
    """All nodes say that the cluster is whole. Nodes that have lost each other, as when all have another port
    now, are introduced to each other anew."""

    async def one(node: Node, act: Act, seconds: float, what: str) -> None:
        async def acted() -> bool:
            async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                return await act(link, node)

        await reach(acted, seconds, what.format(ip=node.ip))

    async def each(act: Act, seconds: float, what: str) -> None:
        await asyncio.gather(*(one(node, act, seconds, what) for node in up))

    up = [node for node in there if node.run is Run.UP]
    said: dict[str, str] = {}
    more = SECONDS_A_NODE * len(there)

    newest = 0

    async def born(link: Link, _node: Node) -> bool:
        nonlocal newest
        epoch = await cluster.be_born(link, newest)
        if epoch is None:
            raise OSError(f"it has not heard of epoch {newest}")
        newest = max(newest, epoch)
        return True

    async def whole(link: Link, node: Node) -> bool:
        said[node.ip] = await cluster.fault(link, there) or ""
        return not said[node.ip]

    async def introduced(link: Link, node: Node) -> bool:
        await cluster.meet(link, (Address(other.ip, other.port) for other in up if other.id != node.id))
        return True

    async def following(link: Link, _node: Node) -> bool:
        await cluster.follow_at_once(link)
        return True

    for node in up:  # one after another
        if node.role is Role.MASTER:
            await one(node, born, CLUSTER_SECONDS + more, "{ip} to take its slots")
    await each(following, CLUSTER_SECONDS + more, "{ip} to follow its master")
    try:
        await each(whole, GOSSIP_SECONDS + more, "{ip} to see the cluster whole")
    except StepFailed:
        await each(introduced, CLUSTER_SECONDS + more, "{ip} to meet the others")
        try:
            await each(whole, CLUSTER_SECONDS + more, "{ip} to see the cluster whole")
        except StepFailed as failed:
            last = "; ".join(f"{ip}: {why}" for ip, why in said.items() if why)
            raise StepFailed(f"{failed}; {last}") from failed
