"""Changes that wait for their instance's maintenance window: `execute_immediately: false`.

Such a task is a row that holds nothing; deleting it cancels it. What it will do is tried out when it is
asked for, and asked anew when its time has come, as if the request came then.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import now_ms
from cacheyard.domain.identity import Principal
from cacheyard.domain.instances import Instance, in_maintenance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import RUNBOOKS, Change, Task, TaskStatus, shown_step
from cacheyard.services.call import Call, House
from cacheyard.store import instances, tasks
from cacheyard.store.db import taken_back

# Begins a change, or raises `errors.Refused`; the id of its task.
Begin = Callable[[Connection, Call[Any], Instance], str]
# What may wait, by the name of the type of its body: that type, and what begins it.
Begins = Mapping[str, tuple[type, Begin]]

log = structlog.get_logger()


def check_none(tx: Connection, instance: Instance) -> None:
    """Refuse a change while another one waits."""
    if waiting := tasks.waiting(tx, instance.id):
        raise errors.ResizeWaits(task_id=waiting[0].id)


def write(tx: Connection, call: Call[Any], instance: Instance, begin: Begin) -> str:
    """Have a change wait. It would have to be possible now."""
    with taken_back(tx):
        task = tasks.get(tx, begin(tx, call, instance))
    assert task is not None  # noqa: S101 - `begin` has written it
    waiting = msgspec.structs.replace(
        task,
        status=TaskStatus.WAITING,
        arguments={"asked": msgspec.to_builtins(call.body), "body": type(call.body).__name__},
    )
    tasks.add(tx, waiting, [shown_step(step) for step in RUNBOOKS[Change(task.kind)]])
    return task.id


def begin_due(house: House, begins: Begins, now: int | None = None) -> None:
    """Begin what waits for a maintenance window that is open now (epoch milliseconds), if nothing else is
    being done to the instance. What is no longer possible has failed."""
    at = now_ms() if now is None else now
    with house.store.read() as tx:
        due = [task for task in tasks.waiting(tx) if _due(tx, task, at) is not None]
    for task in due:
        try:
            with house.store.write() as tx:
                begun = _begin_one(tx, house, begins, task.id, at)
        except errors.Refused as refused:
            log.warning("a change that waited cannot be done", task=task.id, why=str(refused))
            with house.store.write() as tx:
                _fail(tx, task.id, str(refused))
        else:
            if begun:
                house.start_task(task.id)


def _due(tx: Connection, task: Task, at: int) -> Instance | None:
    """The task's instance, if it is free and its window is open."""
    instance = instances.get(tx, task.instance_id)
    if instance is None or instance.task_id is not None or instance.status is not Status.RUNNING:
        return None
    return instance if in_maintenance(instance.maintain_begin, instance.maintain_end, at) else None


def _begin_one(tx: Connection, house: House, begins: Begins, task_id: str, at: int) -> bool:
    """As the request would, had it come now. The new task takes the place of the one that waited."""
    task = tasks.get(tx, task_id)
    if task is None or task.status is not TaskStatus.WAITING:
        return False  # it was cancelled
    instance = _due(tx, task, at)
    if instance is None:
        return False
    body, begin = begins[task.arguments["body"]]
    call: Call[Any] = Call(
        house=house,
        who=Principal(user_id=task.user_id, user_name=task.user_name, domain_id="", domain_name=""),
        parameters={"project_id": task.project_id, "instance_id": task.instance_id},
        body=msgspec.convert(task.arguments["asked"], body),
        base_url="",
    )
    begun_id = begin(tx, call, instance)
    tasks.remove(tx, task.id)
    tasks.rename(tx, begun_id, task.id)
    instances.change(tx, instance.id, task_id=task.id)
    return True


def _fail(tx: Connection, task_id: str, why: str) -> None:
    task = tasks.get(tx, task_id)
    if task is not None and task.status is TaskStatus.WAITING:
        tasks.note_error(tx, task_id, why)
        tasks.end(tx, task_id, TaskStatus.FAILED)
