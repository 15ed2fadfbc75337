"""Rows of `tasks` and `task_steps`: what the API shows of background work."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from cacheyard.clock import now_ms
from cacheyard.domain.tasks import Step, StepStatus, Task, TaskStatus
from cacheyard.store import rows
from cacheyard.store.tables import task_steps, tasks

_UNDER_WAY = task_steps.c.status == StepStatus.EXECUTING


def add(tx: Connection, task: Task, steps: Sequence[str]) -> None:
    """Insert a task with its steps: the first under way, the others waiting. All do if the task does."""
    tx.execute(insert(tasks).values(**msgspec.to_builtins(task)))
    waiting = [
        {"task_id": task.id, "number": number, "name": name, "status": StepStatus.WAITING}
        for number, name in enumerate(steps)
    ]
    tx.execute(insert(task_steps), waiting)
    if task.status is TaskStatus.EXECUTING:
        begin_step(tx, task.id, 0)


def get(tx: Connection, task_id: str) -> Task | None:
    """The task, whosever it is."""
    return rows.one_of(Task, tx.execute(select(tasks).where(tasks.c.id == task_id)))


def unfinished(tx: Connection) -> list[str]:
    """Ids of the tasks that have not ended, oldest first."""
    query = select(tasks.c.id).where(tasks.c.status == TaskStatus.EXECUTING).order_by(tasks.c.created_at)
    return [row.id for row in tx.execute(query)]


def under_way(tx: Connection, kind: str) -> list[Task]:
    """The tasks of that kind that have not ended."""
    query = select(tasks).where(tasks.c.status == TaskStatus.EXECUTING, tasks.c.kind == kind)
    return rows.all_of(Task, tx.execute(query))


def waiting(tx: Connection, instance_id: str | None = None) -> list[Task]:
    """The tasks that wait for their time, of one instance or all, oldest first."""
    query = select(tasks).where(tasks.c.status == TaskStatus.WAITING).order_by(tasks.c.created_at)
    if instance_id is not None:
        query = query.where(tasks.c.instance_id == instance_id)
    return rows.all_of(Task, tx.execute(query))


def latest(tx: Connection, instance_id: str, kind: str) -> Task | None:
    """The task of that kind that was begun last for the instance."""
    query = select(tasks).where(tasks.c.instance_id == instance_id, tasks.c.kind == kind)
    return rows.one_of(Task, tx.execute(query.order_by(tasks.c.created_at.desc()).limit(1)))


def find(
    tx: Connection,
    *,
    project_id: str,
    instance_id: str | None = None,
    since: int | None = None,
    until: int | None = None,
    offset: int = 0,
    limit: int | None = None,
) -> tuple[list[Task], int]:
    """Tasks of a project or an instance, newest first, created in [since, until]; and how many in all."""
    tests = [tasks.c.project_id == project_id]
    if instance_id is not None:
        tests.append(tasks.c.instance_id == instance_id)
    if since is not None:
        tests.append(tasks.c.created_at >= since)
    if until is not None:
        tests.append(tasks.c.created_at <= until)
    total = tx.execute(select(func.count()).select_from(tasks).where(*tests)).scalar_one()
    query = select(tasks).where(*tests).order_by(tasks.c.created_at.desc(), tasks.c.id).offset(offset)
    if limit is not None:
        query = query.limit(limit)
    return rows.all_of(Task, tx.execute(query)), total


def steps(tx: Connection, task_id: str) -> list[Step]:
    """The steps of a task in their order."""
    query = select(task_steps).where(task_steps.c.task_id == task_id).order_by(task_steps.c.number)
    return rows.all_of(Step, tx.execute(query))


def begin_step(tx: Connection, task_id: str, number: int) -> None:
    """A step is under way."""
    here = (task_steps.c.task_id == task_id, task_steps.c.number == number)
    tx.execute(update(task_steps).where(*here).values(status=StepStatus.EXECUTING, begin_at=now_ms()))


def end_step(tx: Connection, task_id: str, number: int, error: str | None = None) -> None:
    """The step under way is done, or has failed with `error`. One that has ended stays as it is."""
    status = StepStatus.FINISH if error is None else StepStatus.FAILED
    here = (task_steps.c.task_id == task_id, task_steps.c.number == number, _UNDER_WAY)
    tx.execute(update(task_steps).where(*here).values(status=status, end_at=now_ms(), error=error))


def note_error(tx: Connection, task_id: str, error: str) -> None:
    """Why the task is going to fail."""
    tx.execute(update(tasks).where(tasks.c.id == task_id).values(error=error, updated_at=now_ms()))


def end(tx: Connection, task_id: str, status: TaskStatus) -> None:
    """A task has ended, and with it the step that was under way. One that has ended before stays as it is."""
    before = (tasks.c.id == task_id, tasks.c.status.in_((TaskStatus.WAITING, TaskStatus.EXECUTING)))
    tx.execute(update(tasks).where(*before).values(status=status, updated_at=now_ms()))
    here = (task_steps.c.task_id == task_id, _UNDER_WAY)
    tx.execute(update(task_steps).where(*here).values(status=StepStatus.FINISH, end_at=now_ms()))


def remove(tx: Connection, task_id: str) -> None:
    """Delete a task's record."""
    tx.execute(delete(tasks).where(tasks.c.id == task_id))


def rename(tx: Connection, task_id: str, new_id: str) -> None:
    """Give a task, with its steps, another id."""
    row = tx.execute(select(tasks).where(tasks.c.id == task_id)).mappings().one()
    tx.execute(insert(tasks).values({**row, "id": new_id}))
    tx.execute(update(task_steps).where(task_steps.c.task_id == task_id).values(task_id=new_id))
    remove(tx, task_id)
