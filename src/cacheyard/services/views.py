"""Chapters 5.1.2, 5.1.4, 5.2.5 and 5.2.7: instances as the API shows them, and what their servers say."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import iso, now_ms
from cacheyard.contract.types import (
    BackupPolicyShowInstance,
    Features,
    InstanceBackupPolicy,
    InstanceListInfo,
    InstanceStatistic,
    ListInstancesResponse,
    ListNumberOfInstancesInDifferentStatusResponse,
    ListStatisticsOfRunningInstancesResponse,
    ResourceTagListInstances,
    ShowInstanceResponse,
    ShowRenameCommandsResponse,
    StatusStatistic,
)
from cacheyard.domain import flavors
from cacheyard.domain.instances import TAGS, Instance, Tag, clustered, proxied
from cacheyard.domain.network import zone_of
from cacheyard.domain.nodes import Address, Figures, NodeState
from cacheyard.domain.proxies import Proxy, ProxyFigures
from cacheyard.domain.statuses import Status
from cacheyard.services import bandwidth, client_ip, encryption, enterprise, public
from cacheyard.services.call import Call
from cacheyard.services.names import about_names, names_of
from cacheyard.store import instances, network, nodes, proxies

PAGE = 10  # instances a list has when no limit is given
DOWN_AFTER = 10_000  # ms that a master, or all proxies, may be away before the instance is shown as faulty
_COUNTED = tuple(name.removesuffix("_count") for name in StatusStatistic.__struct_fields__)


def show_instance(call: Call[None]) -> ShowInstanceResponse:
    """5.1.4: one instance, with its subnet and bandwidth."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        seen = _look(tx, [instance])
        subnet = network.subnet_by_id(tx, instance.subnet_id)
        group_id = instance.security_group_id
        group = network.get_security_group(tx, instance.project_id, group_id) if group_id else None
        enterprise_name = enterprise.name_of(tx, instance.enterprise_project_id)
        flavor = flavors.find(instance.spec_code)
        shown_bandwidth = bandwidth.info(tx, call.house, instance, flavor) if flavor else None
    region = call.house.region
    fields = _common(call, instance, seen) | {
        "available_zones": [zone.id for code in instance.az_codes if (zone := zone_of(region, code))],
        "subnet_name": subnet.name if subnet else None,
        "subnet_cidr": subnet.cidr if subnet else None,
        "security_group_name": group.name if group else None,
        "instance_backup_policy": _backup_policy(instance),
        "domain_name_info": about_names(call.house),
        "publicip_info": public.info(instance),
        "transparent_client_ip_enable": client_ip.passes(instance),
        "sub_status": "normal",
        "enterprise_project_name": enterprise_name,
        "update_at": iso(instance.updated_at),
        "product_type": "generic",
        "storage_type": "DRAM",
        "launched_at": iso(instance.launched_at),
        "cache_mode": instance.cache_mode,
        "db_number": flavor.databases if flavor else None,
        "replica_count": flavor.nodes_per_shard if flavor else None,
        "sharding_count": flavor.shards if flavor else None,
        "bandwidth_info": shown_bandwidth,
        "cloud_service_type_code": "hws.service.type.dcs",
        "cloud_resource_type_code": "hws.resource.type.dcs3",
        "inquery_spec_code": instance.spec_code,
        "resource_spec_code": instance.spec_code,
        "internal_version": instance.internal_version,
        "task": instance.task_id,
    }
    return ShowInstanceResponse(**fields)


def show_rename_commands(call: Call[None]) -> ShowRenameCommandsResponse:
    """[newer] Which commands have another name. The new names are for those who gave them."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
    return ShowRenameCommandsResponse(rename_commands=sorted(instance.rename_commands))


def list_instances(call: Call[None]) -> ListInstancesResponse:
    """5.1.2: the project's instances that fit the filters, newest first, a page of them."""
    given = call.parameters
    wanted = _wanted(given)
    with call.house.store.read() as tx:
        total = instances.count(tx, call.project_id, wanted)
        page = instances.find(
            tx,
            call.project_id,
            wanted,
            offset=given.get("offset") or 0,
            limit=given.get("limit") or PAGE,
            after=given.get("marker"),  # version 1 alone has it
        )
        seen = _look(tx, page)
    return ListInstancesResponse(
        instance_num=total, instances=[InstanceListInfo(**_common(call, instance, seen)) for instance in page]
    )


def list_number_of_instances_in_different_status(
    call: Call[None],
) -> ListNumberOfInstancesInDifferentStatusResponse:
    """5.2.5: how many instances are in each state."""
    with call.house.store.read() as tx:
        found = instances.count_by_status(tx, call.project_id)
    with_failed = _is_true(call.parameters.get("include_failure"))
    if not with_failed:
        found.pop(Status.CREATEFAILED, None)
    counts = {f"{name}_count": found.get(name.upper(), 0) for name in _COUNTED}
    nothing = dict.fromkeys(counts, 0)
    return ListNumberOfInstancesInDifferentStatusResponse(
        redis=StatusStatistic(**counts), memcached=StatusStatistic(**nothing), **counts
    )


def list_statistics_of_running_instances(call: Call[None]) -> ListStatisticsOfRunningInstancesResponse:
    """5.2.7: figures of all running instances, at most `settings.observe_seconds` old."""
    with call.house.store.read() as tx:
        running = instances.find(tx, call.project_id, instances.Wanted(statuses=[Status.RUNNING]))
        masters = _figures(nodes.masters_of(tx, [instance.id for instance in running]))
        behind = [instance.id for instance in running if proxied(instance)]
        servers, before = nodes.figures_of_all(tx, behind), proxies.figures_of_all(tx, behind)
    statistics = []
    for instance in running:
        mine = masters.get(instance.id, [])
        if proxied(instance):
            shown = _proxied_statistic(instance, mine, servers[instance.id], before[instance.id])
        else:
            shown = _statistic(instance, mine)
        statistics.append(shown)
    return ListStatisticsOfRunningInstancesResponse(statistics=statistics)


class _Seen(msgspec.Struct, frozen=True):
    """What else is known of some instances, by instance id."""

    tags: Mapping[str, list[Tag]]
    figures: Mapping[str, list[Figures]]  # of the masters
    faulty: frozenset[str]
    vpc_names: Mapping[str, str]
    addresses: Mapping[str, list[Address]]  # of the nodes of Redis Clusters; elsewhere there is one for all


def _look(tx: Connection, found: Sequence[Instance]) -> _Seen:
    ids = [instance.id for instance in found]
    masters = nodes.masters_of(tx, ids)
    faulty = _faulty(tx, found, masters)
    names = network.vpc_names(tx, list({instance.vpc_id for instance in found}))
    clusters = [instance.id for instance in found if clustered(instance) and not proxied(instance)]
    several = nodes.addresses_of(tx, clusters) if clusters else {}
    return _Seen(instances.tags_of(tx, ids), _figures(masters), faulty, names, several)


def _figures(masters: Sequence[nodes.Master]) -> dict[str, list[Figures]]:
    """What they said, by instance id."""
    found: dict[str, list[Figures]] = {}
    for master in masters:
        if master.figures is not None:
            found.setdefault(master.instance_id, []).append(master.figures)
    return found


def _common(call: Call[None], instance: Instance, seen: _Seen) -> dict[str, Any]:
    """What lists and single answers have in common."""
    whole, part = divmod(instance.capacity_mb, 1024)
    used = sum(figures.used_memory for figures in seen.figures.get(instance.id, []))
    several = seen.addresses.get(instance.id, [])
    return {
        "instance_id": instance.id,
        "name": instance.name,
        "description": instance.description,
        "status": shown_status(instance, faulty=instance.id in seen.faulty),
        "engine": instance.engine,
        "engine_version": instance.engine_version,
        "charging_mode": 0,
        "capacity": whole,
        "capacity_minor": f"{part / 1024:g}".lstrip("0") if part else None,
        "max_memory": instance.capacity_mb,
        "used_memory": used >> 20,
        "spec_code": instance.spec_code,
        "cpu_type": flavor.cpu if (flavor := flavors.find(instance.spec_code)) else None,
        "ip": ",".join(one.ip for one in several) or instance.ip,
        "backend_addrs": ",".join(f"{one.ip}:{one.port}" for one in several) or None,
        **names_of(call.house, instance),
        "port": instance.port,
        "vpc_id": instance.vpc_id,
        "vpc_name": seen.vpc_names.get(instance.vpc_id),
        "subnet_id": instance.subnet_id,
        "security_group_id": instance.security_group_id,
        "az_codes": instance.az_codes,
        "no_password_access": "true" if instance.no_password else "false",
        "access_user": None,
        **public.shown(instance),
        "enable_ssl": instance.ssl,
        "service_upgrade": False,
        "deletion_protection": instance.protected,
        "maintain_begin": instance.maintain_begin,
        "maintain_end": instance.maintain_end,
        "enterprise_project_id": instance.enterprise_project_id,
        "user_id": instance.user_id,
        "user_name": instance.user_name,
        "created_at": iso(instance.created_at),
        "features": Features(
            support_acl=True,
            support_transparent_client_ip=client_ip.can_hide(instance),
            support_ssl=encryption.sold(instance.engine_version),
            support_audit_log=False,
        ),
        "tags": [
            ResourceTagListInstances(key=tag.key, value=tag.value) for tag in seen.tags.get(instance.id, [])
        ],
    }


def statuses_of(tx: Connection, found: Sequence[Instance]) -> dict[str, Status]:
    """The statuses of instances as clients know them, by id."""
    faulty = _faulty(tx, found, nodes.masters_of(tx, [instance.id for instance in found]))
    return {instance.id: shown_status(instance, faulty=instance.id in faulty) for instance in found}


def _faulty(tx: Connection, found: Sequence[Instance], masters: Sequence[nodes.Master]) -> frozenset[str]:
    """The instances that have a master which has been away for long, or whose proxies all have been."""
    late = now_ms() - DOWN_AFTER
    headless = {
        master.instance_id for master in masters if master.state is NodeState.INACTIVE and master.since < late
    }
    before: dict[str, list[Proxy]] = {}
    if behind := [instance.id for instance in found if proxied(instance)]:
        for proxy in proxies.of_instances(tx, behind):
            before.setdefault(proxy.instance_id, []).append(proxy)
    unreachable = {
        instance_id
        for instance_id, all_of_them in before.items()
        if all(one.seen_state is NodeState.INACTIVE and one.seen_since < late for one in all_of_them)
    }
    return frozenset(headless | unreachable)


def shown_status(instance: Instance, *, faulty: bool = False) -> Status:
    """As clients know it: v2 clients have no DELETING, and one that stays out of reach is an ERROR."""
    if instance.status is Status.DELETING:
        return Status.RUNNING
    if faulty and instance.status is Status.RUNNING:
        return Status.ERROR
    return instance.status


def _wanted(given: Mapping[str, Any]) -> instances.Wanted:
    status = given.get("status")
    statuses = (
        None if status is None else [name for name in Status if name.value in status.upper().split(",")]
    )
    if statuses is not None and Status.RUNNING in statuses:
        statuses.append(Status.DELETING)
    hidden = () if _is_true(given.get("include_failure")) or status is not None else (Status.CREATEFAILED,)
    return instances.Wanted(
        ids=[given["instance_id"]] if given.get("instance_id") else None,
        name=given.get("name"),
        name_is_exact=_is_true(given.get("name_equal")),
        statuses=statuses,
        without=hidden,
        ip=given.get("ip"),
        capacity_mb=_capacity_mb(given.get("capacity")),
        tags=_tags(given.get("tags")),
    )


def _capacity_mb(text: str | None) -> int | None:
    """`0.125` in MB; what is no number fits nothing."""
    if text is None:
        return None
    try:
        asked = round(float(text) * 1024)
    except (ValueError, OverflowError):
        return -1
    return asked if 0 < asked < 1 << 62 else -1  # more than the store can compare


def _tags(text: str | None) -> list[tuple[str, str | None]]:
    """`key=value,key` as pairs; a key alone fits any value."""
    if not text:
        return []
    parts = [part.partition("=") for part in dict.fromkeys(text.split(","))]
    if len(parts) > TAGS:
        raise errors.Invalid(parameter="tags", why=f"an instance may have {TAGS}")
    return [(key, value if equals else None) for key, equals, value in parts]


def _is_true(value: Any) -> bool:
    return str(value).lower() == "true"


def _backup_policy(instance: Instance) -> InstanceBackupPolicy | None:
    if instance.backup_policy is None:
        return None
    return InstanceBackupPolicy(
        backup_policy_id=instance.id,
        created_at=iso(instance.created_at),
        updated_at=iso(instance.updated_at),
        policy=msgspec.convert(instance.backup_policy, BackupPolicyShowInstance),
        tenant_id=instance.project_id,
    )


def _statistic(instance: Instance, masters: Sequence[Figures]) -> InstanceStatistic:
    return InstanceStatistic(
        instance_id=instance.id,
        keys=sum(figures.keys for figures in masters),
        used_memory=sum(figures.used_memory for figures in masters) >> 20,
        max_memory=instance.capacity_mb,
        cmd_get_count=sum(figures.gets for figures in masters),
        cmd_set_count=sum(figures.sets for figures in masters),
        **_load(masters, masters),
    )


def _proxied_statistic(
    instance: Instance,
    masters: Sequence[Figures],
    servers: Sequence[Figures],
    before: Sequence[ProxyFigures],
) -> InstanceStatistic:
    """Clients send to proxies, which read from replicas too."""
    return msgspec.structs.replace(
        _statistic(instance, masters),
        cmd_get_count=sum(figures.gets for figures in servers),
        **_load(before, [*servers, *before]),
    )


def _load(net: Sequence[Figures | ProxyFigures], cpu: Sequence[Figures | ProxyFigures]) -> dict[str, str]:
    return {
        "input_kbps": f"{sum(figures.input_kbps for figures in net):.2f}",
        "output_kbps": f"{sum(figures.output_kbps for figures in net):.2f}",
        "used_cpu": f"{sum(figures.cpu_seconds for figures in cpu):.2f}",
    }
