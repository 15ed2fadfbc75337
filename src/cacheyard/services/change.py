"""Chapter 5.1, the changing and unmaking: update, resize, delete."""

from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    BatchDeleteBody,
    BatchDeleteInstancesResponse,
    BatchOpsResult,
    ModifyInstanceBody,
    ResizeInstanceBody,
)
from cacheyard.domain import flavors, placement
from cacheyard.domain.instances import BATCH, FILLED, Instance, rename_fault
from cacheyard.domain.statuses import AT_REST, Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, busy
from cacheyard.services.lifecycle import backup_policy, check_security_group, checked_window
from cacheyard.store import hosts, instances, nodes


def update_instance(call: Call[ModifyInstanceBody]) -> Begun[None] | None:
    """5.1.6: what is only a record changes at once; a new port or new command names are a task.

    Clients send everything at once, changed or not: what is unchanged costs no restart.
    """
    body = call.body
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        renamed = _new_names(instance, body)
        moved = body.port if body.port not in (None, instance.port) else None
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
            else {"rename_commands": sorted(renamed or {})},
        )
        instances.change(
            tx,
            instance.id,
            port=moved if moved is not None else instance.port,
            rename_commands=renamed if renamed is not None else instance.rename_commands,
        )
    call.house.start_task(task_id)
    return Begun(None, task_id)


def resize_instance(call: Call[ResizeInstanceBody]) -> Begun[None]:
    """5.1.7: another capacity. Live: the servers run on with a new memory limit."""
    body = call.body
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        old, new = _resize_flavors(call, instance)
        _check_room(tx, call, instance, old, new)
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.RESIZE,
            name="EXTEND",
            status=Status.EXTENDING,
            arguments={"spec_code": new.spec_code, "old_spec_code": instance.spec_code},
            details={
                "old_capacity": old.capacity_text,
                "new_capacity": new.capacity_text,
                "old_resource_spec_code": instance.spec_code,
                "new_resource_spec_code": body.spec_code,
                "old_cache_mode": old.cache_mode,
                "new_cache_mode": new.cache_mode,
                "old_replica_num": old.nodes_per_shard,
                "new_replica_num": new.nodes_per_shard,
            },
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
    return work.begin(
        tx, call.who, instance, Change.DELETE, name="delete", status=Status.DELETING, among=AT_REST
    )


def _record(tx: Connection, call: Call[ModifyInstanceBody], instance: Instance) -> None:
    """Change the columns that no server knows of."""
    body = call.body
    values: dict[str, Any] = {}
    if body.name is not None:
        values["name"] = body.name
    if body.description is not None:
        values["description"] = body.description
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

    `{}` is what clients send when nothing is renamed; renaming a command to itself undoes a renaming.
    """
    if not body.rename_commands:
        return None
    asked = {command: new for command, new in body.rename_commands.items() if new.lower() != command}
    if (why := rename_fault(asked)) is not None:
        raise errors.Invalid(parameter="rename_commands", why=why)
    return None if asked == instance.rename_commands else asked


def _resize_flavors(
    call: Call[ResizeInstanceBody], instance: Instance
) -> tuple[flavors.Flavor, flavors.Flavor]:
    body = call.body
    old, new = flavors.find(instance.spec_code), flavors.find(body.spec_code or "")
    if new is None or old is None:
        raise errors.BadFlavor(why=f"there is no flavor {body.spec_code}")
    if body.new_capacity is None or round(body.new_capacity * 1024) != new.capacity_mb:
        raise errors.BadCapacity(
            parameter="new_capacity",
            why=f"{new.spec_code} has {new.capacity_text} GB, not {body.new_capacity:g}",
        )
    if new.cpu != old.cpu:
        raise errors.CannotResize(
            parameter="spec_code", why=f"it runs on {old.cpu}, {new.spec_code} is for {new.cpu}"
        )
    if new.cache_mode != old.cache_mode:
        raise errors.NotBuilt(what=f"a resize from {old.cache_mode} to {new.cache_mode} (spec_code)")
    if new.nodes_per_shard != old.nodes_per_shard:
        if new.capacity_mb != old.capacity_mb:
            raise errors.CannotResize(
                parameter="spec_code", why="replicas and capacity change in separate requests"
            )
        raise errors.NotBuilt(what="a resize to another number of replicas (spec_code)")
    if new.capacity_mb == old.capacity_mb:
        raise errors.CannotResize(parameter="spec_code", why="the instance has this flavor already")
    if body.change_type:
        raise errors.CannotResize(
            parameter="change_type", why="it is left out when only the capacity changes"
        )
    if body.execute_immediately is False:
        raise errors.NotBuilt(what="execute_immediately=false, a resize in the maintenance window")
    return old, new


def _check_room(
    tx: Connection, call: Call[Any], instance: Instance, old: flavors.Flavor, new: flavors.Flavor
) -> None:
    said = [master.figures for master in nodes.masters_of(tx, [instance.id])]
    used_mb = max((figures.used_memory for figures in said if figures is not None), default=0) >> 20
    if used_mb >= FILLED * new.shard_mb:
        raise errors.BadCapacity(
            parameter="new_capacity",
            why=f"{used_mb} MB are used, more than {FILLED:.0%} of {new.shard_mb} MB",
        )
    more = new.memory_mb - old.memory_mb
    if more <= 0:
        return
    settings = call.house.settings
    used = sum(mb for _, mb in instances.sizes(tx, instance.project_id))
    if used + new.capacity_mb - old.capacity_mb > settings.memory_quota * 1024:
        raise errors.MemoryQuotaUsedUp(why=f"{used / 1024:g} of {settings.memory_quota} GB are used already")
    promised = sum(flavors.memory_of(code) for code, _ in instances.sizes(tx, None))
    fault = placement.memory_fault(hosts.every(tx), promised, more, settings.overcommit)
    if fault is not None:
        raise errors.ZoneSoldOut(why=fault)
