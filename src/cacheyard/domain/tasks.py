"""Background work as the API shows it: a task and its steps."""

from enum import StrEnum
from typing import Any

import msgspec


class Change(StrEnum):
    """The kinds of background work on an instance; `cacheyard.tasks` has a module for each."""

    CREATE = "create"
    DELETE = "delete"
    RESIZE = "resize"
    RESTART = "restart"
    FLUSH = "flush"
    STOP = "stop"
    START = "start"
    RECONFIGURE = "reconfigure"  # new settings for all nodes: password, port, renamed commands


# The steps of each kind, in order: the names of functions in the kind's module, and what the API shows.
RUNBOOKS: dict[Change, tuple[str, ...]] = {
    Change.CREATE: ("start_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
    Change.DELETE: ("remove_nodes", "forget"),
    Change.RESIZE: ("check_fit", "configure_nodes", "verify_from_outside", "open_for_clients"),
    Change.RESTART: (
        "restart_replicas",
        "restart_masters",
        "form_topology",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.FLUSH: ("flush_masters", "open_for_clients"),
    Change.STOP: ("stop_replicas", "stop_masters", "close"),
    Change.START: ("start_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
    Change.RECONFIGURE: ("configure_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
}


def shown_step(name: str) -> str:
    """`start_nodes` as the API shows it: `Start nodes.`"""
    return name.replace("_", " ").capitalize() + "."


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
