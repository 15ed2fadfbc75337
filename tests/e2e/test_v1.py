"""Version 1 does what version 2 does: bodies as its clients send them, effects on real servers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.caches import HA, PASSWORD, SINGLE, Cache, made, remove
from support.service import Service

NEW_PASSWORD = "Cache-yard-2"
GB = "redis.single.xu1.large.1"
DETAILS = {
    "capacity",
    "max_bandwidth",
    "max_clients",
    "max_connections",
    "max_in_bandwidth",
    "max_memory",
    "tenant_ip_count",
    "sharding_num",
    "proxy_num",
    "db_number",
}
TEXTS = {
    "engine",
    "currency",
    "cache_mode",
    "product_type",
    "cpu_type",
    "storage_type",
    "engine_versions",
    "spec_details",
    "spec_details2",
    "charging_type",
    "prod_type",
    "cloud_service_type_code",
    "cloud_resource_type_code",
}


def zone_ids(service: Service) -> list[str]:
    zones = service.http("GET", "/v1.0/availableZones").json()["available_zones"]
    return [zone["id"] for zone in zones]


def body(service: Service, **changes: Any) -> dict[str, Any]:
    """As the Go client sends it: with empty values for what is not set."""
    return {
        "name": "v1-one",
        "description": "",
        "engine": "Redis",
        "engine_version": "6.0",
        "capacity": 0.125,
        "no_password_access": "",
        "password": PASSWORD,
        "access_user": "",
        "vpc_id": service.facts.vpc_id,
        "security_group_id": service.facts.security_group_id,
        "subnet_id": service.facts.subnet_id,
        "available_zones": zone_ids(service)[:1],
        "product_id": f"{SINGLE}-h",
        "instance_backup_policy": {"backup_type": "", "periodical_backup_plan": {"begin_at": ""}},
        "bss_param": {"charging_mode": ""},
        "rename_commands": {},
    } | changes


@contextmanager
def created(service: Service, **changes: Any) -> Iterator[Cache]:
    """A running instance that version 1 made; gone afterwards."""
    answer = service.http("POST", "/v1.0/{p}/instances", json=body(service, **changes))
    assert answer.status_code == 200, answer.text
    cache = Cache(service, answer.json()["instance_id"])
    try:
        cache.until_running()
        yield cache
    finally:
        remove(cache)


def show(cache: Cache) -> dict[str, Any]:
    shown: dict[str, Any] = cache.service.http("GET", f"/v1.0/{{p}}/instances/{cache.id}").json()
    return shown


def error(answer: Any) -> tuple[int, str]:
    """Status and code of a refusal of version 1, which is nested."""
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "ext_message"}
    return answer.status_code, answer.json()["error"]["code"]


# --- one instance ----------------------------------------------------------------------------------


def test_an_instance_lives_from_creation_to_deletion(service: Service) -> None:
    with created(service) as cache:
        shown = show(cache)
        assert (shown["product_id"], shown["resource_spec_code"]) == (f"{SINGLE}-h", SINGLE)
        assert shown["available_zones"] == zone_ids(service)[:1]
        assert (shown["capacity"], shown["capacity_minor"]) == (0, ".125")
        assert shown["no_password_access"] == "false"
        assert shown.get("instance_backup_policy") is None
        path = f"/v1.0/{{p}}/instances/{cache.id}"
        assert service.http("POST", f"{path}/extend", json={"new_capacity": 0.25}).status_code == 204
        assert cache.until_running()["spec_code"] == "redis.single.xu1.tiny.256"
        wider = {"spec_code": "redis.single.xu1.tiny.512-h"}
        assert service.http("POST", f"{path}/extend", json=wider).status_code == 204
        assert cache.until_running()["max_memory"] == 512
        changed = {"name": "v1-two", "description": "changed", "security_group_id": ""}
        assert service.http("PUT", path, json=changed).status_code == 204
        assert (show(cache)["name"], show(cache)["description"]) == ("v1-two", "changed")
        assert service.http("DELETE", path).status_code == 204
        assert show_status(cache) in (None, "RUNNING", "DELETING")
        cache.until_gone()
    assert error(service.http("GET", path)) == (404, "111404022")
    assert error(service.http("DELETE", path)) == (404, "111404022")


def show_status(cache: Cache) -> str | None:
    answer = cache.service.http("GET", f"/v1.0/{{p}}/instances/{cache.id}")
    return answer.json()["status"] if answer.status_code == 200 else None


def test_a_product_of_a_type_gets_its_size_from_the_capacity(service: Service) -> None:
    with created(
        service, product_id="OTC_DCS_MS", capacity=1, available_zones=zone_ids(service)[:2]
    ) as cache:
        assert show(cache)["spec_code"] == "redis.ha.xu1.large.r2.1"
        assert show(cache)["capacity"] == 1


def test_an_instance_without_password_is_asked_for_in_a_string(service: Service) -> None:
    with created(service, no_password_access="true", password="") as cache:
        assert show(cache)["no_password_access"] == "true"
        with cache.client(password=None) as link:
            assert link.ping()


def test_the_password_is_changed_by_who_knows_it(service: Service) -> None:
    with created(service) as cache:
        path = f"/v1.0/{{p}}/instances/{cache.id}/password"
        wrong = service.http("PUT", path, json={"old_password": "wrong", "new_password": NEW_PASSWORD})
        assert wrong.json()["result"] == "passwordFailed"
        assert wrong.json()["retry_times_left"] == "4"
        right = service.http("PUT", path, json={"old_password": PASSWORD, "new_password": NEW_PASSWORD})
        assert right.json()["result"] == "Success"
        with cache.client(NEW_PASSWORD) as link:
            assert link.ping()


def test_instances_are_flushed_stopped_started_and_restarted(service: Service) -> None:
    with created(service, spec_code=HA, product_id="", available_zones=zone_ids(service)[:2]) as cache:

        def act(action: str) -> None:
            answer = service.http(
                "PUT", "/v1.0/{p}/instances/status", json={"action": action, "instances": [cache.id]}
            )
            assert (answer.status_code, answer.content) == (204, b"")

        with cache.client() as link:
            link.set("key", "value")
        act("flush")
        cache.until_running()
        with cache.client() as link:
            assert link.get("key") is None
        act("stop")
        cache.until_running("CLOSED")
        act("start")
        cache.until_running()
        act("restart")
        cache.until_running()
        gone = {"action": "restart", "instances": ["0"]}
        assert error(service.http("PUT", "/v1.0/{p}/instances/status", json=gone)) == (404, "111404022")


def test_what_is_wrong_is_refused_in_the_shape_of_version_1(service: Service) -> None:
    for changes, code in (
        ({"name": "x"}, "111400010"),
        ({"product_id": "dcs.nothing-h"}, "111400927"),
        ({"product_id": ""}, "111400009"),
        ({"capacity": 2}, "111400012"),
        ({"available_zones": ["nowhere"]}, "111400042"),
        ({"password": "short"}, "111400019"),
    ):
        answer = service.http("POST", "/v1.0/{p}/instances", json=body(service, **changes))
        assert error(answer) == (400, code), answer.text
    assert error(service.http("POST", "/v1.0/{p}/instances")) == (400, "111400004")
    assert error(service.http("GET", "/v1.0/other/instances")) == (401, "111401004")
    assert error(service.http("GET", "/v1.0/{p}/instances", token="")) == (401, "111401003")
    assert error(service.http("GET", "/v1.0/{p}/nothing")) == (404, "111404001")
    assert error(service.http("PATCH", "/v1.0/{p}/instances")) == (405, "111405001")


def test_what_is_not_built_says_so(service: Service, steady: Cache) -> None:
    path = f"/v1.0/{{p}}/instances/{steady.id}"
    for below in ("backups", "restores"):
        assert error(service.http("GET", f"{path}/{below}")) == (501, "111501501")


# --- lists ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(service: Service) -> Iterator[list[Cache]]:
    with made(service, count=3, name="listed") as caches:
        yield caches


def listed(service: Service, **query: Any) -> list[str]:
    answer = service.http("GET", "/v1.0/{p}/instances", params=query)
    assert answer.status_code == 200, answer.text
    return [instance["name"] for instance in answer.json()["instances"]]


def test_pages_go_on_behind_a_marker_and_end_with_an_empty_one(service: Service, three: list[Cache]) -> None:
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2, "name": "listed", "start": 1}
    while True:
        page = service.http("GET", "/v1.0/{p}/instances", params=query).json()["instances"]
        if not page:
            break
        seen += [instance["instance_id"] for instance in page]
        query["marker"] = seen[-1]
    assert sorted(seen) == sorted(cache.id for cache in three)


def test_start_counts_from_one(service: Service, three: list[Cache]) -> None:
    names = listed(service, name="listed")
    assert len(names) == 3
    assert listed(service, name="listed", start=0) == listed(service, name="listed", start=1) == names
    assert listed(service, name="listed", start=2) == names[1:]
    assert listed(service, name="listed", start=4) == []


def test_filters_are_those_of_version_1(service: Service, three: list[Cache]) -> None:
    assert listed(service, name="listed-00", exactMatchName="true") == []
    assert listed(service, name="listed-001", isExactMatchName="true") == ["listed-001"]
    assert listed(service, id=three[0].id) == ["listed-000"]
    assert listed(service, name="listed", status="ERROR") == []
    assert len(listed(service, name="listed", status="RUNNING", includeFailure="false")) == 3


def test_a_name_is_no_id_so_that_clients_look_it_up(service: Service, three: list[Cache]) -> None:
    assert error(service.http("GET", "/v1.0/{p}/instances/listed-001")) == (404, "111404022")
    assert listed(service, name="listed-001") == ["listed-001"]


def test_a_listed_instance_has_what_clients_read(service: Service, three: list[Cache]) -> None:
    [shown] = service.http("GET", "/v1.0/{p}/instances", params={"id": three[1].id}).json()["instances"]
    assert shown["resource_spec_code"] == SINGLE
    assert shown["product_id"] == f"{SINGLE}-h"
    assert shown["available_zones"] == zone_ids(service)[:1]
    assert shown["no_password_access"] == "false"
    assert shown["cache_mode"] == "single"


def test_statistics_and_numbers_count_the_instances(service: Service, three: list[Cache]) -> None:
    statistics = service.http("GET", "/v1.0/{p}/instances/statistic").json()["statistics"]
    mine = [one for one in statistics if one["instance_id"] in {cache.id for cache in three}]
    assert len(mine) == 3
    assert all(isinstance(one["used_cpu"], str) and isinstance(one["keys"], int) for one in mine)
    numbers = service.http("GET", "/v1.0/{p}/instances/status", params={"includeFailure": "true"}).json()
    assert numbers["running_count"] >= 3


def test_a_batch_is_deleted_with_a_result_for_each(service: Service) -> None:
    with made(service, count=2, name="batch") as caches:
        wanted = [*(cache.id for cache in caches), "nothing"]
        answer = service.http("DELETE", "/v1.0/{p}/instances", json={"instances": wanted})
        assert answer.json()["results"] == [
            {"instance": wanted[0], "result": "success"},
            {"instance": wanted[1], "result": "success"},
            {"instance": "nothing", "result": "failed"},
        ]
        for cache in caches:
            cache.until_gone()


def test_tags_are_kept_in_their_order(service: Service, three: list[Cache]) -> None:
    path = f"/v1.0/{{p}}/dcs/{three[0].id}/tags/action"
    given = [{"key": "b", "value": "1"}, {"key": "a", "value": "2"}]
    assert service.http("POST", path, json={"action": "create", "tags": given}).status_code == 200
    tags = f"/v1.0/{{p}}/instances/{three[0].id}/tags"
    assert service.http("GET", tags).json()["tags"] == given
    assert {"key": "a", "values": ["2"]} in service.http("GET", "/v1.0/{p}/dcs/tags").json()["tags"]
    service.http("POST", path, json={"action": "delete", "tags": given[:1]})
    assert service.http("GET", tags).json()["tags"] == given[1:]


# --- what can be had --------------------------------------------------------------------------------


def test_every_product_has_what_clients_assert(service: Service) -> None:
    products = service.http("GET", "/v1.0/products").json()["products"]
    assert len({product["product_id"] for product in products}) == len(products) > 0
    for product in products:
        assert set(product["details"]) == DETAILS
        assert all(isinstance(value, int | float) for value in product["details"].values())
        assert product["product_id"] == f"{product['spec_code']}-h"
        for name in TEXTS:
            assert isinstance(product[name], str), name
        assert isinstance(product["price"], int | float)
        for flavor in product["flavors"]:
            assert set(flavor) == {"capacity", "unit", "available_zones"}
    [single] = [product for product in products if product["spec_code"] == GB]
    assert single["flavors"][0]["available_zones"] == zone_ids(service)


def test_there_are_three_zones_and_the_region_is_named_twice(service: Service) -> None:
    answer = service.http("GET", "/v1.0/availableZones").json()
    assert answer["regionId"] == answer["region_id"] == service.facts.region
    assert [zone["code"] for zone in answer["available_zones"]] == service.facts.az_codes
    assert len(answer["available_zones"]) == 3
    for zone in answer["available_zones"]:
        assert set(zone) == {"id", "code", "name", "port", "resource_availability"}


def test_there_are_24_maintenance_windows_with_one_default(service: Service) -> None:
    windows = service.http("GET", "/v1.0/instances/maintain-windows").json()["maintain_windows"]
    assert [window["seq"] for window in windows] == list(range(1, 25))
    assert windows[0]["begin"] == "22"
    assert [window["default"] for window in windows].count(True) == 1


def test_there_are_two_quotas(service: Service) -> None:
    quotas = service.http("GET", "/v1.0/{p}/quota").json()["quotas"]
    assert [resource["type"] for resource in quotas["resources"]] == ["instance", "ram"]
    assert quotas["resource_user"]["tenant_id"] == service.facts.project_id
