"""An instance gets another type while clients write: 5.1.7 between master/standby, read/write splitting and
Proxy Cluster. And the other resizes of instances behind proxies."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

import pytest
import redis
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support import proxied
from support.caches import PASSWORD, Cache, made, refused
from support.service import Service
from support.waiting import until

from cacheyard.agent.hosts import memory_mb

pytestmark = proxied.needs_program

HA, LARGER = "redis.ha.xu1.large.r2.1", "redis.ha.xu1.large.r3.2"
PROXY, PROXY_8, PROXY_48 = (f"redis.proxy.xu1.large.{size}" for size in (4, 8, 48))
SPLIT, SPLIT_3, SPLIT_3_2 = (f"redis.ha.xu1.large.{rest}" for rest in ("p2.1", "p3.1", "p3.2"))
RETYPE, ADD, REMOVE = "instanceType", "createReplication", "deleteReplication"
KEYS = 3000
DONE_SECONDS = 240.0  # on an idle machine it takes six
GAP_SECONDS = 6.0  # without a write; it is a third of a second


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """Proxy Clusters begin at 4 GB: a service that promises more memory than the machine has."""
    with Service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_OBSERVE_SECONDS="0.5") as running:
        yield running


@pytest.fixture(scope="module")
def blind() -> Iterator[Service]:
    """It never reads what its servers say of themselves, so that requests know nothing of it."""
    with Service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_OBSERVE_SECONDS="3600") as running:
        yield running


@pytest.fixture(scope="module")
def sdk(yard: Service) -> Any:
    return yard.sdk()


@pytest.fixture(scope="module")
def steady(yard: Service) -> Iterator[Cache]:
    """A master and a replica, for requests that are refused."""
    with made(yard, **form(HA)) as cache:
        yield cache


def form(spec_code: str, **more: Any) -> dict[str, Any]:
    return {"spec_code": spec_code, "capacity": size(spec_code), "engine_version": "6.0", **more}


def size(spec_code: str) -> int:
    return int(spec_code.rpartition(".")[2])


def resize(sdk: Any, cache: Cache, spec_code: str, change_type: str | None = RETYPE, **more: Any) -> None:
    body = {"spec_code": spec_code, "new_capacity": size(spec_code), "change_type": change_type} | more
    sdk.resize_instance(dcs.ResizeInstanceRequest(cache.id, dcs.ResizeInstanceBody(**body)))


def done(cache: Cache, status: str = "SUCCESS") -> dict[str, Any]:
    """The instance as shown when its last task has ended so."""
    until(lambda: cache.show()["task"] is None, seconds=DONE_SECONDS, what="the resize to end", pause=0.05)
    shown = cache.until_running()
    until(lambda: cache.tasks()[0]["status"] != "EXECUTING", seconds=5, what="the task to be recorded")
    assert cache.tasks()[0]["status"] == status, (cache.tasks()[0], cache.service.log()[-3000:])
    return shown


def fill(cache: Cache) -> None:
    with closing(cache.client()) as link, link.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.set(f"key:{number}", f"{number:100}")
        pipe.hset("hash", mapping={str(number): number for number in range(500)})
        pipe.set("mortal", "1", ex=5000)
        pipe.setrange("large", (8 << 20) - 1, "x")
        pipe.execute()


def check_data(cache: Cache) -> None:
    """All that `fill` has written is there, and nothing but it and what traffic has written."""
    with closing(cache.client()) as link:
        with link.pipeline(transaction=False) as pipe:
            for number in range(KEYS):
                pipe.get(f"key:{number}")
            assert pipe.execute() == [f"{number:100}" for number in range(KEYS)]
        assert link.hgetall("hash") == {str(number): str(number) for number in range(500)}
        assert 4000 < int(str(link.ttl("mortal"))) <= 5000
        assert link.strlen("large") == 8 << 20


def check_shape(cache: Cache, spec_code: str, groups: list[int], proxies: int) -> dict[str, Any]:
    """It is what the flavor says: as shown, its shards with so many nodes each, and its proxies."""
    shown = cache.show()
    assert (shown["spec_code"], shown["max_memory"]) == (spec_code, size(spec_code) * 1024)
    found = proxied.groups(cache)
    assert [len(group["replication_list"]) for group in found] == groups
    assert {one["status"] for group in found for one in group["replication_list"]} == {"Active"}
    assert all(len(proxied.of_role(group, "master")) == 1 for group in found)
    assert len(proxied.proxies(cache)) == proxies
    for ip in {one["node_ip"] for one in proxied.servers(cache)}:
        with cache.client(host=ip, port=shown["port"]) as link:
            limit: Any = link.info("memory")
        assert int(limit["maxmemory"]) >> 20 == size(spec_code) * 1024 // len(groups), ip
    servers = {command for command in cache.service.processes().values() if "redis-server" in command}
    ips = {one["node_ip"] for one in proxied.servers(cache)}
    assert all(any(ip in command for command in servers) for ip in ips)
    return shown


# --- the type ----------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("first", "back", "proxies"), [(HA, LARGER, 0), (SPLIT, SPLIT_3_2, 2)], ids=["ha", "ha_rw_split"]
)
def test_the_type_changes_while_clients_write(
    yard: Service, sdk: Any, first: str, back: str, proxies: int
) -> None:
    with made(yard, **form(first), port=6400) as cache:
        fill(cache)
        before = cache.show()
        (group,) = proxied.groups(cache)
        nodes = len(group["replication_list"])
        for spec_code, groups, count in ((PROXY, [2, 2, 2], 2), (back, [nodes + 1], proxies)):
            with Traffic(cache.show(), PASSWORD) as traffic:
                began = time.monotonic()
                resize(sdk, cache, spec_code)
                assert cache.show()["status"] == "EXTENDING"
                done(cache)
                traffic.flows(10)
                over = time.monotonic()
                gap = traffic.stop().gap(began, over)
            assert traffic.lost() == []
            assert gap < GAP_SECONDS
            check_data(cache)
            shown = check_shape(cache, spec_code, groups, count)
            assert proxied.groups(cache)[0]["group_id"] == group["group_id"]
            for name in ("ip", "port", "engine_version", "no_password_access", "az_codes"):
                assert shown[name] == before[name], name


def test_the_check_job_knows_of_types(yard: Service, sdk: Any, steady: Cache) -> None:
    before = proxied.groups(steady)
    assert check(sdk, steady, PROXY) == ("SUCCESS", None)
    status, why = check(sdk, steady, SPLIT)
    assert (status, why[:8]) == ("FAIL", "DCS.4102")
    shown = steady.show()
    assert (shown["status"], shown["spec_code"], shown["task"]) == ("RUNNING", HA, None)
    assert proxied.groups(steady) == before


def check(sdk: Any, cache: Cache, spec_code: str) -> tuple[str, Any]:
    """How the job that only asks has ended, and why."""
    body = dcs.StartInstanceResizeCheckJobRequestBody(spec_code=spec_code)
    request = dcs.StartInstanceResizeCheckJobRequest(instance_id=cache.id, body=body)
    job_id = sdk.start_instance_resize_check_job(request).job_id
    status = proxied.job(cache, job_id)
    return status, sdk.show_job_info(dcs.ShowJobInfoRequest(job_id=job_id)).fail_reason


@pytest.mark.parametrize(
    ("spec_code", "more", "code", "named"),
    [
        (SPLIT, {}, "DCS.4102", "spec_code"),
        ("redis.cluster.xu1.large.r2.4", {}, "DCS.4102", "spec_code"),
        ("redis.single.xu1.large.1", {}, "DCS.4102", "spec_code"),
        (PROXY, {"change_type": None}, "DCS.4102", "change_type"),
        (PROXY, {"change_type": ADD}, "DCS.4102", "change_type"),
        (PROXY, {"new_capacity": 8}, "DCS.4012", "new_capacity"),
        (PROXY.replace("xu1", "au1"), {}, "DCS.4102", "spec_code"),
        ("redis.proxy.xu1.large.2048", {}, "DCS.4927", "spec_code"),
    ],
)
def test_what_cannot_be_is_refused(
    sdk: Any, steady: Cache, spec_code: str, more: dict[str, Any], code: str, named: str
) -> None:
    before = proxied.groups(steady)
    with refused(400, code, named):
        resize(sdk, steady, spec_code, **more)
    assert steady.show()["status"] == "RUNNING"
    assert proxied.groups(steady) == before


@pytest.mark.parametrize(
    ("first", "to", "code", "named"),
    [
        (form(HA, engine_version="7.0"), PROXY, "DCS.4102", "7.0"),
        (form("redis.single.xu1.large.1"), PROXY, "DCS.4102", "single"),
        (form(HA, port=60000), PROXY, "DCS.4200", "60000"),  # nodes of a cluster need another port above it
        (form(SPLIT), HA, "DCS.4102", "ha_rw_split"),
        (form("redis.cluster.xu1.large.r1.4"), PROXY, "DCS.4102", "cluster"),
    ],
    ids=["7.0", "single", "port", "split to ha", "cluster"],
)
def test_not_every_instance_can_change_its_type(
    yard: Service, sdk: Any, first: dict[str, Any], to: str, code: str, named: str
) -> None:
    with made(yard, **first) as cache, refused(400, code, "spec_code", named):
        resize(sdk, cache, to)


def test_what_uses_other_databases_cannot_be_behind_proxies(yard: Service, sdk: Any) -> None:
    with made(yard, **form(HA)) as cache:
        with cache.client(db=7) as link:
            link.set("key", "value")

        def known() -> bool:
            (node,) = [one for one in topology(cache) if one["node_type"] == "master"]
            return "7" in str(node["dbs"].get("db_idx"))

        until(known, seconds=20, what="the figures of the servers", pause=0.05)
        with refused(400, "DCS.4200", "spec_code", "7"):
            resize(sdk, cache, PROXY)
        assert check(sdk, cache, PROXY)[0] == "FAIL"


def topology(cache: Cache) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cache.http("GET", "/nodes").json()["redis_server"]
    return found


def test_what_does_not_fit_is_refused(yard: Service, sdk: Any) -> None:
    with made(yard, **form("redis.proxy.xu1.large.4")) as cache:
        with cache.client() as link:
            for number in range(12):  # 768 MB
                link.setrange(f"{number}", (64 << 20) - 1, "x")
        until(lambda: cache.show()["used_memory"] > 760, seconds=20, what="the figures of the servers")
        with refused(400, "DCS.4012", "new_capacity"):
            resize(sdk, cache, HA)
        with refused(400, "DCS.4102", "spec_code"):
            resize(sdk, cache, "redis.cluster.xu1.large.r2.4")


def test_both_sides_need_memory_while_it_lasts(fresh_service: Any) -> None:
    there = 14 * 1024 / memory_mb()  # 14 GB: two pairs have 2 each, the servers behind proxies 8
    service = fresh_service(CACHEYARD_OVERCOMMIT=f"{there:.3f}")
    sdk = service.sdk()
    with made(service, count=2, **form(HA)) as (one, two):
        resize(sdk, one, PROXY)
        with refused(400, "DCS.4054"):
            resize(sdk, two, PROXY)
        done(one)


def test_a_change_that_meets_other_databases_is_taken_back(blind: Service) -> None:
    sdk = blind.sdk()
    with made(blind, **form(HA)) as cache:
        fill(cache)
        with cache.client(db=3) as link:
            link.set("key", "value")
        addresses = cache.addresses()
        resize(sdk, cache, PROXY)
        assert done(cache, "FAILED")["spec_code"] == HA
        check_data(cache)
        check_shape(cache, HA, [2], 0)
        assert cache.addresses() == addresses
        with cache.client(db=3) as link:
            assert link.getdel("key") == "value"  # databases can be chosen again
        assert check(sdk, cache, PROXY) == ("SUCCESS", None)
        resize(sdk, cache, PROXY)
        done(cache)
        check_data(cache)


def test_nobody_writes_to_another_database_while_it_lasts(yard: Service, sdk: Any) -> None:
    with made(yard, **form(HA)) as cache:
        fill(cache)
        ended, told = Event(), list[str]()

        def choose() -> None:
            """Write to database 5 if it lets us, again and again."""
            while not ended.is_set():
                try:
                    with cache.client(db=5) as link:
                        link.set("key:0", "wrong", px=1)  # a key of database 0
                    told.append("OK")
                except redis.RedisError as error:
                    told.append(str(error)[:40])

        trying = Thread(target=choose)
        trying.start()
        try:
            until(lambda: "OK" in told, seconds=10, what="a write to database 5")
            resize(sdk, cache, PROXY)
            until(lambda: cache.show()["task"] is None, seconds=DONE_SECONDS, what="the change to end")
        finally:
            ended.set()
            trying.join()
        status = cache.tasks()[0]["status"]  # a key may have been there at the wrong moment
        assert status in ("SUCCESS", "FAILED")
        if status == "SUCCESS":
            assert any("perm" in one.lower() for one in told), set(told)
        check_data(cache)


def test_a_change_of_type_may_wait_for_the_window(yard: Service, sdk: Any) -> None:
    until(lambda: datetime.now(UTC).strftime("%M:%S") < "59:30", seconds=40, what="an hour to begin", pause=1)
    hour = datetime.now(UTC).hour
    with made(yard, **form(HA)) as cache:
        fill(cache)
        window(cache, hour + 6)
        resize(sdk, cache, PROXY, execute_immediately=False)
        assert cache.show()["status"] == "RUNNING"
        task = cache.tasks()[0]
        assert task["status"] == "WAITING"
        window(cache, hour)
        assert proxied.job(cache, task["id"]) == "SUCCESS"
        check_data(cache)
        check_shape(cache, PROXY, [2, 2, 2], 2)


def window(cache: Cache, begin: int) -> None:
    """Change the maintenance window to the hour that begins then (UTC)."""
    body = {"maintain_begin": f"{begin % 24:02}:00:00", "maintain_end": f"{(begin + 1) % 24:02}:00:00"}
    assert cache.http("PUT", json=body).status_code == 204


# --- everything else ---------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_a_proxy_cluster_grows_and_shrinks_and_clients_stay(yard: Service, sdk: Any) -> None:
    with made(yard, **form(PROXY)) as cache, closing(cache.client()) as link:
        fill(cache)
        mine = link.client_id()
        with Traffic(cache.show(), PASSWORD) as traffic:
            for spec_code, groups in ((PROXY_8, [2] * 3), (PROXY_48, [2] * 6), (PROXY, [2] * 3)):
                resize(sdk, cache, spec_code, None)
                done(cache)
                check_shape(cache, spec_code, groups, 2)
            traffic.flows(10)
            traffic.stop()
        assert (traffic.lost(), traffic.errors.total()) == ([], 0)
        assert link.client_id() == mine  # by the same connection
        check_data(cache)
        with refused(400, "DCS.4875", "change_type"):
            resize(sdk, cache, PROXY, ADD)
        with refused(400, "DCS.4937", "change_type"):
            resize(sdk, cache, PROXY, REMOVE)
        with refused(400, "DCS.4103", "spec_code"):
            resize(sdk, cache, PROXY, None)


@pytest.mark.timeout(600)
def test_read_write_splitting_gets_other_sizes_and_replicas_and_clients_stay(yard: Service, sdk: Any) -> None:
    with made(yard, **form(SPLIT)) as cache, closing(cache.client()) as link:
        fill(cache)
        mine = link.client_id()
        with Traffic(cache.show(), PASSWORD) as traffic:
            for spec_code, change_type, nodes in (
                (SPLIT_3, ADD, 3),
                (SPLIT_3_2, None, 3),
                (SPLIT_3, None, 3),
                (SPLIT, REMOVE, 2),
            ):
                resize(sdk, cache, spec_code, change_type)
                done(cache)
                check_shape(cache, spec_code, [nodes], 2)
            traffic.flows(10)
            traffic.stop()
        assert (traffic.lost(), traffic.errors.total()) == ([], 0)
        assert link.client_id() == mine
        check_data(cache)
        with refused(400, "DCS.4102", "spec_code"):
            resize(sdk, cache, SPLIT_3_2, ADD)
        with refused(400, "DCS.4937", "change_type"):
            resize(sdk, cache, SPLIT, REMOVE)
