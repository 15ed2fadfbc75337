"""Chapter 5.2.6: restart, flush, stop and start instances."""

from dataclasses import dataclass
from typing import Any

from cacheyard import errors
from cacheyard.contract.types import BatchOpsResult, ChangeInstanceStatusBody, RestartOrFlushInstancesResponse
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Call
from cacheyard.services.change import checked_ids


@dataclass(frozen=True)
class _Act:
    change: Change
    name: str
    status: Status  # while it is under way
    among: tuple[Status, ...] = (Status.RUNNING, Status.ERROR)
    keep_data: bool = True  # of servers without persistence


_ACTS = {
    "restart": _Act(Change.RESTART, "restart", Status.RESTARTING, keep_data=False),
    "soft_restart": _Act(Change.RESTART, "softRestart", Status.RESTARTING),
    "flush": _Act(Change.FLUSH, "flush", Status.FLUSHING, among=(Status.RUNNING,)),
    "stop": _Act(Change.STOP, "stop", Status.CLOSING),
    "start": _Act(Change.START, "start", Status.STARTING, among=(Status.CLOSED,)),
}


def restart_or_flush_instances(call: Call[ChangeInstanceStatusBody]) -> RestartOrFlushInstancesResponse:
    """5.2.6: one act on many instances, each with its result; a single one that cannot be is an error."""
    if call.body.action not in _ACTS:
        raise errors.BadAction(action=call.body.action or "missing")
    act, ids = _ACTS[call.body.action], checked_ids(call.body.instances)
    if len(ids) == 1:
        _begin(call, act, ids[0])
        return RestartOrFlushInstancesResponse(results=[BatchOpsResult(result="success", instance=ids[0])])
    return RestartOrFlushInstancesResponse(results=[_try(call, act, instance_id) for instance_id in ids])


def _try(call: Call[Any], act: _Act, instance_id: str) -> BatchOpsResult:
    try:
        _begin(call, act, instance_id)
    except errors.Refused:
        return BatchOpsResult(result="failed", instance=instance_id)
    return BatchOpsResult(result="success", instance=instance_id)


def _begin(call: Call[Any], act: _Act, instance_id: str) -> None:
    with call.house.store.write() as tx:
        task_id = work.begin(
            tx,
            call.who,
            call.instance(tx, instance_id),
            act.change,
            name=act.name,
            status=act.status,
            among=act.among,
            arguments={
                "keep_data": act.keep_data,
                "incarnations": work.next_incarnations(tx, instance_id),
            },
        )
    call.house.start_task(task_id)
