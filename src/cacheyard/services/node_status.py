"""Nodes are stopped and started one by one ([newer]). See docs/switchover.md.

An instance is closed, all its nodes stopped, or each of its shards has a master: there is nothing in
between, in which part of the data could not be reached, or in which a node that missed the last
writes could be taken for one that has them.
"""

from collections.abc import Collection

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import ChangeNodesStartStopStatusBody
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call
from cacheyard.services.groups import Group, groups_of, refuse_proxies

ACTIONS = ("start", "stop")
_WHOLE = (Status.RUNNING, Status.ERROR, Status.CLOSED)


def change_nodes_start_stop_status(call: Call[ChangeNodesStartStopStatusBody]) -> Begun[str]:
    """Start or stop the nodes named; none named: all. The answer is a text. (Proxies run while any node is to
    run.)"""
    body = call.body
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if body.action not in ACTIONS:
            raise errors.Invalid("DCS.4064", parameter="action", why=f"it must be {' or '.join(ACTIONS)}")
        groups = groups_of(tx, [instance])[instance.id]
        refuse_proxies(tx, instance.id, body.node_ids or [], parameter="node_ids")
        named = _named(groups, body.node_ids or [])
        begin = _begin_stop if body.action == "stop" else _begin_start
        task_id = begin(tx, call, instance, groups, named)
    call.house.start_task(task_id)
    return Begun(f"job_id:{task_id}", task_id)


def _named(groups: Collection[Group], node_ids: Collection[str]) -> list[Node]:
    there = {node.id: node for group in groups for node in group.nodes}
    if strange := [node_id for node_id in node_ids if node_id not in there]:
        raise errors.BadNode(parameter="node_ids", why=f"the instance has no node {strange[0]}")
    return [there[node_id] for node_id in dict.fromkeys(node_ids)] if node_ids else list(there.values())


def _begin_stop(
    tx: Connection,
    call: Call[ChangeNodesStartStopStatusBody],
    instance: Instance,
    groups: Collection[Group],
    named: Collection[Node],
) -> str:
    going = {node.id for node in named if node.run is Run.UP}
    left = {group.shard.id: _running(group, but=going) for group in groups}
    if not any(left.values()):
        return work.begin(
            tx, call.who, instance, Change.STOP, name="StopNodes", status=Status.CLOSING, among=_WHOLE
        )
    for group in groups:
        if not left[group.shard.id]:
            raise _refused(
                f"{group.shard.name} would have no running node; leave one, or stop all of the instance"
            )
    return work.begin(
        tx,
        call.who,
        instance,
        Change.STOP_NODES,
        name="StopNodes",
        status=Status.RUNNING,
        arguments={"node_ids": sorted(going)},
    )


def _begin_start(
    tx: Connection,
    call: Call[ChangeNodesStartStopStatusBody],
    instance: Instance,
    groups: Collection[Group],
    named: Collection[Node],
) -> str:
    coming = {node.id for node in named}
    for group in groups:
        master = next(node for node in group.nodes if node.role is Role.MASTER)
        if master.run is not Run.UP and master.id not in coming:
            raise _refused(f"{master.id} must be started too: of {group.shard.name} it has the last writes")
    return work.begin(
        tx,
        call.who,
        instance,
        Change.START_NODES,
        name="StartNodes",
        status=Status.RUNNING if instance.status is Status.RUNNING else Status.STARTING,
        among=_WHOLE,
        arguments={
            "node_ids": sorted(coming),
            "undo": sorted(node.id for node in named if node.run is Run.DOWN)
            if instance.status is Status.RUNNING
            else None,
        },
    )


def _refused(why: str) -> errors.NotOnThisNode:
    return errors.NotOnThisNode(parameter="node_ids", why=why)


def _running(group: Group, but: Collection[str]) -> list[Node]:
    return [node for node in group.nodes if node.run is Run.UP and node.id not in but]
