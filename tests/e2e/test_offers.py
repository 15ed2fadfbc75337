"""Chapters 5.15 and 5.2.5: what can be had is what is offered, and quotas hold."""

from collections.abc import Callable
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, SINGLE, body_for, made, refused, sdk_body
from support.proxied import FORMS, needs_program
from support.service import Service


def flavors(sdk: Any, **query: Any) -> Any:
    return sdk.list_flavors(dcs.ListFlavorsRequest(**query)).flavors


def can_be_had(flavor: Any) -> bool:
    return bool(flavor.flavors_available_zones[0].az_codes)


def test_flavors_of_every_type_are_listed_once(sdk: Any) -> None:
    found = flavors(sdk)
    codes = [each.spec_code for each in found]
    assert len(set(codes)) == len(codes)
    assert {each.cache_mode for each in found} == {"single", "ha", "cluster", "proxy", "ha_rw_split"}
    assert {each.cpu_type for each in found} == {"x86_64", "aarch64"}
    assert all(isinstance(size, str) for each in found for size in each.capacity)
    assert found[0].engine_version == "4.0;5.0;6.0;7.0"
    assert can_be_had(found[0])  # clients create the first one


def test_flavors_are_chosen_by_every_filter(service: Service, sdk: Any) -> None:
    assert [each.spec_code for each in flavors(sdk, spec_code=SINGLE)] == [SINGLE]
    assert flavors(sdk, spec_code="redis.single.xu1.tiny.9") == []
    assert {each.cache_mode for each in flavors(sdk, cache_mode="ha")} == {"ha"}
    assert {each.cpu_type for each in flavors(sdk, cpu_type="aarch64")} == {"aarch64"}
    assert {tuple(each.capacity) for each in flavors(sdk, capacity="0.125")} == {("0.125",)}
    assert flavors(sdk, engine="memcached") == []
    assert all("7.0" in each.engine_version for each in flavors(sdk, engine_version="7.0"))
    assert "proxy" not in {each.cache_mode for each in flavors(sdk, engine_version="7.0")}
    with made(service, spec_code=HA) as cache:
        assert [each.spec_code for each in flavors(sdk, instance_id=cache.id)] == [HA]


@pytest.mark.parametrize(
    "mode", ["single", "ha", "cluster", *(pytest.param(mode, marks=needs_program) for mode in FORMS)]
)
def test_the_smallest_flavor_of_each_type_can_be_created_as_offered(yard: Service, mode: str) -> None:
    sdk = yard.sdk()
    offered = [each for each in flavors(sdk, cache_mode=mode) if can_be_had(each)]
    assert offered
    for nodes in {each.replica_count for each in offered}:
        smallest = next(each for each in offered if each.replica_count == nodes)
        size = float(smallest.capacity[0])
        zones = smallest.flavors_available_zones[0].az_codes
        version = smallest.engine_version.split(";")[-1]
        form = {"spec_code": smallest.spec_code, "capacity": size, "engine_version": version}
        with made(yard, **form, az_codes=zones[:2]) as cache:
            shown = cache.show()
            assert shown["max_memory"] == size * 1024
            assert shown["replica_count"] == nodes


def test_a_flavor_that_cannot_be_had_here_has_no_zone(sdk: Any) -> None:
    found = flavors(sdk)
    assert not [each.spec_code for each in found if can_be_had(each) and each.cpu_type == "aarch64"]


def test_without_the_proxys_program_types_behind_proxies_are_neither_offered_nor_made(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service(CACHEYARD_PROXY="", CACHEYARD_OVERCOMMIT="100")
    sdk = service.sdk()
    offered = {each.cache_mode for each in flavors(sdk) if can_be_had(each)}
    assert offered == {"single", "ha", "cluster"}
    for form in FORMS.values():
        with refused(400, "DCS.4054", "cacheyard doctor"):
            sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service, **form)))
    assert service.http("GET", "/v2/{p}/instances").json()["instance_num"] == 0


def test_there_are_24_windows_of_which_one_is_the_default(sdk: Any) -> None:
    windows = sdk.list_maintenance_windows(dcs.ListMaintenanceWindowsRequest()).maintain_windows
    assert [window.seq for window in windows] == list(range(1, 25))
    assert (windows[0].begin, windows[0].end) == ("22", "23")
    assert [window.begin for window in windows if window.default] == ["02"]


def test_there_are_three_zones(service: Service, sdk: Any) -> None:
    answer = sdk.list_available_zones(dcs.ListAvailableZonesRequest())
    assert answer.region_id == service.facts.region
    assert [zone.code for zone in answer.available_zones] == service.facts.az_codes


def test_an_instance_can_be_asked_for_by_the_ids_of_zones(service: Service) -> None:
    zones = service.http("GET", "/v2/available-zones").json()["available_zones"]
    with made(service, az_codes=[zones[2]["id"]]) as cache:
        assert cache.show()["az_codes"] == [zones[2]["code"]]


def test_instances_are_counted_by_status(service: Service, sdk: Any) -> None:
    def counts() -> Any:
        request = dcs.ListNumberOfInstancesInDifferentStatusRequest(include_failure="true")
        return sdk.list_number_of_instances_in_different_status(request)

    before = counts().running_count
    with made(service, count=2, name="counted"):
        answer = counts()
        assert (answer.running_count, answer.redis.running_count) == (before + 2, before + 2)
        assert answer.memcached.running_count == 0
    assert counts().running_count == before


def quota(sdk: Any) -> dict[str, tuple[int, int]]:
    found = sdk.show_quota_of_tenant(dcs.ShowQuotaOfTenantRequest()).quotas.resources
    return {each.type: (each.quota, each.used) for each in found}


def test_quotas_of_instances_and_memory_hold(fresh_service: Callable[..., Service]) -> None:
    service = fresh_service(CACHEYARD_INSTANCE_QUOTA="2", CACHEYARD_MEMORY_QUOTA="1")
    sdk = service.sdk()
    assert quota(sdk) == {"instance": (2, 0), "ram": (1, 0)}
    half = SINGLE.replace("128", "512")
    with refused(400, "DCS.4035"):
        sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service, instance_num=3)))
    big = {"spec_code": "redis.single.xu1.large.2", "capacity": 2}
    with refused(400, "DCS.4036"):
        sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service, **big)))
    assert quota(sdk)["instance"] == (2, 0)
    with made(service, count=2, name="full", spec_code=half, capacity=0.5) as caches:
        assert quota(sdk) == {"instance": (2, 2), "ram": (1, 1)}
        with refused(400, "DCS.4035"):
            sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service)))
        larger = {"spec_code": "redis.single.xu1.large.1", "new_capacity": 1}
        answer = caches[0].http("POST", "/resize", json=larger)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4036")
        assert caches[0].show()["spec_code"] == half
    assert quota(sdk) == {"instance": (2, 0), "ram": (1, 0)}


def test_more_memory_than_the_machine_has_is_not_promised(fresh_service: Callable[..., Service]) -> None:
    service = fresh_service(CACHEYARD_OVERCOMMIT="0.000001")
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service))
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4054")
    assert service.http("GET", "/v2/{p}/instances").json()["instance_num"] == 0
    service.restart(CACHEYARD_OVERCOMMIT="1000")
    assert service.http("POST", "/v2/{p}/instances", json=body_for(service)).status_code == 200
