"""Background work as the API shows it: a task and its steps."""

from enum import StrEnum
from typing import Any

import msgspec


class TaskStatus(StrEnum):
    """Of a task, as listed."""

    EXECUTING = "EXECUTING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class StepStatus(StrEnum):
    """Of a step, as its progress answer spells it."""

    WAITING = "WAITING"
    EXECUTING = "EXECUTING"
    FINISH = "FINISH"
    FAILED = "FAILED"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `tasks`."""

    id: str
    project_id: str
    instance_id: str
    kind: str
    name: str
    status: TaskStatus
    arguments: dict[str, Any]
    details: dict[str, Any]
    user_id: str
    user_name: str
    error: str | None
    created_at: int
    updated_at: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `task_steps`."""

    task_id: str
    number: int
    name: str
    status: StepStatus
    begin_at: int | None
    end_at: int | None
    error: str | None
