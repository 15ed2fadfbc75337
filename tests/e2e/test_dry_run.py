"""A request that is only tried out is checked like any other, tells what it would do, and leaves no trace."""

import sqlite3
from contextlib import closing
from typing import Any

import msgspec
import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, SINGLE, Cache, body_for, frozen, made, pid_of, refused
from support.service import Service

TRY = {"X-Dry-Run": "true"}
BIGGER = {"spec_code": SINGLE.replace("128", "256"), "new_capacity": 0.25}
WRITTEN = ("instances", "shards", "nodes", "proxies", "addresses", "tags", "tasks", "task_steps")


def rows(service: Service) -> dict[str, list[Any]]:
    """All that a creation or a resize writes."""
    with closing(sqlite3.connect(service.data / "cacheyard.sqlite")) as database:
        return {
            table: sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=str)  # noqa: S608
            for table in WRITTEN
        }


def code_of(service: Service, **changes: Any) -> str:
    """Of the refusal of a creation that is tried out; the same that the real one gets."""
    body = body_for(service, **changes)
    tried = service.http("POST", "/v2/{p}/instances", json=body, headers=TRY)
    real = service.http("POST", "/v2/{p}/instances", json=body)
    assert (tried.status_code, tried.json()) == (400, real.json())
    return str(tried.json()["error_code"])


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_a_creation_that_is_tried_out_tells_and_writes_nothing(
    service: Service, sdk: Any, spec_code: str
) -> None:
    before, directories = rows(service), sorted((service.data / "nodes").glob("*"))
    request = dcs.CreateInstanceRequest(
        body=dcs.CreateInstanceBody(**body_for(service, spec_code=spec_code, name="never-1", instance_num=2))
    )
    answer = sdk.create_instance_invoker(request).add_header("X-Dry-Run", "true").invoke()
    assert [one.instance_name for one in answer.instances] == ["never-1-000", "never-1-001"]
    assert all(one.instance_id is None for one in answer.instances)
    assert rows(service) == before
    assert sorted((service.data / "nodes").glob("*")) == directories


def test_what_would_happen_is_told(service: Service) -> None:
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service, spec_code=HA), headers=TRY)
    assert (answer.status_code, answer.headers["X-Dry-Run"]) == (200, "true")
    told = answer.json()["dry_run"]
    assert (told["task"], told["waits"]) == ("create", False)
    assert told["steps"][0] == "Start nodes."
    assert told["details"]["nodes"] == 2
    assert told["details"]["internal_version"].count(".") == 2


def test_version_1_can_be_tried_out_too(service: Service, steady: Cache) -> None:
    before = rows(service)
    facts = service.facts
    body = body_for(service, az_codes=None, available_zones=facts.az_codes[:1], name="never-2")
    answer = service.http("POST", "/v1.0/{p}/instances", json=body, headers=TRY)
    assert (answer.status_code, answer.json().get("instance_id")) == (200, None)
    answer = service.http(
        "POST", f"/v1.0/{{p}}/instances/{steady.id}/extend", json={"new_capacity": 0.25}, headers=TRY
    )
    assert (answer.status_code, answer.json()["dry_run"]["task"]) == (200, "EXTEND")
    assert rows(service) == before


def test_refusals_are_those_of_the_real_request(service: Service) -> None:
    before = rows(service)
    assert code_of(service, spec_code="redis.none") == "DCS.4927"
    assert code_of(service, capacity=1) == "DCS.4012"
    assert code_of(service, vpc_id="nowhere") == "DCS.4068"
    assert code_of(service, subnet_id="nowhere") == "DCS.4016"
    assert code_of(service, password="short") == "DCS.4019"
    assert code_of(service, rename_commands={"get": "get_new"}) == "DCS.4800"
    assert code_of(service, private_ip="10.1.2.3") == "DCS.4800"
    assert rows(service) == before


def test_the_room_that_is_left_is_checked(service: Service) -> None:
    large = {"spec_code": "redis.ha.xu1.large.r2.64", "capacity": 64}
    assert code_of(service, instance_num=100, **large) == "DCS.4054"


def test_a_resize_that_is_tried_out_tells_and_changes_nothing(
    service: Service, steady: Cache, sdk: Any
) -> None:
    before, pid = rows(service), pid_of(steady)
    request = dcs.ResizeInstanceRequest(instance_id=steady.id, body=dcs.ResizeInstanceBody(**BIGGER))
    answer = sdk.resize_instance_invoker(request).add_header("X-Dry-Run", "true").invoke()
    assert answer.status_code == 200
    for when in (True, False):
        raw = steady.http("POST", "/resize", json=BIGGER | {"execute_immediately": when}, headers=TRY)
        told = raw.json()["dry_run"]
        assert (raw.status_code, told["task"], told["waits"]) == (200, "EXTEND", not when)
        assert told["details"]["new_capacity"] == "0.25"
    assert rows(service) == before
    assert pid_of(steady) == pid


def test_an_order_can_be_tried_out(service: Service, steady: Cache, sdk: Any) -> None:
    before = rows(service)
    body = dcs.CreateResizeOrderRequestBody(spec_code=BIGGER["spec_code"], new_capacity=0.25)
    request = dcs.CreateResizeOrderRequest(instance_id=steady.id, body=body)
    answer = sdk.create_resize_order_invoker(request).add_header("X-Dry-Run", "true").invoke()
    assert answer.order_id is None
    assert rows(service) == before


def test_a_busy_instance_is_as_busy_for_a_trial(service: Service) -> None:
    with made(service, name="busy-1") as cache, frozen(pid_of(cache)):
        assert cache.http("PUT", json={"port": 6401}).status_code == 204
        for headers in (TRY, {}):
            answer = cache.http("POST", "/resize", json=BIGGER, headers=headers)
            assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4111")


def test_a_resize_that_cannot_be_is_refused_alike(steady: Cache, sdk: Any) -> None:
    body = dcs.ResizeInstanceBody(spec_code=SINGLE, new_capacity=0.125)
    request = dcs.ResizeInstanceRequest(instance_id=steady.id, body=body)
    with refused(400, "DCS.4103", "spec_code"):
        sdk.resize_instance_invoker(request).add_header("X-Dry-Run", "true").invoke()


def test_what_cannot_be_tried_out_is_not_done_instead(steady: Cache) -> None:
    for answer in (steady.http("DELETE", headers=TRY), steady.http("PUT", json={"name": "x"}, headers=TRY)):
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
        assert "X-Dry-Run" in answer.json()["error_msg"]
    assert steady.http("GET", headers=TRY).status_code == 200
    assert steady.show()["name"] == "steady-1"


def test_only_true_and_false_are_understood(service: Service) -> None:
    before = rows(service)
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service), headers={"X-Dry-Run": "1"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
    assert rows(service) == before


def test_the_command_line_tries_out(service: Service) -> None:
    before = rows(service)
    body = msgspec.json.encode(body_for(service, name="never-3")).decode()
    told = service.command("call", "create_instance", f"--body={body}", "--dry-run", "--json")
    assert msgspec.json.decode(told)["dry_run"]["task"] == "create"
    assert rows(service) == before
