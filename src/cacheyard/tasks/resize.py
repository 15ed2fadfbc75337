"""An instance gets another capacity, live: its servers run on with a new memory limit."""

from functools import partial

from sqlalchemy import Connection

from cacheyard.domain import flavors
from cacheyard.domain.instances import FILLED
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.engine.redis import figures
from cacheyard.store import instances
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.steps import (
    VERIFY_SECONDS,
    configured,
    give_back_running,
    open_for_clients,
    reach,
    verify_from_outside,
)
from cacheyard.tasks.tools import look


async def check_fit(work: Work) -> None:
    """What the masters hold now fits the new size with room to spare."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    new = flavors.find(work.task.arguments["spec_code"])
    assert new is not None  # noqa: S101 - checked by the request

    async def fits(node: Node) -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            used = (await figures(link, node.id, 0)).used_memory
        if used >= FILLED * (new.shard_mb << 20):
            raise StepFailed(f"{used >> 20} MB are used, more than {FILLED:.0%} of the new {new.shard_mb} MB")
        return True

    for node in there:
        if node.role is Role.MASTER:
            await reach(partial(fits, node), VERIFY_SECONDS, f"{node.ip} to say what it holds")


async def configure_nodes(work: Work) -> None:
    """The instance has the new flavor, and its servers the new limits."""
    await work.tools.write(_set_flavor, work.task.instance_id, work.task.arguments["spec_code"])
    await configured(work)


async def undo(work: Work) -> None:
    """The old flavor again."""
    await work.tools.write(_set_flavor, work.task.instance_id, work.task.arguments["old_spec_code"])
    await configured(work)
    await give_back_running(work)


def _set_flavor(tx: Connection, instance_id: str, spec_code: str) -> None:
    flavor = flavors.find(spec_code)
    assert flavor is not None  # noqa: S101 - checked by the request
    instances.change(tx, instance_id, spec_code=spec_code, capacity_mb=flavor.capacity_mb)


RESIZE = Kind(steps=(check_fit, configure_nodes, verify_from_outside, open_for_clients), undo=undo)
