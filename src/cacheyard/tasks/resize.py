"""An instance gets another capacity, live: its servers run on with a new memory limit. And the question
beforehand whether it could."""

from functools import partial

from sqlalchemy import Connection

from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import FILLED, Instance
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.engine.redis import figures
from cacheyard.store import instances, nodes, shards
from cacheyard.tasks import retype
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.flavor import flavor_of, set_flavor
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import configured, open_for_clients, proxies_settled
from cacheyard.tasks.tools import release
from cacheyard.tasks.topology import VERIFY_SECONDS, verify_from_outside


async def check_fit(work: Work) -> None:
    """What each shard holds now fits its new size with room to spare."""
    old, new = (flavor_of(work.task, which) for which in ("old_spec_code", "spec_code"))
    if new.cache_mode != old.cache_mode:
        await retype.check_fit(work)
        return
    if new.shard_mb == old.shard_mb or new.shards != old.shards:
        return  # other replicas, or other shards, whose own task sees to it
    for shard in await work.tools.read(shards.of_instance, work.task.instance_id):
        await reach(partial(_fits, work, shard.id, new), VERIFY_SECONDS, f"{shard.name} to say what it holds")


async def configure_nodes(work: Work) -> None:
    """The instance has the new flavor, and its servers the new limits."""
    await work.tools.write(set_flavor, work.task, flavor_of(work.task, "spec_code"))
    await configured(work)
    await proxies_settled(work)


async def undo(work: Work) -> None:
    """The old flavor again."""
    if await work.tools.write(set_flavor, work.task, flavor_of(work.task, "old_spec_code")):
        await configured(work)
        await proxies_settled(work)
        await work.tools.write(release, work.task.instance_id, work.task.id, Status.RUNNING)


RESIZE = Kind(steps=(check_fit, configure_nodes, verify_from_outside, open_for_clients), undo=undo)


async def check_request(work: Work) -> None:
    """The request would not be refused: it was tried out when the check was asked for."""
    if (why := work.task.arguments["refusal"]) is not None:
        raise StepFailed(why)


async def leave(_: Work) -> None:
    """There is nothing to be undone."""


CHECK_RESIZE = Kind(steps=(check_request, check_fit), undo=leave)


async def _fits(work: Work, shard_id: str, new: Flavor) -> bool:
    instance, master = await work.tools.read(_master, work.task.instance_id, shard_id)
    if instance is None or master is None:
        raise StepFailed("the instance is gone")
    async with work.tools.link(instance, Address(master.ip, master.port)) as link:
        used = (await figures(link, master.id, 0)).used_memory
    if used >= FILLED * (new.shard_mb << 20):
        raise StepFailed(f"{used >> 20} MB are used, more than {FILLED:.0%} of the new {new.shard_mb} MB")
    return True


def _master(tx: Connection, instance_id: str, shard_id: str) -> tuple[Instance | None, Node | None]:
    there = nodes.of_shard(tx, shard_id)
    return instances.get(tx, instance_id), next((one for one in there if one.role is Role.MASTER), None)
