"""Chapter 5.1, the changing and unmaking: update and delete."""

from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    BatchDeleteBody,
    BatchDeleteInstancesResponse,
    BatchOpsResult,
    ModifyInstanceBody,
)
from cacheyard.domain.instances import BATCH, Instance, new_names, port_fault, rename_fault
from cacheyard.domain.statuses import AT_REST, Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, busy
from cacheyard.services.lifecycle import backup_policy, check_security_group, checked_window, wants_protection
from cacheyard.store import instances, tasks


def update_instance(call: Call[ModifyInstanceBody]) -> Begun[None] | None:
    """5.1.6: what is only a record changes at once; a new port or new command names are a task.

    Clients send everything at once, changed or not: what is unchanged costs no restart.
    """
    body = call.body
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        renamed = _new_names(instance, body)
        moved = body.port if body.port not in (None, instance.port) else None
        if moved is not None and (why := port_fault(instance.cache_mode, moved)) is not None:
            raise errors.Invalid(parameter="port", why=why)
        _record(tx, call, instance)
        if moved is None and renamed is None:
            return None
        kept = {"port": instance.port, "rename_commands": instance.rename_commands}
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.RECONFIGURE,
            name="UpdatePort" if moved is not None else "RenameCommands",
            status=Status.RESTARTING,
            arguments={"incarnations": work.next_incarnations(tx, instance.id), "undo": kept},
            details={"old_port": instance.port, "new_port": moved}
            if moved is not None
            else {"rename_commands": _renamed(instance, renamed or {})},
        )
        instances.change(
            tx,
            instance.id,
            port=moved if moved is not None else instance.port,
            rename_commands=renamed if renamed is not None else instance.rename_commands,
        )
    call.house.start_task(task_id)
    return Begun(None, task_id)


def delete_single_instance(call: Call[None]) -> Begun[None] | None:
    """5.1.5: delete an instance; done again while that is under way, it is no error."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.status is Status.DELETING:
            return None
        task_id = _begin_deletion(tx, call, instance)
    call.house.start_task(task_id)
    return Begun(None, task_id)


def batch_delete_instances(call: Call[BatchDeleteBody | None]) -> BatchDeleteInstancesResponse:
    """5.1.3: delete the instances named, or all whose creation failed; each succeeds or fails by itself."""
    if call.parameters.get("all_failure"):
        with call.house.store.read() as tx:
            wanted = instances.Wanted(statuses=[Status.CREATEFAILED])
            ids = [instance.id for instance in instances.find(tx, call.project_id, wanted)]
    else:
        ids = checked_ids(call.body.instances if call.body is not None else None)
    return BatchDeleteInstancesResponse(results=[_delete_one(call, instance_id) for instance_id in ids])


def checked_ids(ids: list[str] | None) -> list[str]:
    """The ids of a batch, each once, in their order."""
    if not ids:
        raise errors.NoInstances
    if len(ids) > BATCH:
        raise errors.TooManyInstances(limit=BATCH)
    return list(dict.fromkeys(ids))


def _delete_one(call: Call[Any], instance_id: str) -> BatchOpsResult:
    try:
        with call.house.store.write() as tx:
            instance = call.instance(tx, instance_id)
            task_id = None if instance.status is Status.DELETING else _begin_deletion(tx, call, instance)
    except errors.Refused:
        return BatchOpsResult(result="failed", instance=instance_id)
    if task_id is not None:
        call.house.start_task(task_id)
    return BatchOpsResult(result="success", instance=instance_id)


def _begin_deletion(tx: Connection, call: Call[Any], instance: Instance) -> str:
    """What waited for the instance's maintenance window goes along with it."""
    if instance.protected:
        raise errors.DeletionProtected
    task_id = work.begin(
        tx, call.who, instance, Change.DELETE, name="delete", status=Status.DELETING, among=AT_REST
    )
    for task in tasks.waiting(tx, instance.id):
        tasks.remove(tx, task.id)
    return task_id


def _record(tx: Connection, call: Call[ModifyInstanceBody], instance: Instance) -> None:
    """Change the columns that no server knows of."""
    body = call.body
    values: dict[str, Any] = {}
    if body.name is not None:
        values["name"] = body.name
    if body.description is not None:
        values["description"] = body.description
    if (protected := wants_protection(call)) is not None:
        values["protected"] = protected
    if (window := checked_window(body.maintain_begin, body.maintain_end)) is not None:
        values["maintain_begin"], values["maintain_end"] = window
    if body.security_group_id:
        check_security_group(tx, call.project_id, body.security_group_id)
        values["security_group_id"] = body.security_group_id
    if body.instance_backup_policy is not None:
        values["backup_policy"] = backup_policy(body.instance_backup_policy)
    if not values:
        return
    if instance.status not in AT_REST:
        raise busy(instance)
    instances.change(tx, instance.id, **values)


def _new_names(instance: Instance, body: ModifyInstanceBody) -> dict[str, str] | None:
    """The renamed commands asked for (a full replacement), if they differ from today's; None if they do not.

    Clients that rename nothing send `{}`, which names all commands as they were.
    """
    if body.rename_commands is None:
        return None
    asked = new_names(body.rename_commands)
    if (why := rename_fault(asked)) is not None:
        raise errors.Invalid(parameter="rename_commands", why=why)
    return None if asked == instance.rename_commands else asked


def _renamed(instance: Instance, asked: dict[str, str]) -> list[str]:
    """The commands that will be called otherwise than now."""
    now = instance.rename_commands
    return sorted(command for command in {*now, *asked} if now.get(command) != asked.get(command))
