"""Chapter 5.12: background tasks and jobs. A job is a task seen through the id that an operation answered."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from cacheyard import errors
from cacheyard.clock import iso, now_ms
from cacheyard.contract.types import (
    DeleteBackgroundTaskResponse,
    DetailsBody,
    DetailsBodyListCenterTask,
    EmptyAnswer,
    ListBackgroundTaskResponse,
    ListCenterTaskResponse,
    ListCenterTasksResp,
    ShowBackgroundTaskProgressResponse,
    ShowJobInfoResponse,
    SingleBackgroundTask,
    StepDetail,
)
from cacheyard.domain.tasks import Step, StepStatus, Task, TaskStatus
from cacheyard.services.call import Call
from cacheyard.store import tasks

D = TypeVar("D")

PAGE = 10
_JOB_STATUS = {
    TaskStatus.WAITING: "INIT",
    TaskStatus.EXECUTING: "RUNNING",
    TaskStatus.SUCCESS: "SUCCESS",
    TaskStatus.FAILED: "FAIL",
}
_ENDED = (TaskStatus.SUCCESS, TaskStatus.FAILED)


def list_background_task(call: Call[None]) -> ListBackgroundTaskResponse:
    """5.12.1: the tasks of one instance, newest first."""
    instance_id = str(call.parameters["instance_id"])
    with call.house.store.read() as tx:
        call.instance(tx)
    found, total = _page(call, instance_id)
    return ListBackgroundTaskResponse(
        task_count=str(total),
        tasks=[SingleBackgroundTask(**_shown(task), details=_details(task, DetailsBody)) for task in found],
    )


def list_center_task(call: Call[None]) -> ListCenterTaskResponse:
    """5.12.5: the tasks of the project, newest first."""
    found, total = _page(call, None)
    return ListCenterTaskResponse(
        task_count=str(total),
        tasks=[
            ListCenterTasksResp(
                **_shown(task), details=_details(task, DetailsBodyListCenterTask), job_id=task.id
            )
            for task in found
        ],
    )


def show_background_task_progress(call: Call[None]) -> ShowBackgroundTaskProgressResponse:
    """5.12.3: how far a task is, step by step. The time that remains is guessed from what went by."""
    with call.house.store.read() as tx:
        call.instance(tx)
        task = tasks.get(tx, str(call.parameters["task_id"]))
        if task is None or task.instance_id != call.parameters["instance_id"]:
            raise errors.NoSuchTask
        steps = tasks.steps(tx, task.id)
    done = sum(step.status is StepStatus.FINISH for step in steps)
    return ShowBackgroundTaskProgressResponse(
        progress=100 if task.status is TaskStatus.SUCCESS else 100 * done // len(steps),
        remain_time=_remaining_seconds(task, steps, done),
        step_details=[
            StepDetail(
                step_id=f"{step.task_id}-{step.number}",
                step_name=step.name,
                step_status=step.status,
                begin_time=_seconds(step.begin_at),
                end_time=_seconds(step.end_at),
                error_code="DCS.5000" if step.error else None,
                sub_step_details=[],
            )
            for step in steps
        ],
    )


def show_job_info(call: Call[None]) -> ShowJobInfoResponse:
    """5.12.4: how a job stands."""
    with call.house.store.read() as tx:
        task = tasks.get(tx, str(call.parameters["job_id"]))
    if task is None or task.project_id != call.project_id:
        raise errors.NoSuchTask
    return ShowJobInfoResponse(
        job_id=task.id,
        job_type=task.name,
        status=_JOB_STATUS[task.status],
        begin_time=str(task.created_at),
        end_time=str(task.updated_at) if task.status in _ENDED else None,
        fail_reason=task.error,
    )


def delete_background_task(call: Call[None]) -> DeleteBackgroundTaskResponse:
    """5.12.2: delete the record of a task that has ended, or cancel one that waits for its time."""
    with call.house.store.read() as tx:
        call.instance(tx)
    _delete(call, str(call.parameters["instance_id"]))
    return DeleteBackgroundTaskResponse(message="The record is deleted.")


def delete_center_task(call: Call[Any]) -> EmptyAnswer:
    """5.12.6: the same by the task's id alone."""
    _delete(call, None)
    return EmptyAnswer()


def _delete(call: Call[Any], instance_id: str | None) -> None:
    with call.house.store.write() as tx:
        task = tasks.get(tx, str(call.parameters["task_id"]))
        if task is None or task.project_id != call.project_id or instance_id not in (None, task.instance_id):
            raise errors.NoSuchTask
        if task.status is TaskStatus.EXECUTING:
            raise errors.TaskUnderWay(status=task.status)
        tasks.remove(tx, task.id)


def _page(call: Call[None], instance_id: str | None) -> tuple[list[Task], int]:
    given = call.parameters
    with call.house.store.read() as tx:
        return tasks.find(
            tx,
            project_id=call.project_id,
            instance_id=instance_id,
            since=_moment(given.get("start_time"), "start_time"),
            until=_moment(given.get("end_time"), "end_time"),
            offset=given.get("offset") or 0,
            limit=given.get("limit") or PAGE,
        )


def _moment(text: str | None, parameter: str) -> int | None:
    """`20260131235959` (UTC) in epoch milliseconds."""
    if text is None:
        return None
    try:
        return int(datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise errors.Invalid(parameter=parameter, why="it must be a time, yyyyMMddHHmmss") from None


def _shown(task: Task) -> dict[str, Any]:
    """What both lists have in common."""
    return {
        "id": task.id,
        "name": task.name,
        "user_name": task.user_name,
        "user_id": task.user_id,
        "status": task.status,
        "created_at": iso(task.created_at),
        "updated_at": iso(task.updated_at),
        "enable_show": True,
    }


def _details(task: Task, kind: type[D]) -> D | None:
    return msgspec.convert(task.details, kind) if task.details else None


def _seconds(ms: int | None) -> str | None:
    """`2022-09-01 11:52:24`, UTC: the form of times in the progress answer alone."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _remaining_seconds(task: Task, steps: Sequence[Step], done: int) -> int:
    if task.status is not TaskStatus.EXECUTING or done == 0:
        return 0
    return (now_ms() - task.created_at) * (len(steps) - done) // done // 1000
