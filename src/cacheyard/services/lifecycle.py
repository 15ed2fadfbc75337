"""Chapter 5.1, the making: create instances. Decides and records in one transaction; the task does it."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import now_ms
from cacheyard.contract.types import CreateInstanceBody, CreateInstanceResponse, Instances
from cacheyard.domain import engines, flavors, passwords, placement
from cacheyard.domain.instances import (
    BATCH_NAME,
    MAINTENANCE,
    PORT,
    Instance,
    maintenance_fault,
    node_settings,
    rename_fault,
)
from cacheyard.domain.network import zone_of
from cacheyard.domain.nodes import Node, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.ids import new_id
from cacheyard.services import tags, users, work
from cacheyard.services.call import Call
from cacheyard.store import hosts, instances, network, nodes

BUILT_MODES = ("single", "ha")


def create_instance(call: Call[CreateInstanceBody]) -> CreateInstanceResponse:
    """5.1.1: one instance, or `instance_num` of them named name-000, name-001, …"""
    body = call.body
    flavor = _flavor(body)
    names = _names(body)
    zones = _zones(call)
    draft = _draft(call, flavor, zones)
    labels = tags.checked(body.tags or [])
    house = call.house
    with house.store.write() as tx:
        plan = _Plan(tx, call, flavor, zones, count=len(names))
        made = [plan.make(draft | {"name": name}, labels) for name in names]
    for _, task_id in made:
        house.start_task(task_id)
    return CreateInstanceResponse(
        instances=[Instances(instance_id=instance.id, instance_name=instance.name) for instance, _ in made]
    )


class _Plan:
    """What all instances of one request share, looked up in its transaction."""

    def __init__(
        self,
        tx: Connection,
        call: Call[CreateInstanceBody],
        flavor: flavors.Flavor,
        zones: list[str],
        count: int,
    ) -> None:
        self.tx, self.call, self.flavor = tx, call, flavor
        _check_network(tx, call)
        _check_quota(tx, call, flavor, count)
        there = hosts.every(tx)
        engine = engines.choose(
            [engine for host in there for engine in host.engines], str(call.body.engine_version)
        )
        if engine is None:
            raise errors.BadVersion(why=f"no installed server can serve {call.body.engine_version}")
        self.engine = engine
        spots = placement.place(there, zones, flavor.nodes_per_shard)
        promised = sum(flavors.memory_of(code) for code, _ in instances.sizes(tx, None))
        fault = placement.memory_fault(
            there, promised, flavor.memory_mb * count, call.house.settings.overcommit
        )
        if spots is None or fault is not None:
            raise errors.ZoneSoldOut(why=fault or "a zone of az_codes has no host")
        self.spots = spots

    def make(self, draft: dict[str, Any], labels: list[Any]) -> tuple[Instance, str]:
        """Write one instance with its shard, nodes and addresses, and its task."""
        tx, subnet_id = self.tx, str(self.call.body.subnet_id)
        instance_id, task_id, shard_id, now = new_id(), new_id(), new_id(), now_ms()
        ip = network.take_address(tx, subnet_id, instance_id, self.call.body.private_ip or None)
        # A single node's own address is the one that clients use; else that one floats.
        ips = (
            [ip]
            if len(self.spots) == 1
            else [network.take_address(tx, subnet_id, instance_id) for _ in self.spots]
        )
        instance = Instance(
            **draft,
            id=instance_id,
            task_id=task_id,
            created_at=now,
            updated_at=now,
            internal_version=self.engine.version_text,
            ip=ip,
            internal_secret=self.call.house.sealer.seal(passwords.generate_password()),
        )
        instances.add(tx, instance)
        instances.add_shard(tx, id=shard_id, instance_id=instance_id, number=0, name="group-0")
        nodes.add(tx, [self._node(instance, shard_id, number, ips) for number in range(len(ips))])
        instances.set_tags(tx, instance_id, labels)
        work.write(tx, self.call.who, instance, Change.CREATE, task_id=task_id, name="create")
        return instance, task_id

    def _node(self, instance: Instance, shard_id: str, number: int, ips: list[str]) -> Node:
        role = Role.MASTER if number == 0 else Role.REPLICA
        settings = node_settings(instance, self.flavor, role=role, ip=ips[number], master_ip=ips[0])
        return Node(
            id=new_id(),
            instance_id=instance.id,
            shard_id=shard_id,
            host_id=self.spots[number].host_id,
            number=number,
            kind="redis",
            role=role,
            az_code=self.spots[number].az_code,
            ip=ips[number],
            port=instance.port,
            binary=self.engine.binary,
            run=Run.UP,
            incarnation=1,
            keep_data=False,
            generation=1,
            settings=settings,
        )


def _flavor(body: CreateInstanceBody) -> flavors.Flavor:
    if body.engine != "Redis":
        raise errors.NotBuilt(what=f"engine {body.engine}")
    if body.engine_version not in engines.SOLD:
        raise errors.BadVersion(why=f"it must be one of {', '.join(engines.SOLD)}")
    flavor = flavors.find(body.spec_code or "")
    if flavor is None:
        raise errors.BadFlavor(why=f"there is no flavor {body.spec_code}")
    if body.engine_version not in flavor.engine_versions:
        raise errors.BadVersion(why=f"{flavor.spec_code} is sold for {', '.join(flavor.engine_versions)}")
    if body.capacity is None or round(body.capacity * 1024) != flavor.capacity_mb:
        raise errors.BadCapacity(
            parameter="capacity",
            why=f"{flavor.spec_code} has {flavor.capacity_text} GB, not {body.capacity:g}",
        )
    if flavor.cache_mode not in BUILT_MODES:
        raise errors.NotBuilt(what=f"spec_code {flavor.spec_code} (instance type {flavor.cache_mode})")
    if flavor.cpu != flavors.local_cpu():
        raise errors.ZoneSoldOut(
            why=f"{flavor.spec_code} is for {flavor.cpu}, this machine is {flavors.local_cpu()}"
        )
    return flavor


def _zones(call: Call[CreateInstanceBody]) -> list[str]:
    """Codes of the zones asked for, in their order; clients send codes or ids."""
    zones = []
    for asked in call.body.az_codes or []:
        zone = zone_of(call.house.region, asked)
        if zone is None:
            raise errors.NoSuchZone(parameter="az_codes", zone=asked)
        zones.append(zone.code)
    if not zones:
        raise errors.Invalid(errors.NoSuchZone.code, parameter="az_codes", why="at least one is needed")
    return zones


def _names(body: CreateInstanceBody) -> list[str]:
    name, count = body.name or "", body.instance_num or 1
    if count == 1:
        return [name]
    if len(name) > BATCH_NAME:
        raise errors.BadName(why=f"name may have {BATCH_NAME} characters when instance_num is over 1")
    return [f"{name}-{number:03d}" for number in range(count)]


def _draft(call: Call[CreateInstanceBody], flavor: flavors.Flavor, zones: list[str]) -> dict[str, Any]:
    """The columns that need no look into the store."""
    body = call.body
    begin, end = checked_window(body.maintain_begin, body.maintain_end) or MAINTENANCE
    if (why := rename_fault(body.rename_commands or {})) is not None:
        raise errors.Invalid(parameter="rename_commands", why=why)
    if body.access_user:
        raise errors.AccessUserUnwanted
    if body.template_id:
        raise errors.Invalid(parameter="template_id", why=f"there is no template {body.template_id}")
    if body.bss_param is not None and body.bss_param.charging_mode not in (None, "", "postPaid"):
        raise errors.Invalid(parameter="bss_param.charging_mode", why="only postPaid is offered")
    for switch in ("enable_publicip", "enable_ssl"):
        if getattr(body, switch):
            raise errors.NotBuilt(what=f"{switch} at creation")
    secrets = users.new_password(body.password, free=bool(body.no_password_access), parameter="password")
    return {
        "project_id": call.project_id,
        "description": body.description or "",
        "status": Status.CREATING,
        "engine": "Redis",
        "engine_version": str(body.engine_version),
        "cache_mode": flavor.cache_mode,
        "spec_code": flavor.spec_code,
        "capacity_mb": flavor.capacity_mb,
        "port": body.port or PORT,
        "vpc_id": str(body.vpc_id),
        "subnet_id": str(body.subnet_id),
        "security_group_id": body.security_group_id or None,
        "az_codes": zones,
        "maintain_begin": begin,
        "maintain_end": end,
        "backup_policy": backup_policy(body.instance_backup_policy),
        "rename_commands": dict(body.rename_commands or {}),
        "template_id": None,
        "enterprise_project_id": body.enterprise_project_id or "0",
        "wrong_passwords": 0,
        "locked_until": None,
        "user_id": call.who.user_id,
        "user_name": call.who.user_name,
        "launched_at": None,
    } | secrets


def checked_window(begin: str | None, end: str | None) -> tuple[str, str] | None:
    """A maintenance window of a request as HH:mm:ss; None when it has none."""
    if not begin and not end:
        return None
    if not begin or not end:
        raise errors.BadWindow(parameter="maintain_begin, maintain_end", why="both must be given, or neither")
    if (why := maintenance_fault(begin, end)) is not None:
        raise errors.BadWindow(parameter="maintain_begin, maintain_end", why=why)
    return f"{begin[:5]}:00", f"{end[:5]}:00"


def backup_policy(given: Any) -> dict[str, Any] | None:
    """A policy as it is kept and shown; a manual one is none (clients send it for every type)."""
    if given is None or given.backup_type in (None, "", "manual"):
        return None
    return dict(msgspec.to_builtins(given))


def _check_network(tx: Connection, call: Call[CreateInstanceBody]) -> None:
    body, project_id = call.body, call.project_id
    if (network.get_vpc(tx, project_id, str(body.vpc_id))) is None:
        raise errors.NoSuchVpc(vpc_id=body.vpc_id)
    subnet = network.get_subnet(tx, project_id, str(body.subnet_id))
    if subnet is None:
        raise errors.NoSuchSubnet(why=f"there is no subnet {body.subnet_id}")
    if subnet.vpc_id != body.vpc_id:
        raise errors.SubnetNotInVpc
    check_security_group(tx, project_id, body.security_group_id)


def check_security_group(tx: Connection, project_id: str, group_id: str | None) -> None:
    """Refuse a security group that the project does not have. (Redis does not use it: it is a label.)"""
    if group_id and network.get_security_group(tx, project_id, group_id) is None:
        raise errors.NoSuchSecurityGroup(security_group_id=group_id)


def _check_quota(tx: Connection, call: Call[CreateInstanceBody], flavor: flavors.Flavor, count: int) -> None:
    settings = call.house.settings
    sizes = instances.sizes(tx, call.project_id)
    if len(sizes) + count > settings.instance_quota:
        raise errors.QuotaUsedUp(why=f"{len(sizes)} of {settings.instance_quota} instances are there already")
    used = sum(mb for _, mb in sizes)
    if used + flavor.capacity_mb * count > settings.memory_quota * 1024:
        raise errors.MemoryQuotaUsedUp(why=f"{used / 1024:g} of {settings.memory_quota} GB are used already")
