"""Chapter 5.2.12, and minor versions: what could be done to an instance now."""

from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    ListInstanceOperationsResponse,
    Operations,
    ShowInstanceVersionResponse,
)
from cacheyard.domain import engines, flavors
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import Status
from cacheyard.services.call import Call, busy
from cacheyard.services.proxies import versions
from cacheyard.services.room import check_room
from cacheyard.services.scheduled import check_none
from cacheyard.store import hosts


def list_instance_operations(call: Call[None]) -> ListInstanceOperationsResponse:
    """5.2.12: whether the instance can grow (`extend`). If not, the reason is the code with which a resize
    would be refused."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        cause = _why_no_growth(tx, call, instance)
    return ListInstanceOperationsResponse(
        instance_id=instance.id,
        operations=[
            Operations(operation=call.parameters["operation"], is_support=cause is None, cause_id=cause)
        ],
    )


def show_instance_version(call: Call[None]) -> ShowInstanceVersionResponse:
    """[newer] The version of the server that runs, and the newest patch of it that is installed. The same of
    proxies, of which the installed program is the newest: if several versions run, the oldest is shown."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        found = [engine for host in hosts.every(tx) for engine in host.engines]
        before = versions(tx, instance)
    newer = engines.newer_patch(found, instance.internal_version)
    return ShowInstanceVersionResponse(
        engine_minor_version=instance.internal_version,
        latest_engine_minor_version=newer.version_text if newer else instance.internal_version,
        engine_minor_version_upgradable=newer is not None,
        proxy_minor_version=before.running,
        latest_proxy_minor_version=before.installed if before.old else before.running,
        proxy_minor_version_upgradable=bool(before.old),
    )


def _why_no_growth(tx: Connection, call: Call[Any], instance: Instance) -> str | None:
    try:
        if instance.task_id is not None or instance.status is not Status.RUNNING:
            raise busy(instance)
        check_none(tx, instance)
        now = flavors.find(instance.spec_code)
        bigger = _next_size(now) if now is not None else None
        if now is None or bigger is None:
            raise errors.CannotResize(parameter="operation", why="there is no larger flavor")
        check_room(tx, call, now, bigger)
    except errors.Refused as refused:
        return refused.code
    return None


def _next_size(now: Flavor) -> Flavor | None:
    """The next larger flavor of the same type and number of replicas; with as many shards if there is one."""
    larger = [
        one
        for one in flavors.flavors().values()
        if (one.cache_mode, one.cpu, one.nodes_per_shard) == (now.cache_mode, now.cpu, now.nodes_per_shard)
        and one.capacity_mb > now.capacity_mb
    ]
    return min(larger, key=lambda one: (one.capacity_mb, one.shards != now.shards), default=None)
