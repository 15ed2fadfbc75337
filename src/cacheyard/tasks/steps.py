"""Steps that several kinds of task have in common. Each says what must be true, and makes it so."""

from contextlib import suppress

from sqlalchemy import Connection

from cacheyard.domain import flavors
from cacheyard.domain.instances import in_force, node_settings
from cacheyard.domain.nodes import Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.store import caps, nodes, proxies, shards
from cacheyard.tasks.engine import Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.reach import reach
from cacheyard.tasks.tools import look, release

EMPTY_SECONDS = 30.0  # a new server is up in well under a second; a hundred at once in some
SETTLE_SECONDS = 60.0  # a server that reads a large append-only file takes its time
UNWATCHED_SECONDS = 30.0  # it takes some milliseconds, unless an agent or a Sentinel is just being started
CAPS_SECONDS = 8.0  # it takes some milliseconds; less than a request waits that must know how it ended
SECONDS_A_NODE = 0.25  # more of both: 256 nodes of one cluster keep two cores busy for a minute


async def start_nodes(work: Work) -> None:
    """All nodes are wanted up, and are."""
    there = await work.tools.write(_want_run, work.task.instance_id, Run.UP, True)
    seconds = EMPTY_SECONDS if work.task.kind == Change.CREATE else SETTLE_SECONDS
    await settled(work, seconds=seconds + SECONDS_A_NODE * there)


async def open_for_clients(work: Work) -> None:
    """The instance is RUNNING and free for the next change. Its clients are held to their bandwidth, if they
    are to be: what is in the way of that alone undoes nothing, as the agent tries again."""
    with suppress(StepFailed):
        await capped(work)
    await work.tools.write(release, work.task.instance_id, work.task.id, Status.RUNNING)


async def unwatched(work: Work) -> None:
    """From now until the instance is given back, this task alone puts others in the place of its masters."""
    await work.tools.write(shards.watch, work.task.instance_id, False)

    async def off() -> bool:
        return not any(
            shard.seen_watch for shard in await work.tools.read(shards.of_instance, work.task.instance_id)
        )

    await reach(off, UNWATCHED_SECONDS, "the watch over the masters to end")


async def capped(work: Work) -> None:
    """The caps in force are those that the rows want by now."""
    seen: list[str | None] = [None]

    async def in_force() -> bool:
        seen[0] = await work.tools.read(caps.unsettled, work.task.instance_id)
        return seen[0] is None

    try:
        await reach(in_force, CAPS_SECONDS, "the bandwidth to take effect")
    except StepFailed as failed:
        raise StepFailed(f"{failed}; {seen[0]}") from failed


async def proxies_settled(work: Work) -> None:
    """All proxies of the instance serve as the rows want by now; those that are not wanted do not run."""
    seen: list[str] = []

    async def all_settled() -> bool:
        seen[:] = await work.tools.read(proxies.unsettled, work.task.instance_id)
        return not seen

    try:
        await reach(all_settled, SETTLE_SECONDS, "the proxies to serve")
    except StepFailed as failed:
        raise StepFailed("; ".join([str(failed), *seen])) from failed


async def settled(work: Work, role: Role | None = None, seconds: float = SETTLE_SECONDS) -> None:
    """All nodes, or those in that role, are as wanted."""
    await work.tools.settling.settled(work.task.instance_id, seconds, role=role)


async def stopped(work: Work, role: Role | None) -> None:
    """The nodes in that role, or all, are wanted down, and are; what they hold in memory is kept on disk."""
    await work.tools.write(_want_run, work.task.instance_id, Run.DOWN, True, role)
    await settled(work, role)


async def restarted(work: Work, role: Role | None) -> None:
    """The nodes in that role, or all, have been restarted once since the task began. The others may be in any
    state: a master that hangs is what a restart is asked for."""
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


def _want_run(tx: Connection, instance_id: str, run: Run, keep_data: bool, role: Role | None = None) -> int:
    there = nodes.of_instance(tx, instance_id)
    for node in there:
        if role in (None, node.role) and node.run is not run:
            nodes.want(tx, node, run=run, keep_data=keep_data)
    return len(there)


def _want_restart(tx: Connection, work: Work, role: Role | None) -> None:
    for node in nodes.of_instance(tx, work.task.instance_id):
        if role in (None, node.role) and _must_restart(work, node, 1):
            nodes.want(tx, node, restart=True, keep_data=bool(work.task.arguments["keep_data"]))


def _want_settings(tx: Connection, work: Work, restarts: int) -> None:
    instance, there = look(tx, work.task.instance_id)
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance was made
    for node in (one for one in there if in_force(instance, one)):
        settings = node_settings(
            instance,
            flavor,
            role=node.role,
            ip=node.ip,
            master_ip=there[0].ip,
            priority=node.priority,
        )
        again = _must_restart(work, node, restarts)
        nodes.want(tx, node, settings=settings, restart=again, keep_data=True)


def _must_restart(work: Work, node: Node, restarts: int) -> bool:
    """Whether the node has been restarted less often than that since the task began, however often its step
    runs. `incarnations` says what one restart makes of each node."""
    if restarts == 0:
        return False
    incarnations: dict[str, int] = work.task.arguments["incarnations"]
    return node.incarnation < incarnations[node.id] + restarts - 1
