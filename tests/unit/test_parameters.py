"""The catalog of parameters: who has which, what may be chosen, what that makes of servers and proxies."""

from typing import Any

import pytest

from cacheyard.domain import flavors, parameters
from cacheyard.domain.engines import SOLD
from cacheyard.domain.flavors import MODES, Flavor

CODES = {
    "single": "redis.single.xu1.tiny.128",
    "ha": "redis.ha.xu1.large.r2.1",
    "cluster": "redis.cluster.xu1.large.r2.8",
    "proxy": "redis.proxy.xu1.large.8",
    "ha_rw_split": "redis.ha.xu1.large.p2.4",
}
GB = 1 << 30


def flavor(mode: str) -> Flavor:
    found = flavors.find(CODES[mode])
    assert found is not None
    return found


def names(mode: str) -> set[str]:
    return {one.name for one in parameters.catalog("6.0", mode, flavor(mode))}


def one(name: str, mode: str) -> parameters.Parameter:
    found = parameters.find(name, "6.0", mode, flavor(mode))
    assert found is not None, name
    return found


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("timeout", "single ha cluster ha_rw_split"),
        ("maxmemory-policy", "single ha cluster proxy ha_rw_split"),
        ("appendfsync", "ha cluster proxy ha_rw_split"),
        ("appendonly", "ha cluster proxy ha_rw_split"),
        ("active-expire-num", "single ha cluster proxy ha_rw_split"),
        ("hash-max-ziplist-entries", "single ha cluster proxy ha_rw_split"),
        ("list-max-ziplist-entries", ""),
        ("latency-monitor-threshold", "single ha cluster ha_rw_split"),
        ("notify-keyspace-events", "single ha cluster ha_rw_split"),
        ("lua-time-limit", "single ha cluster proxy"),
        ("proto-max-bulk-len", "single ha cluster proxy"),
        ("maxclients", "single ha cluster proxy"),
        ("reserved-memory", "single ha"),
        ("master-read-only", "single ha cluster"),
        ("repl-backlog-size", "ha cluster proxy ha_rw_split"),
        ("client-output-buffer-slave-hard-limit", "ha cluster proxy ha_rw_split"),
        ("slowlog-log-slower-than", "single ha cluster proxy ha_rw_split"),
        ("auto-kill-timeout-lua-process", "ha cluster proxy ha_rw_split"),
        ("multi-db", "proxy"),
        ("dispatch-pubsub-to-fixed-shard", "proxy"),
        ("readonly-lua-route-to-slave-enabled", "ha_rw_split"),
        ("proxy-slowlog-max-len", "proxy ha_rw_split"),
        ("support-dispatch-to-replica-list", "proxy ha_rw_split"),
    ],
)
def test_each_type_has_the_documented_parameters(name: str, modes: str) -> None:
    assert {mode for mode in MODES if name in names(mode)} == set(modes.split())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", SOLD)
def test_ids_are_different_numbers_in_order_and_stay_the_documented_ones(mode: str, version: str) -> None:
    there = parameters.catalog(version, mode, flavor(mode))
    ids = [int(found.id) for found in there]
    assert ids == sorted(set(ids))
    documented = {"timeout": "1", "maxmemory-policy": "2", "set-max-intset-entries": "7", "maxclients": "11",
                  "reserved-memory": "12", "notify-keyspace-events": "13"}  # fmt: skip
    for found in there:
        assert documented.get(found.name, found.id) == found.id
        assert found.fault(found.default) is None, found
        assert found.description.endswith(".")


def test_without_a_flavor_what_depends_on_it_is_left_out() -> None:
    general = {found.name for found in parameters.catalog("7.0", "ha")}
    assert {"maxclients", "reserved-memory"}.isdisjoint(general)
    assert (
        parameters.absence("maxclients", "7.0", "ha") == "what it can be depends on the size of the instance"
    )
    assert (
        parameters.absence("multi-db", "7.0", "ha") == "instances of version 7.0 and type ha do not have it"
    )
    assert parameters.absence("nope", "7.0", "ha") == "there is no such parameter"
    assert parameters.catalog("3.0", "ha") == ()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("timeout", ["0", "7200", "007"], ["", "-1", "7201", "1.5", "1e3", " 1", "\u0661", "9" * 30, "no"]),
        ("maxmemory-policy", ["allkeys-lfu", "noeviction"], ["", "lru", "ALLKEYS-LFU"]),
        ("appendonly", ["yes", "no"], ["", "true", "Yes"]),
        (
            "notify-keyspace-events",
            ["", "Ex", "KEA", "KEg$lshzxe", "xE"],
            ["E", "A", "xl", "KAx", "Kt", "K x"],
        ),
        ("repl-backlog-size", ["16384", "1073741824"], ["16383", "1073741825"]),
        ("maxclients", ["1000", "50000"], ["999", "50001"]),
        ("reserved-memory", ["0", "819"], ["820"]),
        ("client-output-buffer-slave-hard-limit", ["0", str(GB)], [str(GB + 1)]),
    ],
)
def test_values_out_of_the_range_have_a_fault(name: str, good: list[str], bad: list[str]) -> None:
    parameter = one(name, "ha")
    assert [value for value in good if parameter.fault(value)] == []
    assert [value for value in bad if not parameter.fault(value)] == []


def test_a_list_of_commands_may_be_empty() -> None:
    parameter = one("support-dispatch-to-replica-list", "proxy")
    assert [parameter.fault(value) for value in ("", "KEYS")] == [None, None]
    assert parameter.fault("GET") == "it must be empty or KEYS"


def told(mode: str, **chosen: str) -> dict[str, str]:
    return parameters.for_servers(
        {name.replace("_", "-"): value for name, value in chosen.items()}, "6.0", flavor(mode)
    )


@pytest.mark.parametrize("mode", MODES)
def test_servers_are_told_all_of_it_so_that_nothing_of_another_type_stays(mode: str) -> None:
    others = [told(other).keys() - {"appendonly"} for other in MODES]
    assert all(found == others[0] for found in others)
    assert told(mode)["timeout"] == "0"


def test_servers_are_told_in_their_own_words() -> None:
    now = told("ha", hash_max_ziplist_entries="7", lua_time_limit="100", notify_keyspace_events="EKlx")
    assert now["hash-max-listpack-entries"] == "7"
    assert now["busy-reply-threshold"] == "100"
    assert now["notify-keyspace-events"] == "lxKE"
    assert "hash-max-ziplist-entries" not in now
    now = told(
        "ha", client_output_buffer_slave_hard_limit="9", client_output_buffer_limit_slave_soft_seconds="8"
    )
    assert (
        now["client-output-buffer-limit"] == f"normal 0 0 0 slave 9 {GB // 10} 8 pubsub 33554432 8388608 60"
    )
    assert "appendonly" not in told("single")
    assert told("ha_rw_split", timeout="77")["timeout"] == "0"  # the proxies cut clients off


@pytest.mark.parametrize(
    ("mode", "number", "effort", "hz"),
    [
        ("ha", "20", "1", "4"),
        ("ha", "1", "1", "1"),
        ("ha", "10", "1", "2"),
        ("ha", "21", "2", "4"),
        ("ha", "65", "10", "4"),
        ("ha", "130", "10", "8"),
        ("ha", "1000", "10", "62"),
        ("cluster", "20", "1", "10"),
        ("cluster", "1000", "10", "154"),
    ],
)
def test_expired_keys_are_looked_for_as_often_as_the_number_says(
    mode: str, number: str, effort: str, hz: str
) -> None:
    now = told(mode, active_expire_num=number)
    assert (now["active-expire-effort"], now["hz"]) == (effort, hz)


def test_the_nodes_of_a_cluster_do_not_tick_less_often() -> None:
    assert one("active-expire-num", "cluster").fault("19") == "it must be a number from 20 to 1000"
    assert one("active-expire-num", "single").fault("19") is None


def test_clients_are_shared_out_to_servers_and_those_of_proxies_are_not_theirs() -> None:
    def clients(mode: str, **chosen: str) -> int:
        return parameters.server_clients(chosen, "6.0", flavor(mode))

    assert [clients(mode) for mode in MODES] == [10_000] * 5
    assert clients("cluster", maxclients="30000") == 10_000
    assert clients("cluster", maxclients="3000") == 1000
    assert clients("proxy", maxclients="3000") == 10_000
    assert parameters.for_proxies({"maxclients": "3000"}, "6.0", flavor("proxy")).clients == 3000


def test_a_value_of_a_larger_flavor_is_brought_into_the_range_of_a_smaller_one() -> None:
    chosen = {"maxclients": "50000", "reserved-memory": "800", "multi-db": "yes"}
    small = flavor("single")
    assert parameters.server_clients(chosen, "6.0", small) == 10_000
    assert parameters.server_memory(chosen, "6.0", small) == (128 - 102) << 20
    assert parameters.server_memory(chosen, "6.0", flavor("ha_rw_split")) == 4 * GB
    assert "multi-db" not in parameters.values(chosen, "6.0", small)


def test_proxies_get_their_part() -> None:
    chosen = {
        "multi-db": "yes",
        "timeout": "9",
        "dispatch-pubsub-to-fixed-shard": "yes",
        "readonly-lua-route-to-slave-enabled": "yes",
        "proxy-slowlog-log-slower-than": "30000",
        "proxy-slowlog-max-len": "1",
        "support-dispatch-to-replica-list": "KEYS",
    }
    proxy = parameters.for_proxies(chosen, "6.0", flavor("proxy"))
    split = parameters.for_proxies(chosen, "6.0", flavor("ha_rw_split"))
    assert (proxy.databases, split.databases) == (256, 0)
    assert (proxy.idle_seconds, split.idle_seconds) == (0, 9)
    assert (proxy.pubsub_to_one_shard, split.pubsub_to_one_shard) == (True, False)
    assert (proxy.readers_scripts_to_replicas, split.readers_scripts_to_replicas) == (False, True)
    assert (proxy.slow_after_us, proxy.slow_entries, proxy.replica_commands) == (30_000, 1, ("keys",))


def test_writing_is_denied_and_scripts_are_ended_where_the_type_has_that() -> None:
    chosen: dict[str, Any] = {"master-read-only": "yes", "auto-kill-timeout-lua-process": "yes"}
    assert [parameters.tenant_rules(chosen, "6.0", mode) for mode in ("ha", "proxy")] == [("-@write",), ()]
    assert [parameters.kills_scripts(chosen, "6.0", mode) for mode in ("ha", "single")] == [True, False]
    assert parameters.tenant_rules({}, "6.0", "ha") == ()
