"""Chapter 5.1.7 and what leads to the same: a resize now, in the maintenance window, as an order, and only
the question whether it could be (5.12.7)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    CreateResizeOrderRequestBody,
    CreateResizeOrderResponse,
    DryRun,
    DryRunResponse,
    ResizeInstanceBody,
    StartInstanceResizeCheckJobRequestBody,
    StartInstanceResizeCheckJobResponse,
)
from cacheyard.domain import flavors
from cacheyard.domain.instances import Instance
from cacheyard.domain.tasks import Change
from cacheyard.ids import new_id
from cacheyard.services import scheduled, work
from cacheyard.services.call import Begun, Call
from cacheyard.services.resizing import begin, change_type
from cacheyard.store.db import taken_back

Complete = Callable[[Instance], ResizeInstanceBody]  # what is asked for, in full, given what is there


def resize_instance(call: Call[ResizeInstanceBody]) -> Begun[None] | DryRunResponse:
    """5.1.7: another capacity, or another number of replicas or shards; now or in the maintenance window."""
    return _answered(_ask(call, lambda _: call.body))


def create_resize_order(
    call: Call[CreateResizeOrderRequestBody],
) -> Begun[CreateResizeOrderResponse] | CreateResizeOrderResponse:
    """[newer] The same as an order. Nothing is to be paid here: the order is the task."""
    body = call.body
    if body.auto_open_security_group_rule:
        raise errors.SecurityGroupUnused(parameter="auto_open_security_group_rule")

    def asked(instance: Instance) -> ResizeInstanceBody:
        return completed(
            instance, body.spec_code, body.new_capacity, execute_immediately=body.execute_immediately
        )

    told = _ask(call, asked)
    if isinstance(told, DryRun):
        return CreateResizeOrderResponse(dry_run=told)
    return Begun(CreateResizeOrderResponse(order_id=told), told)


def resize_to(
    call: Call[Any], spec_code: str | None, new_capacity: float | None
) -> Begun[None] | DryRunResponse:
    """A resize by a client that says only where to."""
    return _answered(_ask(call, lambda instance: completed(instance, spec_code, new_capacity)))


def start_instance_resize_check_job(
    call: Call[StartInstanceResizeCheckJobRequestBody | None],
) -> Begun[StartInstanceResizeCheckJobResponse]:
    """5.12.7: whether a resize would be accepted, as a job that succeeds or fails. It holds nothing."""
    body = call.body or StartInstanceResizeCheckJobRequestBody()
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        asked = completed(instance, body.spec_code, body.new_capacity)
        task_id = new_id()
        work.write(
            tx,
            call.who,
            instance,
            Change.CHECK_RESIZE,
            task_id=task_id,
            name="ResizeCheck",
            arguments={
                "spec_code": asked.spec_code,
                "old_spec_code": instance.spec_code,
                "refusal": _refusal(tx, _with_body(call, asked), instance),
            },
        )
    call.house.start_task(task_id)
    return Begun(StartInstanceResizeCheckJobResponse(job_id=task_id), task_id)


def completed(
    instance: Instance,
    spec_code: str | None,
    new_capacity: float | None,
    *,
    execute_immediately: bool | None = None,
) -> ResizeInstanceBody:
    """What 5.1.7 would be asked for: of a flavor its capacity, of a capacity the flavor like today's, and the
    type of change that leads there."""
    old = flavors.find(instance.spec_code)
    if spec_code:
        new = flavors.find(spec_code)
        if new is None:
            raise errors.BadFlavor(why=f"there is no flavor {spec_code}")
    elif new_capacity is None:
        raise errors.Invalid(code="DCS.4012", parameter="new_capacity", why="it or spec_code is required")
    else:
        new = flavors.alike(old, capacity_mb=round(new_capacity * 1024)) if old is not None else None
        if new is None:
            raise errors.BadCapacity(
                parameter="new_capacity", why=f"no flavor like {instance.spec_code} has {new_capacity:g} GB"
            )
    return ResizeInstanceBody(
        spec_code=new.spec_code,
        new_capacity=new.capacity_mb / 1024 if new_capacity is None else new_capacity,
        change_type=change_type(old, new) if old is not None else None,
        execute_immediately=execute_immediately,
    )


def _ask(call: Call[Any], asked: Complete) -> str | DryRun:
    """Begin a resize now, or have it wait if it says so: its task's id. Or only try it out."""
    house = call.house
    with house.store.write() as tx:
        instance = call.instance(tx)
        scheduled.check_none(tx, instance)
        body = asked(instance)
        now = body.execute_immediately is not False
        full = _with_body(call, body)
        with taken_back(tx) if call.dry_run else nullcontext():
            task_id = begin(tx, full, instance) if now else scheduled.write(tx, full, instance, begin)
            if call.dry_run:
                return work.tried(tx, task_id)
    if now:
        house.start_task(task_id)
    return task_id


def _answered(told: str | DryRun) -> Begun[None] | DryRunResponse:
    return DryRunResponse(dry_run=told) if isinstance(told, DryRun) else Begun(None, told)


def _with_body(call: Call[Any], body: ResizeInstanceBody) -> Call[ResizeInstanceBody]:
    return replace(call, body=body)


def _refusal(tx: Connection, call: Call[ResizeInstanceBody], instance: Instance) -> str | None:
    """Why the resize would be refused now; None: it would not. A moment that passes is no reason."""
    try:
        scheduled.check_none(tx, instance)
        with taken_back(tx):
            begin(tx, call, instance)
    except errors.Busy:
        raise
    except errors.Refused as refused:
        return f"{refused.code}: {refused}"
    return None
