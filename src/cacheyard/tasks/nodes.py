"""Single nodes are stopped and started. Their instance serves on: a shard always keeps a master."""

from collections.abc import Collection

from sqlalchemy import Connection

from cacheyard.domain.nodes import Role, Run
from cacheyard.store import nodes
from cacheyard.tasks import switchover
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.reach import reach
from cacheyard.tasks.steps import (
    SETTLE_SECONDS,
    give_back_broken,
    give_back_running,
    open_for_clients,
    unwatched,
)
from cacheyard.tasks.tools import look
from cacheyard.tasks.topology import form_topology, verify_from_outside


async def hand_over_masters(work: Work) -> None:
    """None of the nodes that are to stop is a master."""
    await unwatched(work)
    instance, there = await work.tools.read(look, work.task.instance_id)
    going = _node_ids(work)
    for shard_id in dict.fromkeys(node.shard_id for node in there if node.id in going):
        staying = [node.id for node in there if node.shard_id == shard_id and node.id not in going]
        while (master := await switchover.master_of(work, instance, shard_id)).id in going:
            if (new_id := await switchover.choose(work, instance, master, staying)) is not None:
                await switchover.move(work, instance, shard_id, new_id)
        await switchover.settle(work, instance, shard_id)


async def stop_nodes(work: Work) -> None:
    """They do not run."""
    await work.tools.write(_want_down, _node_ids(work))
    await as_wanted(work, _node_ids(work))


async def undo_stop(work: Work) -> None:
    """They run; who has become master meanwhile remains it."""
    await work.tools.write(_want_up, _node_ids(work))
    await switchover.undo(work)


async def start_nodes(work: Work) -> None:
    """They run."""
    await work.tools.write(_want_up, _node_ids(work))
    await as_wanted(work, _node_ids(work))


async def undo_start(work: Work) -> None:
    """An instance that served before goes on without those that were stopped."""
    stopped: list[str] | None = work.task.arguments["undo"]
    if stopped is None:
        await give_back_broken(work)
        return
    await work.tools.write(_want_down_again, stopped)
    await give_back_running(work)


async def as_wanted(work: Work, node_ids: Collection[str]) -> None:
    """The agents have made these nodes what they are to be."""

    async def settled() -> bool:
        for node in await work.tools.read(nodes.by_ids, list(node_ids)):
            if not node.settled:
                raise OSError(f"{node.ip} is {node.seen_state}: {node.seen_error}")
        return True

    await reach(settled, SETTLE_SECONDS, "the nodes to be as wanted")


STOP_NODES = Kind(
    steps=(hand_over_masters, stop_nodes, verify_from_outside, open_for_clients), undo=undo_stop
)
START_NODES = Kind(steps=(start_nodes, form_topology, verify_from_outside, open_for_clients), undo=undo_start)


def _node_ids(work: Work) -> list[str]:
    return list(work.task.arguments["node_ids"])


def _want_down(tx: Connection, node_ids: list[str]) -> None:
    for node in nodes.by_ids(tx, node_ids):
        if node.role is Role.MASTER:
            raise StepFailed(f"{node.ip} has become master meanwhile")
        if node.run is Run.UP:
            nodes.want(tx, node, run=Run.DOWN)


def _want_down_again(tx: Connection, node_ids: list[str]) -> None:
    for node in nodes.by_ids(tx, node_ids):
        if node.role is Role.REPLICA and node.run is Run.UP:
            nodes.want(tx, node, run=Run.DOWN)


def _want_up(tx: Connection, node_ids: list[str]) -> None:
    for node in nodes.by_ids(tx, node_ids):
        if node.run is Run.DOWN:
            nodes.want(tx, node, run=Run.UP)
