"""Chapter 5.2.6: restart, soft restart, flush, stop and start, and what becomes of the data."""

import os
import signal
from typing import Any

import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, SINGLE, Cache, frozen, made, pid_of
from support.service import Service
from support.waiting import until


def act(sdk: Any, action: str, *caches: Cache) -> list[tuple[str, str]]:
    body = dcs.ChangeInstanceStatusBody(instances=[cache.id for cache in caches], action=action)
    answer = sdk.restart_or_flush_instances(dcs.RestartOrFlushInstancesRequest(body=body))
    return [(each.instance, each.result) for each in answer.results]


@pytest.mark.parametrize(
    ("spec_code", "action", "kept"),
    [
        (SINGLE, "restart", False),
        (SINGLE, "soft_restart", True),
        (HA, "restart", True),
        (HA, "soft_restart", True),
    ],
)
def test_a_restart_is_a_new_process_and_does_to_the_data_what_is_documented(
    service: Service, sdk: Any, spec_code: str, action: str, kept: bool
) -> None:
    with made(service, spec_code=spec_code) as cache:
        with cache.client() as link:
            link.set("key", "value")
            if spec_code == HA:
                assert link.wait(1, 5000) == 1
        before = pid_of(cache)
        assert act(sdk, action, cache) == [(cache.id, "success")]
        cache.until_running()
        assert pid_of(cache) != before
        with cache.client() as link:
            assert link.get("key") == ("value" if kept else None)


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_a_flush_empties_every_database_of_every_node(service: Service, sdk: Any, spec_code: str) -> None:
    with made(service, spec_code=spec_code, rename_commands={"flushall": "hidden_flush"}) as cache:
        for db in (0, 7):
            with cache.client(db=db) as link:
                link.set("key", "value")
        before = pid_of(cache)
        assert act(sdk, "flush", cache) == [(cache.id, "success")]
        cache.until_running()
        for db in (0, 7):
            with cache.client(db=db) as link:
                assert link.dbsize() == 0
        if spec_code == HA:
            with cache.client() as link:
                assert link.wait(1, 5000) == 1
            with cache.client(host=cache.addresses()[1], port=6379) as link:
                assert link.info("keyspace") == {}
        assert pid_of(cache) == before


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_a_stopped_instance_answers_nobody_and_starts_with_its_data(
    service: Service, sdk: Any, spec_code: str
) -> None:
    with made(service, spec_code=spec_code) as cache:
        with cache.client() as link:
            link.set("key", "value")
        assert act(sdk, "stop", cache) == [(cache.id, "success")]
        shown = cache.until_running("CLOSED")
        with pytest.raises(redis.ConnectionError):
            cache.client(host=shown["ip"], port=6379).ping()
        assert act(sdk, "start", cache) == [(cache.id, "success")]
        cache.until_running()
        with cache.client() as link:
            assert link.get("key") == "value"


def test_a_stopped_instance_can_be_deleted_and_does_nothing_else(service: Service) -> None:
    with made(service) as cache:
        cache.act("stop")
        cache.until_running("CLOSED")
        for answer in (cache.act("restart"), cache.act("flush"), cache.http("PUT", json={"port": 6500})):
            assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4049")
        assert cache.show()["status"] == "CLOSED"


def test_many_are_restarted_at_once_and_each_says_how_it_went(service: Service, sdk: Any) -> None:
    with made(service, count=2, name="many") as caches:
        before = [pid_of(cache) for cache in caches]
        unknown = Cache(service, "00000000-0000-0000-0000-000000000000")
        assert act(sdk, "restart", caches[0], unknown, caches[1]) == [
            (caches[0].id, "success"),
            (unknown.id, "failed"),
            (caches[1].id, "success"),
        ]
        for cache in caches:
            cache.until_running()
        assert all(old != pid_of(cache) for old, cache in zip(before, caches, strict=True))


def test_a_second_change_is_refused_with_a_code_on_which_clients_wait(service: Service) -> None:
    with made(service) as cache:
        shown = cache.show()
        with frozen(pid_of(cache)):
            assert cache.act("restart").status_code == 200
            assert cache.show()["status"] == "RESTARTING"
            bigger = {"spec_code": SINGLE.replace("128", "256"), "new_capacity": 0.25}
            for answer in (
                cache.http("PUT", json={"port": 6500}),
                cache.http("PUT", json={"name": "other-name"}),
                cache.http("POST", "/resize", json=bigger),
                cache.http("POST", "/password/reset", json={"new_password": "Another_pass.2"}),
                cache.http("DELETE"),
                cache.act("restart"),
                cache.act("flush"),
            ):
                assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4111")
        after = cache.until_running()
        volatile = {"update_at", "bandwidth_info", "used_memory"}
        assert {k: v for k, v in after.items() if k not in volatile} == {
            k: v for k, v in shown.items() if k not in volatile
        }


def test_a_server_that_dies_is_started_again_in_its_role(service: Service) -> None:
    with made(service, spec_code=HA) as cache:
        with cache.client() as link:
            link.set("key", "value")
            assert link.wait(1, 5000) == 1
        address = cache.show()["ip"]
        before = pid_of(cache)
        os.kill(before, signal.SIGKILL)

        def back() -> bool:
            with cache.client(host=address, port=6379) as link:
                info: Any = link.info()
            seen = (info["process_id"] != before, info["role"], info["connected_slaves"])
            return seen == (True, "master", 1)

        until(lambda: _answers(back), seconds=10, what="another master")
        with cache.client() as link:
            assert link.get("key") == "value"


def _answers(check: Any) -> bool:
    try:
        return bool(check())
    except redis.RedisError:
        return False
