"""5.1.7 in other forms: capacity, in the maintenance window, as an order, and only asked about (5.12.7)."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support import clusters
from support.caches import HA, PASSWORD, SINGLE, Cache, made, refused
from support.service import Service
from support.waiting import until

CLUSTER = "redis.cluster.xu1.large.r{}.{}"
BIGGER = {"spec_code": HA.replace("128", "256"), "new_capacity": 0.25}


@pytest.fixture(scope="module")
def client(yard: Service) -> Any:
    return yard.sdk_token()


@pytest.fixture
def pair(yard: Service) -> Iterator[Cache]:
    with made(yard, spec_code=HA) as cache:
        yield cache


def resize(sdk: Any, cache: Cache, **asked: Any) -> None:
    sdk.resize_instance(dcs.ResizeInstanceRequest(instance_id=cache.id, body=dcs.ResizeInstanceBody(**asked)))


def job(sdk: Any, job_id: str) -> Any:
    return sdk.show_job_info(dcs.ShowJobInfoRequest(job_id=job_id))


def ended(sdk: Any, job_id: str) -> Any:
    """The job, when it has."""
    until(lambda: job(sdk, job_id).status in ("SUCCESS", "FAIL"), seconds=30, what="the job to end")
    return job(sdk, job_id)


def memory_of(cache: Cache, ip: str) -> tuple[int, int]:
    """What the server may use, and its process."""
    with cache.client(host=ip, port=6379) as link:
        limit: Any = link.info("memory")
        server: Any = link.info("server")
    return int(limit["maxmemory"]) >> 20, int(server["process_id"])


def window(cache: Cache, begin: int) -> None:
    """Change the maintenance window to the hour that begins then (UTC)."""
    body = {"maintain_begin": f"{begin % 24:02}:00:00", "maintain_end": f"{(begin + 1) % 24:02}:00:00"}
    assert cache.http("PUT", json=body).status_code == 204


def this_hour() -> int:
    """The hour (UTC), of which there is enough left."""
    until(lambda: datetime.now(UTC).strftime("%M:%S") < "59:45", seconds=20, what="an hour to begin", pause=1)
    return datetime.now(UTC).hour


@pytest.fixture
def hour() -> int:
    return this_hour()


# --- capacity ----------------------------------------------------------------------------------------


def test_a_cluster_grows_and_shrinks_live(yard: Service, client: Any) -> None:
    with made(yard, spec_code=CLUSTER.format(2, 4), capacity=4) as cache:
        before = {ip: memory_of(cache, ip) for ip in clusters.ips(cache)}
        assert {limit for limit, _ in before.values()} == {4096 // 3}
        with Traffic(cache.show(), PASSWORD) as traffic:
            for capacity in (8, 24, 4):
                resize(client, cache, spec_code=CLUSTER.format(2, capacity), new_capacity=capacity)
                assert cache.show()["status"] == "EXTENDING"
                shown = cache.until_running()
                assert (shown["spec_code"], shown["max_memory"]) == (
                    CLUSTER.format(2, capacity),
                    capacity * 1024,
                )
                now = {ip: memory_of(cache, ip) for ip in clusters.ips(cache)}
                assert now == {ip: (capacity * 1024 // 3, pid) for ip, (_, pid) in before.items()}
            traffic.flows(5)
            traffic.stop()
            assert (traffic.errors.total(), traffic.lost()) == (0, [])


def test_one_shard_that_is_too_full_keeps_a_cluster_from_shrinking(yard: Service, client: Any) -> None:
    with made(yard, spec_code=CLUSTER.format(1, 8), capacity=8) as cache:
        with closing(clusters.client(cache)) as link:
            for number in range(16):  # 1 GB of one shard's 2.67, nothing of the others'
                link.setrange(f"{{a}}{number}", (64 << 20) - 1, "x")
        until(lambda: cache.show()["used_memory"] > 1000, seconds=10, what="the figures of the servers")
        with refused(400, "DCS.4012", "new_capacity", "one shard"):
            resize(client, cache, spec_code=CLUSTER.format(1, 4), new_capacity=4)
        shown = cache.show()
        assert (shown["status"], shown["spec_code"]) == ("RUNNING", CLUSTER.format(1, 8))


@pytest.fixture(scope="module")
def blind() -> Iterator[Service]:
    """A service that never reads what its servers say of themselves, so that requests know nothing of it."""
    with Service(CACHEYARD_OBSERVE_SECONDS="3600") as running:
        yield running


@pytest.fixture
def full(blind: Service) -> Iterator[Cache]:
    """256 MB, of which 110 are used, which the request does not know."""
    with made(blind, spec_code=SINGLE.replace("128", "256"), capacity=0.25) as cache:
        with cache.client() as link:
            for number in range(11):
                link.setrange(f"key-{number}", (10 << 20) - 1, "x")
        yield cache


def test_what_the_servers_hold_is_looked_at_again_before_it_is_done(blind: Service, full: Cache) -> None:
    sdk = blind.sdk_token()
    resize(sdk, full, spec_code=SINGLE, new_capacity=0.125)
    until(lambda: full.tasks()[0]["status"] == "FAILED", seconds=10, what="the task to fail")
    shown = full.until_running()
    assert (shown["spec_code"], shown["max_memory"]) == (SINGLE.replace("128", "256"), 256)
    assert memory_of(full, shown["ip"])[0] == 256
    told = job(sdk, full.tasks()[0]["id"])
    assert told.status == "FAIL"
    assert "are used" in told.fail_reason


def test_memory_is_promised_from_the_request_on(fresh_service: Callable[..., Service]) -> None:
    service = fresh_service(CACHEYARD_OVERCOMMIT="0.06")  # some 1450 MB
    sdk = service.sdk_token()
    with made(service, count=2, spec_code=HA) as (one, two):
        larger = {"spec_code": HA.replace("128", "256"), "new_capacity": 0.25}
        resize(sdk, one, **larger)
        with refused(400, "DCS.4054"):
            resize(sdk, two, spec_code=HA.replace("128", "512"), new_capacity=0.5)
        one.until_running()
        resize(sdk, two, **larger)
        two.until_running()


# --- asked beforehand -------------------------------------------------------------------------------


def check(sdk: Any, cache: Cache, **asked: Any) -> Any:
    """The job that says whether it could be, when it has ended."""
    body = dcs.StartInstanceResizeCheckJobRequestBody(**asked)
    answer = sdk.start_instance_resize_check_job(
        dcs.StartInstanceResizeCheckJobRequest(instance_id=cache.id, body=body)
    )
    return ended(sdk, answer.job_id)


def test_a_check_says_whether_a_resize_would_be_accepted(yard: Service, client: Any, pair: Cache) -> None:
    before = pair.show()
    accepted: list[dict[str, Any]] = [
        BIGGER,
        {"new_capacity": 0.5},
        {"spec_code": HA.replace("r2", "r4")},
        {"spec_code": HA.replace("r2", "r3"), "new_capacity": 0.125},
    ]
    for asked in accepted:
        told = check(client, pair, **asked)
        assert (told.status, told.fail_reason) == ("SUCCESS", None), asked
    declined: list[tuple[str, dict[str, Any]]] = [
        ("DCS.4103", {"spec_code": HA, "new_capacity": 0.125}),
        ("DCS.4102", {"spec_code": SINGLE, "new_capacity": 0.125}),
        ("DCS.4102", {"spec_code": HA.replace("r2.128", "r3.256")}),
        ("DCS.4012", {"spec_code": HA.replace("128", "256"), "new_capacity": 0.5}),
    ]
    for code, asked in declined:
        told = check(client, pair, **asked)
        assert told.status == "FAIL"
        assert code in told.fail_reason
    shown = pair.show()
    for name in ("status", "spec_code", "task", "az_codes", "replica_count"):
        assert shown[name] == before[name]


def test_a_check_asks_the_servers(blind: Service, full: Cache) -> None:
    told = check(blind.sdk_token(), full, spec_code=SINGLE)
    assert told.status == "FAIL"
    assert "are used" in told.fail_reason


def test_a_check_holds_nothing(yard: Service, client: Any, pair: Cache) -> None:
    for _ in range(3):
        body = dcs.StartInstanceResizeCheckJobRequestBody(**BIGGER)
        answer = client.start_instance_resize_check_job(
            dcs.StartInstanceResizeCheckJobRequest(instance_id=pair.id, body=body)
        )
        assert pair.show()["status"] == "RUNNING"
        assert pair.act("soft_restart").status_code == 200  # it is free for another change at once
        assert ended(client, answer.job_id).status == "SUCCESS"
        pair.until_running()


def test_a_check_of_nothing_is_refused(client: Any, pair: Cache) -> None:
    with refused(400, "DCS.4012", "new_capacity"):
        check(client, pair)
    with refused(400, "DCS.4927", "spec_code"):
        check(client, pair, spec_code="redis.ha.xu1.tiny.r9.128")
    with refused(400, "DCS.4012", "new_capacity"):
        check(client, pair, new_capacity=3)
    assert pair.act("soft_restart").status_code == 200
    answer = pair.http("POST", "/resize/check-job", json=BIGGER)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4111")
    pair.until_running()


# --- as an order -------------------------------------------------------------------------------------


def order(sdk: Any, cache: Cache, **asked: Any) -> str:
    body = dcs.CreateResizeOrderRequestBody(**asked)
    request = dcs.CreateResizeOrderRequest(instance_id=cache.id, body=body)
    return str(sdk.create_resize_order(request).order_id)


def test_an_order_is_the_task(yard: Service, client: Any, pair: Cache) -> None:
    order_id = order(client, pair, spec_code=HA.replace("r2", "r3"), new_capacity=0.125)
    assert ended(client, order_id).status == "SUCCESS"
    assert pair.until_running()["replica_count"] == 3
    order_id = order(client, pair, new_capacity=0.25)
    assert ended(client, order_id).status == "SUCCESS"
    assert pair.until_running()["spec_code"] == HA.replace("r2.128", "r3.256")
    with refused(400, "DCS.4872", "auto_open_security_group_rule"):
        order(client, pair, new_capacity=0.5, auto_open_security_group_rule=True)


def test_what_is_said_of_money_is_ignored(client: Any, pair: Cache) -> None:
    resize(client, pair, **BIGGER, bss_param=dcs.BssParamEntity(is_auto_pay="true"))
    assert pair.until_running()["max_memory"] == 256


# --- in the maintenance window -----------------------------------------------------------------------


def later(sdk: Any, cache: Cache, **asked: Any) -> str:
    """Have a resize wait; the id of its task."""
    resize(sdk, cache, **asked, execute_immediately=False)
    task = cache.tasks()[0]
    assert task["status"] == "WAITING"
    return str(task["id"])


def test_a_resize_waits_for_the_window_and_moves_with_it(client: Any, pair: Cache, hour: int) -> None:
    window(pair, hour + 6)
    task_id = later(client, pair, **BIGGER)
    shown = pair.show()
    assert (shown["status"], shown["task"], shown["spec_code"]) == ("RUNNING", None, HA)
    assert job(client, task_id).status == "INIT"
    assert task_id in {
        task.id
        for task in client.list_center_task(dcs.ListCenterTaskRequest(limit=50)).tasks
        if task.status == "WAITING"
    }
    told = client.show_background_task_progress(
        dcs.ShowBackgroundTaskProgressRequest(instance_id=pair.id, task_id=task_id)
    )
    assert told.progress == 0
    assert {step.step_status for step in told.step_details} == {"WAITING"}

    assert pair.act("soft_restart").status_code == 200  # it holds nothing
    pair.until_running()
    assert job(client, task_id).status == "INIT"

    window(pair, hour)
    assert ended(client, task_id).status == "SUCCESS"
    assert pair.until_running()["spec_code"] == BIGGER["spec_code"]
    assert [task["id"] for task in pair.tasks()].count(task_id) == 1


def test_replicas_that_wait_come_in_the_window_also_after_a_crash(
    fresh_service: Callable[..., Service], hour: int
) -> None:
    service = fresh_service()
    sdk = service.sdk_token()
    with made(service, spec_code=HA) as cache:
        window(cache, hour + 6)
        asked = {"spec_code": HA.replace("r2", "r3"), "new_capacity": 0.125}
        task_id = later(sdk, cache, **asked, change_type="createReplication")
        service.kill()
        service.start()
        assert job(sdk, task_id).status == "INIT"
        window(cache, hour)
        until(lambda: cache.show()["status"] == "EXTENDING", seconds=10, what="the resize to begin")
        service.kill()
        service.start()
        assert ended(sdk, task_id).status == "SUCCESS"
        assert cache.until_running()["replica_count"] == 3


def test_another_resize_is_refused_until_the_one_that_waits_is_cancelled(
    yard: Service, client: Any, pair: Cache, hour: int
) -> None:
    window(pair, hour + 6)
    task_id = later(client, pair, **BIGGER)
    larger = {"spec_code": HA.replace("128", "512"), "new_capacity": 0.5}
    for when in (True, False):
        with refused(400, "DCS.4108", task_id):
            resize(client, pair, **larger, execute_immediately=when)
    client.delete_background_task(dcs.DeleteBackgroundTaskRequest(instance_id=pair.id, task_id=task_id))
    assert task_id not in [task["id"] for task in pair.tasks()]
    resize(client, pair, **larger)
    assert pair.until_running()["max_memory"] == 512


def test_what_could_not_be_now_is_refused_now(client: Any, pair: Cache) -> None:
    with refused(400, "DCS.4103", "spec_code"):
        resize(client, pair, spec_code=HA, new_capacity=0.125, execute_immediately=False)
    assert [task["name"] for task in pair.tasks()] == ["create"]


def test_what_no_longer_can_be_in_the_window_has_failed(client: Any, pair: Cache, hour: int) -> None:
    window(pair, hour + 6)
    smaller_later = {"spec_code": HA.replace("128", "256"), "new_capacity": 0.25}
    resize(client, pair, spec_code=HA.replace("128", "512"), new_capacity=0.5)
    pair.until_running()
    task_id = later(client, pair, **smaller_later)
    with pair.client() as link:
        for number in range(20):
            link.setrange(f"key-{number}", (10 << 20) - 1, "x")
    until(lambda: pair.show()["used_memory"] > 190, seconds=10, what="the figures of the server")
    window(pair, hour)
    told = ended(client, task_id)
    assert told.status == "FAIL"
    assert "are used" in told.fail_reason
    shown = pair.show()
    assert (shown["status"], shown["task"], shown["max_memory"]) == ("RUNNING", None, 512)


def test_a_deleted_instance_takes_what_waits_along(yard: Service, client: Any, hour: int) -> None:
    with made(yard, spec_code=HA) as cache:
        window(cache, hour + 6)
        task_id = later(client, cache, **BIGGER)
    with refused(404, "DCS.4001"):
        job(client, task_id)


def test_an_order_may_wait_too(client: Any, pair: Cache, hour: int) -> None:
    window(pair, hour + 6)
    order_id = order(client, pair, new_capacity=0.25, execute_immediately=False)
    assert job(client, order_id).status == "INIT"
    window(pair, hour)
    assert ended(client, order_id).status == "SUCCESS"
    assert pair.until_running()["max_memory"] == 256
