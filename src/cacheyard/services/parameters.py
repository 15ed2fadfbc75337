"""Chapters 5.4 and 5.2.1: the parameters of an instance, their changes, and the records of those.

A change is written at once, row and record, and a task brings it to servers and proxies. Only what may change
while there are no keys is written by the task, once it has looked.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import iso, now_ms
from cacheyard.contract.types import (
    ConfigChange,
    HistoryInfo,
    ListConfigHistoriesResponse,
    ListConfigurationsResponse,
    ModifyRedisConfigBody,
    QueryRedisConfig,
    RedisConfig,
    ShowConfigHistoryDetailResponse,
    UpdateInstanceConfigResponse,
)
from cacheyard.domain import flavors
from cacheyard.domain.histories import Changed, ConfigStatus, History
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Role
from cacheyard.domain.parameters import Parameter, absence, catalog, find, values
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.ids import new_id
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, NoContent
from cacheyard.store import histories, instances, nodes

PAGE = 10
_TYPE = "config_param"  # of a record: the only one that clients know
_WHEN_EMPTY = frozenset(("multi-db",))


def list_configurations(call: Call[None]) -> ListConfigurationsResponse:
    """5.4.1: every parameter that such an instance has, with its value. The state is that of the last change;
    while a server has something else than it should, it is that too."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        last = next(iter(histories.page(tx, instance.id, 0, 1)), None)
        drift = nodes.drift_of(tx, instance.id)
    now = _values(instance)
    status = last.status if last is not None else ConfigStatus.SUCCESS
    if status is ConfigStatus.SUCCESS and drift:
        status = ConfigStatus.FAILURE
    changed_at = (last.ended_at or last.created_at) if last is not None else instance.created_at
    return ListConfigurationsResponse(
        instance_id=instance.id,
        config_time=iso(changed_at),
        config_status=status,
        status=instance.status,
        redis_config=[
            QueryRedisConfig(
                param_id=one.id,
                param_name=one.name,
                description=one.description,
                param_value=now[one.name],
                default_value=one.default,
                value_type=one.type,
                value_range=one.value_range,
                need_restart=one.need_restart,
            )
            for one in _catalog(instance)
        ],
    )


def update_configurations(call: Call[ModifyRedisConfigBody | None]) -> Begun[None] | None:
    """5.4.2: the request waits until all servers have the new values."""
    task_id = _change(call, again=False)
    return Begun(None, task_id, wait=True) if task_id is not None else None


def update_instance_config(
    call: Call[ModifyRedisConfigBody | None],
) -> Begun[UpdateInstanceConfigResponse] | NoContent:
    """5.4.3: the same as a job. Values that are in force already get one too, which sees to it that they are:
    Terraform sends them, and cannot do without a job. Without a parameter there is none."""
    task_id = _change(call, again=True)
    if task_id is None:
        return NoContent()
    return Begun(UpdateInstanceConfigResponse(job_id=task_id), task_id)


def list_config_histories(call: Call[None]) -> ListConfigHistoriesResponse:
    """5.4.4: the changes, newest first."""
    given = call.parameters
    limit = given.get("limit")
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        found = histories.page(tx, instance.id, given.get("offset") or 0, PAGE if limit is None else limit)
        total = histories.count(tx, instance.id)
    return ListConfigHistoriesResponse(
        history_num=total,
        histories=[
            HistoryInfo(history_id=one.id, type=_TYPE, created_at=iso(one.created_at), status=one.status)
            for one in found
        ],
    )


def show_config_history_detail(call: Call[None]) -> ShowConfigHistoryDetailResponse:
    """5.2.1: one of them, with what was changed."""
    history_id = str(call.parameters["history_id"])
    with call.house.store.read() as tx:
        found = histories.get(tx, call.instance(tx).id, history_id)
    if found is None:
        raise errors.NoSuchHistory(history_id=history_id)
    return ShowConfigHistoryDetailResponse(
        history_id=found.id,
        type=_TYPE,
        created_at=iso(found.created_at),
        status=found.status,
        redis_config=[
            ConfigChange(param_id=one.id, param_name=one.name, old_value=one.old, new_value=one.new)
            for one in found.changes
        ],
    )


def _change(call: Call[ModifyRedisConfigBody | None], *, again: bool) -> str | None:
    """Write the change and its task, whose id is answered; None: there is nothing to do. `again`: values that
    are in force already are something to do too."""
    asked = (call.body.redis_config if call.body is not None else None) or []
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        changes = _changes(instance, asked)
        if not changes and not (asked and again):
            return None
        _check_memory(tx, instance, changes)
        chosen = instance.parameters | {one.name: one.new for one in changes}
        later = any(one.name in _WHEN_EMPTY for one in changes)
        if later:
            _check_empty(tx, instance)
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.SET_PARAMETERS,
            name="modifyConfig",
            status=Status.RUNNING,
            arguments={"undo": instance.parameters, "when_empty": chosen if later else None},
            details={"updated_config_length": len(changes)},
        )
        if changes:
            histories.add(
                tx,
                History(
                    id=new_id(),
                    instance_id=instance.id,
                    task_id=task_id,
                    status=ConfigStatus.UPDATING,
                    created_at=now_ms(),
                    changes=changes,
                ),
            )
            if not later:
                instances.change(tx, instance.id, parameters=chosen)
    call.house.start_task(task_id)
    return task_id


def _changes(instance: Instance, asked: list[RedisConfig]) -> list[Changed]:
    """What of what is asked for is not so yet. Refuses what cannot be."""
    now, found = _values(instance), {}
    for number, one in enumerate(asked):
        where = f"redis_config[{number}]"
        parameter = _parameter(instance, one, where)
        if parameter.name in found:
            raise errors.Invalid(parameter=f"{where}.param_name", why=f"{parameter.name} is there twice")
        value = one.param_value or ""
        if (why := parameter.fault(value)) is not None:
            raise errors.BadParameterValue(name=parameter.name, why=f"{why}, and {value!r} is not")
        found[parameter.name] = Changed(
            parameter.id, parameter.name, now[parameter.name], parameter.kept(value)
        )
    return [one for one in found.values() if one.new != one.old]


def _parameter(instance: Instance, asked: RedisConfig, where: str) -> Parameter:
    name, version, mode = asked.param_name or "", instance.engine_version, instance.cache_mode
    found = find(name, version, mode, _flavor(instance))
    if found is None:
        raise errors.Invalid(parameter=f"{where}.param_name", why=f"{name!r}: {absence(name, version, mode)}")
    if asked.param_id != found.id:
        raise errors.Invalid(parameter=f"{where}.param_id", why=f"that of {name} is {found.id}")
    return found


def _check_memory(tx: Connection, instance: Instance, changes: list[Changed]) -> None:
    """What is reserved must be free. (How much is, is known to the second.)"""
    reserved = next((int(one.new) << 20 for one in changes if one.name == "reserved-memory"), 0)
    used = max((one.used_memory for one in nodes.figures_of(tx, instance.id).values()), default=0)
    free = (instance.capacity_mb << 20) - used
    if reserved > free:
        raise errors.ReservedTooMuch(free=free >> 20)


def _check_empty(tx: Connection, instance: Instance) -> None:
    """Refuse at once what the task would refuse: what is known of keys is some seconds old."""
    said = nodes.figures_of(tx, instance.id).values()
    if any(one.keys for one in said if one.role is Role.MASTER):
        raise errors.BadParameterValue(name="multi-db", why="it can be changed when there are no keys")


def _flavor(instance: Instance) -> flavors.Flavor:
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance was made
    return flavor


def _catalog(instance: Instance) -> tuple[Parameter, ...]:
    return catalog(instance.engine_version, instance.cache_mode, _flavor(instance))


def _values(instance: Instance) -> Mapping[str, str]:
    return values(instance.parameters, instance.engine_version, _flavor(instance))
