"""Steps that several kinds of task have in common. Each says what must be true, and makes it so."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from redis.exceptions import OutOfMemoryError, RedisError
from sqlalchemy import Connection

from cacheyard.domain import flavors
from cacheyard.domain.instances import node_settings
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.engine.redis import check_write, figures
from cacheyard.store import instances, nodes
from cacheyard.tasks.engine import Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.tools import look, release
from cacheyard.waiting import NotInTime, until

EMPTY_SECONDS = 30.0  # a new server is up in well under a second; a hundred at once in some
SETTLE_SECONDS = 60.0  # a server that reads a large append-only file takes its time
SYNC_SECONDS = 120.0  # a replica's first copy of a large master
VERIFY_SECONDS = 10.0


async def start_nodes(work: Work) -> None:
    """All nodes are wanted up, and are."""
    await work.tools.write(_want_run, work.task.instance_id, Run.UP, True)
    empty = work.task.kind == Change.CREATE
    await settled(work, seconds=EMPTY_SECONDS if empty else SETTLE_SECONDS)


async def form_topology(work: Work) -> None:
    """All replicas follow their master, and have its data."""
    instance, there = await work.tools.read(look, work.task.instance_id)

    async def in_sync(node: Node) -> bool:
        async with work.tools.link(instance, Address(node.ip, node.port)) as link:
            return (await figures(link, node.id, 0)).link_up

    for node in there:
        if node.role is Role.REPLICA:
            await reach(partial(in_sync, node), SYNC_SECONDS, f"replica {node.ip} to be in sync")


async def verify_from_outside(work: Work) -> None:
    """A client at the instance's address can write, read and delete."""
    instance = await work.tools.read(instances.get, work.task.instance_id)
    assert instance is not None  # noqa: S101
    secret = work.tools.sealer.open(instance.internal_secret)

    async def usable() -> bool:
        with suppress(OutOfMemoryError):  # full of its owner's data, but it takes commands
            await check_write(Address(instance.ip, instance.port), secret)
        return True

    await reach(usable, VERIFY_SECONDS, f"{instance.ip}:{instance.port} to take a write")


async def open_for_clients(work: Work) -> None:
    """The instance is RUNNING and free for the next change."""
    await work.tools.write(release, work.task.instance_id, work.task.id, Status.RUNNING)


async def settled(work: Work, role: Role | None = None, seconds: float = SETTLE_SECONDS) -> None:
    """All nodes, or those in that role, are as wanted."""
    await work.tools.settling.settled(work.task.instance_id, seconds, role=role)


async def stopped(work: Work, role: Role) -> None:
    """The nodes in that role are wanted down, and are; what they hold in memory is kept on disk."""
    await work.tools.write(_want_run, work.task.instance_id, Run.DOWN, True, role)
    await settled(work, role)


async def restarted(work: Work, role: Role) -> None:
    """The nodes in that role have been restarted once since the task began. The others may be in any state:
    a master that hangs is what a restart is asked for."""
    await work.tools.write(_want_restart, work, role)
    await settled(work, role)


async def configured(work: Work, *, restarts: int = 0) -> None:
    """All nodes are configured as the instance's row says, and have been restarted so often since the task
    began. What needs a restart to take effect needs another one to be undone."""
    await work.tools.write(_want_settings, work, restarts)
    await settled(work)


async def give_back_running(work: Work) -> None:
    """The undoing of work that left the servers as they were."""
    await work.tools.write(release, work.task.instance_id, work.task.id, Status.RUNNING)


async def give_back_broken(work: Work) -> None:
    """The undoing of work that cannot be undone: the servers are not as they should be."""
    await work.tools.write(release, work.task.instance_id, work.task.id, Status.ERROR)


async def reach(check: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """Wait until `check`, which may ask a server that is just not there, answers True."""

    async def tried() -> bool:
        try:
            return await check()
        except RedisError as error:
            raise OSError(str(error)) from error  # not yet

    try:
        await until(tried, seconds=seconds, what=what)
    except NotInTime as late:
        raise StepFailed(str(late)) from late


def _want_run(tx: Connection, instance_id: str, run: Run, keep_data: bool, role: Role | None = None) -> None:
    for node in nodes.of_instance(tx, instance_id):
        if role in (None, node.role) and node.run is not run:
            nodes.want(tx, node, run=run, keep_data=keep_data)


def _want_restart(tx: Connection, work: Work, role: Role) -> None:
    for node in nodes.of_instance(tx, work.task.instance_id):
        if node.role is role and _must_restart(work, node, 1):
            nodes.want(tx, node, restart=True, keep_data=bool(work.task.arguments["keep_data"]))


def _want_settings(tx: Connection, work: Work, restarts: int) -> None:
    instance, there = look(tx, work.task.instance_id)
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance was made
    for node in there:
        settings = node_settings(instance, flavor, role=node.role, ip=node.ip, master_ip=there[0].ip)
        again = _must_restart(work, node, restarts)
        nodes.want(tx, node, settings=settings, restart=again, keep_data=True)


def _must_restart(work: Work, node: Node, restarts: int) -> bool:
    """Whether the node has been restarted less often than that since the task began, however often its step
    runs. `incarnations` says what one restart makes of each node."""
    if restarts == 0:
        return False
    incarnations: dict[str, int] = work.task.arguments["incarnations"]
    return node.incarnation < incarnations[node.id] + restarts - 1
