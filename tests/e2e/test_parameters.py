"""Chapter 5.4: parameters reach all servers and proxies, or none; those that come later have them too."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkdcs import v2 as dcs
from support import clusters
from support.caches import HA, SINGLE, Cache, frozen, made, one_of_each, pid_of, refused
from support.inside import inside
from support.parameters import (
    IDS,
    all_have,
    begin,
    change,
    change_by_job,
    detail,
    histories,
    in_servers,
    listed,
    values,
)
from support.proxied import PROXY, SPLIT, job, needs_program, proxy_files
from support.replicas import body as size
from support.replicas import resized
from support.service import Service
from support.waiting import until

from cacheyard.domain.instances import PROXIED_MODES
from cacheyard.engine import find

OVERCOMMITTED = {"CACHEYARD_OVERCOMMIT": "100"}
FORMS: dict[str, dict[str, Any]] = {
    "single": {"spec_code": SINGLE},
    "ha": {"spec_code": HA},
    "cluster": clusters.spec("r2.4"),
    "proxy": PROXY,
    "ha_rw_split": SPLIT,
}
if find.proxy() is None:
    FORMS = {form: how for form, how in FORMS.items() if form not in PROXIED_MODES}
MB = 1 << 20

# What every type has: chosen, and as servers then tell it.
EVERYWHERE = {
    "maxmemory-policy": "allkeys-lfu",
    "hash-max-ziplist-entries": "11",
    "hash-max-ziplist-value": "12",
    "set-max-intset-entries": "13",
    "zset-max-ziplist-entries": "14",
    "zset-max-ziplist-value": "15",
    "slowlog-log-slower-than": "16",
    "slowlog-max-len": "17",
}
REPLICATED = {
    "appendfsync": "no",
    "repl-backlog-size": "2097152",
    "repl-backlog-ttl": "77",
    "repl-timeout": "44",
}
BUFFERS = {
    "client-output-buffer-slave-hard-limit": str(100 * MB),
    "client-output-buffer-slave-soft-limit": str(99 * MB),
    "client-output-buffer-limit-slave-soft-seconds": "9",
}
NOT_PROXY = {"timeout": "3600", "latency-monitor-threshold": "19"}
NOT_SPLIT = {"lua-time-limit": "200", "proto-max-bulk-len": "2097152"}
CHOSEN: dict[str, dict[str, str]] = {
    "single": EVERYWHERE | NOT_PROXY | NOT_SPLIT,
    "ha": EVERYWHERE | REPLICATED | BUFFERS | NOT_PROXY | NOT_SPLIT,
    "cluster": EVERYWHERE | REPLICATED | BUFFERS | NOT_PROXY | NOT_SPLIT,
    "proxy": EVERYWHERE | REPLICATED | BUFFERS | NOT_SPLIT,
    "ha_rw_split": EVERYWHERE | REPLICATED | BUFFERS | NOT_PROXY,
}


def in_force(form: str) -> dict[str, str]:
    """What CONFIG GET then says of all servers."""
    told = {name: value for name, value in CHOSEN[form].items() if name not in BUFFERS}
    if form != "single":
        limit = f"normal 0 0 0 slave {100 * MB} {99 * MB} 9 pubsub {32 * MB} {8 * MB} 60"
        told["client-output-buffer-limit"] = limit
    if form == "ha_rw_split":
        told["timeout"] = "0"  # clients are the proxies' affair
    return told | {
        "hz": "62" if form in ("single", "ha", "ha_rw_split") else "154",
        "active-expire-effort": "10",
    }


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """It looks at servers and their parameters often."""
    often = {"CACHEYARD_DRIFT_SECONDS": "0.5", "CACHEYARD_OBSERVE_SECONDS": "0.5"}
    with Service(**often, **OVERCOMMITTED) as running:
        yield running


@pytest.fixture(scope="module")
def caches(yard: Service) -> Iterator[dict[str, Cache]]:
    """One of each type, and what a test changes of it is nobody else's."""
    with one_of_each(yard, FORMS) as found:
        yield found


@pytest.fixture(scope="module")
def client(yard: Service) -> Any:
    return yard.sdk_token()


# --- what every server has ---------------------------------------------------------------------------


@needs_program
@pytest.mark.parametrize("form", list(FORMS))
def test_every_parameter_is_in_force_on_every_server_when_the_request_is_answered(
    caches: dict[str, Cache], client: Any, form: str
) -> None:
    cache, chosen = caches[form], CHOSEN[form] | {"active-expire-num": "1000"}
    before = listed(client, cache)
    assert (before.config_status, before.status) == ("SUCCESS", "RUNNING")
    assert {one.param_name: one.param_id for one in before.redis_config} == {
        one.param_name: IDS[one.param_name] for one in before.redis_config
    }
    assert all(one.param_value == one.default_value for one in before.redis_config)
    change(client, cache, **chosen)
    assert all_have(cache, in_force(form)) == {}
    after = listed(client, cache)
    assert {one.param_name: one.param_value for one in after.redis_config}.items() >= chosen.items()
    assert after.config_status == "SUCCESS"
    assert after.config_time > before.config_time
    raw = cache.http("GET", "/configs").json()["redis_config"]
    assert all(one["need_restart"] is False for one in raw)  # Terraform reads it, the SDK does not
    assert listed(client, cache).redis_config == after.redis_config  # and nothing drifts


@needs_program
@pytest.mark.parametrize("form", ["ha", "cluster", "ha_rw_split"])
def test_they_hold_on_a_replica_that_comes_later_after_a_failover_and_a_restart_of_the_service(
    yard: Service, caches: dict[str, Cache], client: Any, form: str
) -> None:
    cache, chosen = caches[form], CHOSEN[form] | {"active-expire-num": "1000"}
    change(client, cache, **chosen)
    if form in ("ha", "cluster"):
        resized(client, cache, size(3, form, change_type="createReplication"))
        assert all_have(cache, in_force(form)) == {}
    with inside(cache) as known:
        shard, old = next(iter(known.masters.items()))
        victim = next(node for node in known.nodes if node.id == old)
        assert victim.seen_pid is not None
        os.kill(victim.seen_pid, signal.SIGKILL)
        until(lambda: known.masters[shard] != old, seconds=60, what="another master")
    yard.kill()
    yard.start()

    def same() -> bool:
        return not all_have(cache, in_force(form))

    until(same, seconds=60, what="all servers to be back", pause=0.1)
    assert values(client, cache).items() >= chosen.items()


def test_appendonly_can_be_switched_off_and_on_while_the_servers_run(yard: Service, client: Any) -> None:
    with made(yard, spec_code=HA) as cache:
        with cache.client() as link:
            link.set("a", "1")
            assert link.wait(1, 10_000) == 1
        change(client, cache, appendonly="no")
        assert in_servers(cache, "appendonly") == ["no", "no"]
        os.kill(pid_of(cache), signal.SIGKILL)  # it would come back with nothing

        def there() -> bool:
            with cache.client() as link:
                return bool(link.get("a") == "1" and link.set("b", "2"))

        until(there, seconds=60, what="the replica to serve what it has", pause=0.05)
        cache.until_running()
        until(
            lambda: in_servers(cache, "appendonly") == ["no", "no"],
            seconds=60,
            what="both to be back",
            pause=0.05,
        )
        change(client, cache, appendonly="yes")
        assert in_servers(cache, "appendonly") == ["yes", "yes"]


def test_clients_and_reserved_memory_follow_the_flavor(yard: Service, client: Any) -> None:
    with made(yard, spec_code=HA) as cache:
        change(client, cache, maxclients="5000", reserved_memory="100")
        wanted = {"maxclients": "5000", "maxmemory": str(28 * MB)}
        assert all_have(cache, wanted) == {}
        resized(client, cache, {"spec_code": "redis.ha.xu1.tiny.r2.256", "new_capacity": 0.25})
        assert all_have(cache, wanted | {"maxmemory": str(156 * MB)}) == {}
        with refused(400, "DCS.4066", "reserved-memory", "204"):
            change(client, cache, reserved_memory="205")
        change(client, cache, reserved_memory="0", maxclients="10000")
        assert all_have(cache, {"maxclients": "10000", "maxmemory": str(256 * MB)}) == {}


def test_memory_that_is_used_cannot_be_reserved(yard: Service, client: Any) -> None:
    with made(yard, spec_code=SINGLE) as cache:
        with cache.client() as link:
            for number in range(50):
                link.set(f"large-{number}", "x" * MB)

        def known() -> bool:
            return int(cache.show()["used_memory"]) >= 50

        until(known, seconds=30, what="the service to know that memory is used", pause=0.1)
        with refused(400, "DCS.4105", "reserved-memory"):
            change(client, cache, reserved_memory="100")
        assert in_servers(cache, "maxmemory") == [str(128 * MB)]


@needs_program
def test_a_clusters_clients_are_shared_out_to_servers_and_to_proxies(
    caches: dict[str, Cache], client: Any
) -> None:
    change(client, caches["cluster"], maxclients="6000")
    assert set(in_servers(caches["cluster"], "maxclients")) == {"2000"}
    change(client, caches["proxy"], maxclients="4000")
    assert set(in_servers(caches["proxy"], "maxclients")) == {str(20_000 // 3)}
    assert {f"maxclients = {4000 // count}" in text for count, text in proxy_files(caches["proxy"])} == {True}


# --- what is not CONFIG ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["single", "ha"])
def test_a_read_only_instance_refuses_writes_of_clients_that_are_in(
    caches: dict[str, Cache], client: Any, form: str
) -> None:
    cache = caches[form]
    with cache.client() as link:
        link.set("a", "1")
        change(client, cache, master_read_only="yes")
        for write in (("SET", "a", "2"), ("DEL", "a"), ("EVAL", "return redis.call('set','a','2')", "0")):
            with pytest.raises(redis.ResponseError, match=r"permission|can't run"):
                link.execute_command(*write)
        assert link.get("a") == "1"
        change(client, cache, master_read_only="no")
        assert link.set("a", "2")


@pytest.mark.parametrize("writes", [False, True])
def test_a_script_that_runs_too_long_is_ended_if_asked_for(yard: Service, client: Any, writes: bool) -> None:
    with made(yard, spec_code=HA) as cache:
        change(client, cache, auto_kill_timeout_lua_process="yes", lua_time_limit="100")
        first = "redis.call('set', 'half', '1') " if writes else ""
        with cache.client() as link, suppress(redis.ConnectionError):
            link.set("a", "1")
            link.wait(1, 1000)
            with pytest.raises(redis.ResponseError, match=r"[Ss]cript killed"):
                link.eval(first + "while true do end", 0)
            assert not writes

        def serves() -> bool:
            with cache.client() as link:
                return (link.get("a"), link.get("half")) == ("1", None)

        until(serves, seconds=60, what="the instance to serve again, without what was half done", pause=0.05)
        cache.until_running()


def test_a_script_that_nobody_wants_ended_runs_on(yard: Service, client: Any) -> None:
    with made(yard, spec_code=SINGLE) as cache:
        change(client, cache, lua_time_limit="100")
        script = (
            "local t = redis.call('time') repeat local n = redis.call('time') until n[1] - t[1] >= 3 return 1"
        )
        with cache.client() as link:
            assert link.eval(script, 0) == 1


# --- refusals, and what one server refuses ------------------------------------------------------------


@needs_program
@pytest.mark.parametrize(
    ("form", "chosen", "code", "named"),
    [
        ("single", {"timeout": "7201"}, "DCS.4066", "timeout"),
        ("single", {"timeout": "soon"}, "DCS.4066", "timeout"),
        ("single", {"maxmemory_policy": "lru"}, "DCS.4066", "maxmemory-policy"),
        ("single", {"notify_keyspace_events": "KAx"}, "DCS.4066", "notify-keyspace-events"),
        ("single", {"appendonly": "no"}, "DCS.4800", "appendonly"),
        ("single", {"multi_db": "yes"}, "DCS.4800", "multi-db"),
        ("single", {"no_such_thing": "1"}, "DCS.4800", "no-such-thing"),
        ("single", {"list_max_ziplist_entries": "1"}, "DCS.4800", "list-max-ziplist-entries"),
        ("single", {"timeout": "7", "slowlog_max_len": "1001"}, "DCS.4066", "slowlog-max-len"),
        ("ha", {"maxclients": "999"}, "DCS.4066", "maxclients"),
        ("cluster", {"active_expire_num": "19"}, "DCS.4066", "active-expire-num"),
        ("cluster", {"reserved_memory": "1"}, "DCS.4800", "reserved-memory"),
        ("proxy", {"timeout": "1"}, "DCS.4800", "timeout"),
        ("proxy", {"master_read_only": "yes"}, "DCS.4800", "master-read-only"),
        (
            "proxy",
            {"support_dispatch_to_replica_list": "GET"},
            "DCS.4066",
            "support-dispatch-to-replica-list",
        ),
        ("ha_rw_split", {"maxclients": "10000"}, "DCS.4800", "maxclients"),
        ("ha_rw_split", {"proxy_slowlog_log_slower_than": "29999"}, "DCS.4066", "proxy-slowlog"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    caches: dict[str, Cache], client: Any, form: str, chosen: dict[str, str], code: str, named: str
) -> None:
    cache = caches[form]
    before = (values(client, cache), len(cache.tasks()))
    with refused(400, code, named):
        change(client, cache, **chosen)
    with refused(400, code, named):
        begin(client, cache, **chosen)
    assert (values(client, cache), len(cache.tasks())) == before


def test_a_name_needs_its_own_id_and_stands_there_once(caches: dict[str, Cache], client: Any) -> None:
    cache = caches["single"]

    def put(*asked: tuple[str, str, str]) -> None:
        redis_config = [
            dcs.RedisConfig(param_id=number, param_name=name, param_value=value)
            for number, name, value in asked
        ]
        request = dcs.UpdateConfigurationsRequest(
            instance_id=cache.id, body=dcs.ModifyRedisConfigBody(redis_config=redis_config)
        )
        client.update_configurations(request)

    with refused(400, "DCS.4800", "redis_config[0].param_id", "is 1"):
        put(("2", "timeout", "1"))
    with refused(400, "DCS.4800", "redis_config[1].param_name", "twice"):
        put(("1", "timeout", "1"), ("1", "timeout", "2"))


def test_values_that_are_in_force_are_a_job_and_no_record_and_none_at_all_is_no_job(
    caches: dict[str, Cache], client: Any
) -> None:
    cache = caches["single"]
    change(client, cache, timeout="5")
    recorded = len(histories(client, cache))
    change(client, cache, timeout="5")
    assert change_by_job(client, cache, timeout="5") == "SUCCESS"
    assert begin(client, cache) is None  # 204
    assert len(histories(client, cache)) == recorded


@pytest.fixture
def pair(yard: Service) -> Iterator[Cache]:
    with made(yard, spec_code=HA) as cache:
        yield cache


@contextmanager
def no_room_for_a_file(cache: Cache) -> Iterator[str]:
    """The replica of a pair cannot begin an append-only file: `appendonly yes` is refused. Its address."""
    with inside(cache) as known:
        replica = next(node for node in known.nodes if node.id not in known.masters.values())
    where = cache.service.data / "nodes" / replica.id / "appendonlydir"
    shutil.rmtree(where, ignore_errors=True)
    where.touch()  # a file where a directory should be
    try:
        yield replica.ip
    finally:
        where.unlink()


def test_what_one_server_refuses_is_undone_on_all_at_once(pair: Cache, client: Any) -> None:
    change(client, pair, appendonly="no", timeout="100")
    with inside(pair) as known:
        pids = {node.seen_pid for node in known.nodes}
    with no_room_for_a_file(pair):
        began = time.monotonic()
        assert change_by_job(client, pair, appendonly="yes", timeout="200") == "FAIL"
        assert time.monotonic() - began < 30  # a server that is away would be waited for longer
    wanted = {"appendonly": "no", "timeout": "100"}
    assert all_have(pair, wanted) == {}
    assert values(client, pair).items() >= wanted.items()
    assert [one.status for one in histories(client, pair)] == ["FAILURE", "SUCCESS"]
    assert listed(client, pair).config_status == "FAILURE"
    with inside(pair) as known:
        assert {node.seen_pid for node in known.nodes} == pids
    change(client, pair, appendonly="yes")
    assert all_have(pair, {"appendonly": "yes", "timeout": "100"}) == {}
    assert listed(client, pair).config_status == "SUCCESS"


def test_one_change_at_a_time_and_it_goes_on_after_the_service_was_killed(yard: Service, client: Any) -> None:
    with made(yard) as alone:
        with frozen(pid_of(alone)):  # without a replica it is not ended, so the task is under way
            job_id = begin(client, alone, timeout="300")
            assert job_id is not None
            assert listed(client, alone).config_status == "UPDATING"
            with refused(400, "DCS.4114"):
                change(client, alone, timeout="400")
            yard.kill()
        yard.start()
        assert job(alone, job_id) == "SUCCESS"
        assert all_have(alone, {"timeout": "300"}) == {}
        assert values(client, alone)["timeout"] == "300"


def test_of_many_at_once_each_is_done_or_told_to_wait(pair: Cache, client: Any) -> None:
    def one(number: int) -> str | None:
        try:
            change(client, pair, timeout=str(number), slowlog_max_len=str(number))
        except ClientRequestException as error:
            if error.error_code != "DCS.4114":
                raise
            return None
        return str(number)

    with ThreadPoolExecutor(8) as pool:
        done = [number for number in pool.map(one, range(1, 17)) if number]
    assert done
    now = values(client, pair)
    assert now["timeout"] == now["slowlog-max-len"]
    assert now["timeout"] in done
    assert all_have(pair, {"timeout": now["timeout"], "slowlog-max-len": now["timeout"]}) == {}
    assert sorted(one.status for one in histories(client, pair)[:10]) == ["SUCCESS"] * min(10, len(done))


# --- drift and records -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["single", "cluster"])
def test_what_somebody_changes_behind_the_services_back_is_put_right_and_logged(
    yard: Service, caches: dict[str, Cache], client: Any, form: str
) -> None:
    cache = caches[form]
    change(client, cache, slowlog_max_len="33")
    with inside(cache) as known:
        node = known.nodes[-1]
        known.call(node.ip, "CONFIG", "SET", "slowlog-max-len", "44", "hash-max-listpack-value", "45")

        def put_right() -> bool:
            return not all_have(cache, {"slowlog-max-len": "33"})

        until(put_right, seconds=60, what="the parameter to be put right", pause=0.05)
    lines = [line for line in yard.log().splitlines() if "parameters differed" in line]
    assert any(node.id in line and '"slowlog-max-len": ["44", "33"]' in line for line in lines), lines
    assert in_servers(cache, "hash-max-ziplist-value") == [
        values(client, cache)["hash-max-ziplist-value"]
    ] * len(in_servers(cache, "hash-max-ziplist-value"))
    assert listed(client, cache).config_status == "SUCCESS"


def test_what_cannot_be_put_right_is_shown(pair: Cache, client: Any) -> None:
    def shown() -> str:
        return str(listed(client, pair).config_status)

    assert shown() == "SUCCESS"
    with inside(pair) as known, no_room_for_a_file(pair) as replica:
        known.call(replica, "CONFIG", "SET", "appendonly", "no")
        until(lambda: shown() == "FAILURE", seconds=60, what="the drift to be shown", pause=0.1)
    until(lambda: shown() == "SUCCESS", seconds=60, what="it to be put right", pause=0.1)
    assert in_servers(pair, "appendonly") == ["yes", "yes"]


def test_changes_are_recorded_newest_first_with_what_was_changed(yard: Service, client: Any) -> None:
    with made(yard, spec_code=SINGLE) as cache:
        assert histories(client, cache) == []
        for number in range(3):
            change(client, cache, timeout=str(number + 1), slowlog_max_len="9")
        found = histories(client, cache)
        assert [(one.type, one.status) for one in found] == [("config_param", "SUCCESS")] * 3
        shown = detail(client, cache, found[-1].history_id)
        assert shown["redis_config"] == [
            {"param_id": "1", "param_name": "timeout", "old_value": "0", "new_value": "1"},
            {"param_id": "27", "param_name": "slowlog-max-len", "old_value": "128", "new_value": "9"},
        ]
        assert len(detail(client, cache, found[0].history_id)["redis_config"]) == 1
        page = client.list_config_histories(
            dcs.ListConfigHistoriesRequest(instance_id=cache.id, offset=1, limit=1)
        )
        assert (page.history_num, [one.history_id for one in page.histories]) == (3, [found[1].history_id])
        answer = cache.http("GET", "/config-histories/nope")
        assert (answer.status_code, answer.json()["error_code"]) == (404, "DCS.4001")
        assert cache.tasks()[0]["name"] == "modifyConfig"
        assert cache.tasks()[0]["details"]["updated_config_length"] == 1


def test_version_1_lists_and_changes_them_too(yard: Service, caches: dict[str, Cache], client: Any) -> None:
    path = f"/v1.0/{{p}}/instances/{caches['single'].id}/configs"
    asked = {
        "redis_config": [{"param_id": "2", "param_name": "maxmemory-policy", "param_value": "noeviction"}]
    }
    assert yard.http("PUT", path, json=asked).status_code == 204
    shown = yard.http("GET", path).json()
    assert (shown["config_status"], shown["status"]) == ("SUCCESS", "RUNNING")
    found = next(one for one in shown["redis_config"] if one["param_name"] == "maxmemory-policy")
    assert (found["param_id"], found["param_value"], found["value_type"]) == ("2", "noeviction", "Enum")
    assert in_servers(caches["single"], "maxmemory-policy") == ["noeviction"]
    asked["redis_config"][0]["param_value"] = "nope"
    refusal = yard.http("PUT", path, json=asked)
    assert refusal.status_code == 400
