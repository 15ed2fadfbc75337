"""Chapter 5.15: what can be had: flavors, maintenance windows, quotas, zones."""

from functools import cache

from cacheyard.contract.types import (
    AttrsObject,
    AvailableZones,
    FlavorAzObject,
    FlavorsItems,
    ListAvailableZonesResponse,
    ListFlavorsResponse,
    ListMaintenanceWindowsResponse,
    MaintainWindowsEntity,
    Quotas,
    Resources,
    ShowQuotaOfTenantResponse,
)
from cacheyard.domain import engines, flavors
from cacheyard.domain.instances import MAINTENANCE
from cacheyard.domain.network import Zone, zones
from cacheyard.services.call import Call
from cacheyard.store import hosts, instances


def list_flavors(call: Call[None]) -> ListFlavorsResponse:
    """5.15.1: the flavors that fit the filters. One that cannot be had here has no zones."""
    given = call.parameters
    with call.house.store.read() as tx:
        there = hosts.every(tx)
        if given.get("instance_id"):
            given = given | {
                "spec_code": given.get("spec_code") or call.instance(tx, given["instance_id"]).spec_code
            }
    found = engines.served([engine for host in there for engine in host.engines])
    room = sum(host.memory_mb for host in there) * call.house.settings.overcommit
    proxies = any(host.proxy is not None for host in there)
    region = zones(call.house.region)
    if given.get("spec_code"):
        exact = flavors.find(given["spec_code"])
        candidates = [exact] if exact is not None else []
    else:
        candidates = list(flavors.flavors().values())
    return ListFlavorsResponse(
        flavors=[
            _shown(flavor, found, region if _can_be_had(flavor, found, room, proxies) else ())
            for flavor in candidates
            if _fits(flavor, given)
        ]
    )


def list_maintenance_windows(_call: Call[None]) -> ListMaintenanceWindowsResponse:
    """5.15.2: 24 windows of an hour, counted from 22:00; one is the default."""
    return ListMaintenanceWindowsResponse(
        maintain_windows=[
            MaintainWindowsEntity(
                seq=number + 1,
                begin=f"{(22 + number) % 24:02d}",
                end=f"{(23 + number) % 24:02d}",
                default=f"{(22 + number) % 24:02d}" == MAINTENANCE[0][:2],
            )
            for number in range(24)
        ]
    )


def show_quota_of_tenant(call: Call[None]) -> ShowQuotaOfTenantResponse:
    """5.15.3: how many instances and how much memory the project may have and has."""
    settings = call.house.settings
    with call.house.store.read() as tx:
        sizes = instances.sizes(tx, call.project_id)
    used_gb = -(-sum(mb for _, mb in sizes) // 1024)
    return ShowQuotaOfTenantResponse(
        quotas=Quotas(
            resources=[
                _quota("instance", None, settings.instance_quota, len(sizes)),
                _quota("ram", "GB", settings.memory_quota, used_gb),
            ]
        )
    )


def list_available_zones(call: Call[None]) -> ListAvailableZonesResponse:
    """5.15.6: the region's zones."""
    region = call.house.region
    return ListAvailableZonesResponse(
        region_id=region,
        regionId=region,
        available_zones=[
            AvailableZones(
                id=zone.id, code=zone.code, name=zone.code.upper(), port="8002", resource_availability="true"
            )
            for zone in zones(region)
        ],
    )


def _quota(kind: str, unit: str | None, most: int, used: int) -> Resources:
    return Resources(type=kind, unit=unit, min=1, max=most, quota=most, used=used)


def _can_be_had(flavor: flavors.Flavor, versions: frozenset[str], room_mb: float, proxies: bool) -> bool:
    return (
        (proxies or not flavor.proxies)
        and flavor.cpu == flavors.local_cpu()
        and not versions.isdisjoint(flavor.engine_versions)
        and flavor.memory_mb <= room_mb
    )


def _fits(flavor: flavors.Flavor, given: dict[str, object]) -> bool:
    engine, mode, cpu = given.get("engine"), given.get("cache_mode"), given.get("cpu_type")
    if engine is not None and str(engine).lower() != "redis":
        return False
    if mode is not None and mode != flavor.cache_mode:
        return False
    if cpu is not None and cpu != flavor.cpu:
        return False
    if given.get("capacity") is not None and given["capacity"] != flavor.capacity_text:
        return False
    asked = str(given.get("engine_version") or "")
    return not asked or set(asked.split(";")) <= set(flavor.engine_versions)


def proxy_number(flavor: flavors.Flavor) -> int:
    """As it is documented: of Proxy Clusters alone."""
    return flavor.proxies if flavor.cache_mode == "proxy" else 0


@cache
def _shown(flavor: flavors.Flavor, versions: frozenset[str], there: tuple[Zone, ...]) -> FlavorsItems:
    size = flavor.capacity_text
    had = [version for version in flavor.engine_versions if version in versions]
    attributes = {
        "sharding_num": flavor.shards,
        "proxy_num": proxy_number(flavor),
        "db_number": flavor.databases,
        "max_memory": size,
        "max_connections": flavor.connection_limit,
        "max_clients": flavor.connections,
        "max_bandwidth": flavor.bandwidth,
        "max_in_bandwidth": flavor.bandwidth,
    }
    return FlavorsItems(
        spec_code=flavor.spec_code,
        cloud_service_type_code="hws.service.type.dcs",
        cloud_resource_type_code="hws.resource.type.dcs3",
        cache_mode=flavor.cache_mode,
        engine="redis",
        engine_version=";".join(had or flavor.engine_versions),
        product_type="generic",
        cpu_type=flavor.cpu,
        storage_type="DRAM",
        capacity=[size],
        billing_mode=["Hourly"],
        tenant_ip_count=flavor.nodes,
        pricing_type="normal",
        is_dec=False,
        attrs=[AttrsObject(capacity=size, name=name, value=str(value)) for name, value in attributes.items()],
        flavors_available_zones=[
            FlavorAzObject(
                capacity=size,
                unit="GB",
                available_zones=[zone.id for zone in there],
                az_codes=[zone.code for zone in there],
            )
        ],
        replica_count=flavor.nodes_per_shard,
    )
