"""How a service gives an instance to a task: one at a time, in the transaction of the request."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.contract.types import DryRun
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.identity import Principal
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import RUNBOOKS, Change, Task, TaskStatus, shown_step
from cacheyard.ids import new_id
from cacheyard.services.call import busy
from cacheyard.store import instances, nodes
from cacheyard.store import tasks as task_rows


def begin(
    tx: Connection,
    who: Principal,
    instance: Instance,
    change: Change,
    *,
    name: str,
    status: Status,
    among: Collection[Status] = (Status.RUNNING,),
    arguments: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Seize the instance, whose status becomes `status`, and write the task; its id.

    Raises `errors.Busy` when another task has the instance or its status is not `among` those.
    """
    task_id = new_id()
    if not instances.seize(tx, instance.id, status=status, task_id=task_id, among=among):
        raise busy(instance)
    write(tx, who, instance, change, task_id=task_id, name=name, arguments=arguments, details=details)
    return task_id


def write(
    tx: Connection,
    who: Principal,
    instance: Instance,
    change: Change,
    *,
    task_id: str,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write the row of a task that holds the instance already."""
    now = now_ms()
    task = Task(
        id=task_id,
        project_id=instance.project_id,
        instance_id=instance.id,
        kind=change,
        name=name,
        status=TaskStatus.EXECUTING,
        arguments=dict(arguments or {}),
        details=dict(details or {}),
        user_id=who.user_id,
        user_name=who.user_name,
        error=None,
        created_at=now,
        updated_at=now,
    )
    task_rows.add(tx, task, [shown_step(step) for step in RUNBOOKS[change]])


def tried(tx: Connection, task_id: str, **details: Any) -> DryRun:
    """What a task would do that was written only to be taken back."""
    task = task_rows.get(tx, task_id)
    assert task is not None  # noqa: S101 - it has just been written
    return DryRun(
        task=task.name,
        steps=[step.name for step in task_rows.steps(tx, task_id)],
        waits=task.status is TaskStatus.WAITING,
        details=task.details | details,
    )


def flavor_details(instance: Instance, old: Flavor, new: Flavor) -> dict[str, Any]:
    """What the task list shows of a change of the flavor."""
    return {
        "old_capacity": old.capacity_text,
        "new_capacity": new.capacity_text,
        "old_resource_spec_code": instance.spec_code,
        "new_resource_spec_code": new.spec_code,
        "old_cache_mode": old.cache_mode,
        "new_cache_mode": new.cache_mode,
        "old_replica_num": old.nodes_per_shard,
        "new_replica_num": new.nodes_per_shard,
    }


def next_incarnations(tx: Connection, instance_id: str) -> dict[str, int]:
    """What each node's incarnation will be after one restart: a step that runs twice then restarts once."""
    return {node.id: node.incarnation + 1 for node in nodes.of_instance(tx, instance_id)}
