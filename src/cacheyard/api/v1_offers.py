"""Version 1 of the API, everything but instances: figures, tags, products, quotas, windows, zones.

Bound in `api.bindings`; like `api.v1` a translation onto version 2's services.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

from cacheyard.api.v1 import PRODUCT, as_type, is_true, replace_body
from cacheyard.contract import types as t
from cacheyard.domain import flavors
from cacheyard.services import offers, tags, views
from cacheyard.services.call import Call


def v1_list_number_of_instances_in_different_status(
    call: Call[None],
) -> t.ListNumberOfInstancesInDifferentStatusResponseV1:
    """8.2.3: as 5.2.5."""
    given = call.parameters
    wanted = is_true(given.get("includeFailure")) or is_true(given.get("include_failure"))
    found = views.list_number_of_instances_in_different_status(
        _with(call, include_failure="true" if wanted else "false")
    )
    return as_type(found, t.ListNumberOfInstancesInDifferentStatusResponseV1)


def v1_list_statistics_of_running_instances(
    call: Call[None],
) -> t.ListStatisticsOfRunningInstancesResponseV1:
    """8.2.2: as 5.2.7."""
    found = views.list_statistics_of_running_instances(call)
    return as_type(found, t.ListStatisticsOfRunningInstancesResponseV1)


def v1_list_tags_of_tenant(call: Call[None]) -> t.ListTagsOfTenantResponseV1:
    """8.6.1: as 5.7.1."""
    return as_type(tags.list_tags_of_tenant(call), t.ListTagsOfTenantResponseV1)


def v1_batch_create_or_delete_tags(call: Call[t.CreateOrDeleteInstanceTagsV1]) -> None:
    """8.6.2: as 5.7.2."""
    tags.batch_create_or_delete_tags(replace_body(call, as_type(call.body, t.CreateOrDeleteInstanceTags)))


def v1_show_tags(call: Call[None]) -> t.ShowTagsResponseV1:
    """8.6.3: as 5.7.3."""
    return as_type(tags.show_tags(call), t.ShowTagsResponseV1)


def v1_list_products(call: Call[None]) -> t.ListProductsResponseV1:
    """8.7.1: the flavors of 5.15.1, each as a product. Nothing has a price here."""
    products = []
    for one in offers.list_flavors(call).flavors or []:
        zones = [
            zone for offered in one.flavors_available_zones or [] for zone in offered.available_zones or []
        ]
        products.append(_product(one.spec_code or "", tuple(zones)))
    return t.ListProductsResponseV1(products=products)


def v1_show_quota_of_tenant(call: Call[None]) -> t.ShowQuotaOfTenantResponseV1:
    """8.7.2: as 5.15.3, with whose they are."""
    found = as_type(offers.show_quota_of_tenant(call), t.ShowQuotaOfTenantResponseV1)
    if found.quotas is not None:
        found.quotas.resource_user = t.ResourceUserV1(
            tenant_id=call.project_id, tenant_name=call.who.project_name
        )
    return found


def v1_list_maintenance_windows(call: Call[None]) -> t.ListMaintenanceWindowsResponseV1:
    """8.7.3: as 5.15.2."""
    return as_type(offers.list_maintenance_windows(call), t.ListMaintenanceWindowsResponseV1)


def v1_list_available_zones(call: Call[None]) -> t.ListAvailableZonesResponseV1:
    """8.7.4: as 5.15.6."""
    return as_type(offers.list_available_zones(call), t.ListAvailableZonesResponseV1)


def _with(call: Call[Any], **parameters: Any) -> Call[Any]:
    return replace(call, parameters=call.parameters | parameters)


@cache
def _product(spec_code: str, zones: tuple[str, ...]) -> t.ProductsV1:
    flavor = flavors.find(spec_code)
    assert flavor is not None  # noqa: S101 - the list that it comes from is made from them
    gb = flavor.capacity_mb / 1024
    details = t.DetailsV1(
        capacity=gb,
        max_memory=gb,
        max_connections=flavor.connection_limit,
        max_clients=flavor.connections,
        max_bandwidth=flavor.bandwidth,
        max_in_bandwidth=flavor.bandwidth,
        tenant_ip_count=flavor.nodes,
        sharding_num=flavor.shards,
        proxy_num=offers.proxy_number(flavor),
        db_number=flavor.databases,
    )
    return t.ProductsV1(
        product_id=f"{spec_code}{PRODUCT}",
        spec_code=spec_code,
        cache_mode=flavor.cache_mode,
        product_type="generic",
        cpu_type=flavor.cpu,
        storage_type="DRAM",
        details=details,
        engine="redis",
        engine_versions=";".join(flavor.engine_versions),
        spec_details=json.dumps([{"mem": flavor.capacity_text}]),
        spec_details2=json.dumps([{name: getattr(details, name) for name in details.__struct_fields__}]),
        charging_type="Hourly",
        price=0.0,
        currency="",
        prod_type="instance",
        cloud_service_type_code="hws.service.type.dcs",
        cloud_resource_type_code="hws.resource.type.dcs3",
        flavors=[t.FlavorsV1(capacity=flavor.capacity_text, unit="GB", available_zones=list(zones))],
        billing_factor="Duration",
    )
