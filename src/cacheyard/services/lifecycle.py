"""Chapter 5.1, the making: create instances. Decides and records in one transaction; the task does it."""

from contextlib import nullcontext
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
    floats,
    maintenance_fault,
    new_names,
    new_node,
    port_fault,
    proxied,
    rename_fault,
)
from cacheyard.domain.network import zone_of
from cacheyard.domain.nodes import Node, Role, Shard
from cacheyard.domain.placement import Spot
from cacheyard.domain.proxies import new_proxies
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.ids import new_id
from cacheyard.services import encryption, enterprise, tags, templates, users, work
from cacheyard.services.call import Call
from cacheyard.services.room import check_memory
from cacheyard.store import hosts, instances, network, nodes, proxies, shards
from cacheyard.store.db import taken_back


def create_instance(call: Call[CreateInstanceBody]) -> CreateInstanceResponse:
    """5.1.1: one instance, or `instance_num` of them named name-000, name-001, …"""
    body = call.body
    flavor = _flavor(body)
    names = _names(body)
    zones = _zones(call)
    draft = _draft(call, flavor, zones)
    labels = tags.checked(body.tags or [])
    house = call.house
    with house.store.write() as tx, taken_back(tx) if call.dry_run else nullcontext():
        plan = _Plan(tx, call, flavor, zones, count=len(names))
        made = [plan.make(draft | {"name": name}, labels) for name in names]
        if call.dry_run:
            return plan.tried(made)
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
        enterprise.chosen(tx, call.body.enterprise_project_id)
        _check_quota(tx, call, flavor, count)
        self.chosen = templates.chosen(tx, call, flavor)
        there = hosts.every(tx)
        found = [engine for host in there for engine in host.engines]
        if call.body.enable_ssl and not flavor.proxies:
            found = encryption.able(found)
        engine = engines.choose(found, str(call.body.engine_version))
        if engine is None and call.body.enable_ssl:
            raise errors.NoSsl(why="no installed server can speak TLS")
        if engine is None:
            raise errors.BadVersion(why=f"no installed server can serve {call.body.engine_version}")
        self.engine = engine
        spots = placement.place(there, zones, flavor.shards, flavor.nodes_per_shard)
        if spots is None:
            raise errors.ZoneSoldOut(why="a zone of az_codes has no host")
        check_memory(tx, call, flavor.memory_mb * count)
        self.spots = spots
        self.hosts = there
        places = {spot.host_id for shard in spots for spot in shard}
        if flavor.proxies and any(host.proxy is None for host in there if host.id in places):
            raise errors.ZoneSoldOut(
                why="the native proxy is not installed there; `cacheyard doctor` says how to get it"
            )

    def make(self, draft: dict[str, Any], labels: list[Any]) -> tuple[Instance, str]:
        """Write one instance with its shards, nodes and addresses, and its task."""
        tx, subnet_id = self.tx, str(self.call.body.subnet_id)
        instance_id, task_id, now = new_id(), new_id(), now_ms()

        def take(wanted: str | None = None) -> str:
            return network.take_address(tx, subnet_id, instance_id, wanted)

        ip = take(self.call.body.private_ip or None)
        instance = Instance(
            **draft,
            **self.chosen,
            id=instance_id,
            task_id=task_id,
            created_at=now,
            updated_at=now,
            internal_version=self.engine.version_text,
            ip=ip,
            internal_secret=self.call.house.sealer.seal(passwords.generate_password()),
        )
        instances.add(tx, instance)
        # Where no address floats and no proxy has it, the one that clients know is that of the first node.
        own = iter(() if floats(instance) or proxied(instance) else (ip,))
        ips = [[next(own, None) or take() for _ in spots] for spots in self.spots]
        for number, spots in enumerate(self.spots):
            shard = Shard(id=new_id(), instance_id=instance_id, number=number, name=f"group-{number}")
            shards.add(tx, [shard])
            nodes.add(tx, self._shard(instance, shard, spots, ips[number]))
        everywhere = [spot for spots in self.spots for spot in spots]
        proxies.add(tx, new_proxies(instance, self.flavor, self.hosts, everywhere))
        instances.set_tags(tx, instance_id, labels)
        work.write(tx, self.call.who, instance, Change.CREATE, task_id=task_id, name="create")
        return instance, task_id

    def tried(self, made: list[tuple[Instance, str]]) -> CreateInstanceResponse:
        """What this would have made. Ids and addresses are not promised: the next request may get them."""
        instance, task_id = made[0]
        told = work.tried(
            self.tx,
            task_id,
            spec_code=instance.spec_code,
            internal_version=instance.internal_version,
            nodes=self.flavor.nodes,
            zones=[spot.az_code for shard in self.spots for spot in shard],
            memory_mb=self.flavor.memory_mb * len(made),
        )
        names = [Instances(instance_name=instance.name) for instance, _ in made]
        return CreateInstanceResponse(instances=names, dry_run=told)

    def _shard(self, instance: Instance, shard: Shard, spots: list[Spot], ips: list[str]) -> list[Node]:
        return [
            new_node(
                instance,
                self.flavor,
                shard_id=shard.id,
                number=number,
                role=Role.MASTER if number == 0 else Role.REPLICA,
                ip=ips[number],
                master_ip=ips[0],
                spot=spot,
                binary=self.engine.binary,
            )
            for number, spot in enumerate(spots)
        ]


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
    renamed = new_names(body.rename_commands or {})
    if (why := rename_fault(renamed)) is not None:
        raise errors.Invalid(parameter="rename_commands", why=why)
    if (why := port_fault(flavor.cache_mode, body.port or PORT)) is not None:
        raise errors.Invalid(parameter="port", why=why)
    if body.private_ip and flavor.cache_mode == "cluster":
        raise errors.Invalid(parameter="private_ip", why="the addresses of a Redis Cluster cannot be chosen")
    if body.access_user:
        raise errors.AccessUserUnwanted
    if body.bss_param is not None and body.bss_param.charging_mode not in (None, "", "postPaid"):
        raise errors.Invalid(parameter="bss_param.charging_mode", why="only postPaid is offered")
    if body.enable_publicip:
        raise errors.NotBuilt(what="enable_publicip at creation")
    if body.enable_ssl and not encryption.sold(str(body.engine_version)):
        raise errors.NoSsl(why=f"it is there for {' and '.join(encryption.VERSIONS)}")
    if body.enable_ssl and body.no_password_access:
        raise errors.PasswordFree
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
        "rename_commands": renamed,
        "enterprise_project_id": body.enterprise_project_id or enterprise.DEFAULT.id,
        "wrong_passwords": 0,
        "locked_until": None,
        "user_id": call.who.user_id,
        "user_name": call.who.user_name,
        "launched_at": None,
        "ssl": bool(body.enable_ssl),
        "protected": wants_protection(call) or False,
    } | secrets


def wants_protection(call: Call[Any]) -> bool | None:
    """Whether deleting the instance is to be refused; None: the request does not say."""
    said = call.body.deletion_protection
    return call.parameters.get("X-Deletion-Protection") if said is None else bool(said)


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
