"""Redis Cluster instances: what their clients find, what is refused, and what a creation survives."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError
from support.caches import PASSWORD, Cache, body_for, frozen, made, refused, remove, sdk_body
from support.clusters import (
    SLOTS,
    at,
    check,
    client,
    fill,
    ips,
    masters,
    members,
    missing,
    seen_by,
    spec,
    until_whole,
)
from support.service import Service
from support.waiting import until

from cacheyard.domain.nodes import Role


@pytest.fixture(scope="module")
def cluster(yard: Service) -> Iterator[Cache]:
    """Three shards of a master and a replica; nobody here changes its shape."""
    with made(yard, name="cluster-1", az_codes=yard.facts.az_codes[1:], **spec("r2.4")) as cache:
        yield cache


def rows(service: Service) -> list[str]:
    answer = service.http("GET", "/v2/{p}/instances?limit=1000&include_failure=true").json()
    return sorted(each["instance_id"] for each in answer["instances"])


# --- what clients find -----------------------------------------------------------------------------


def test_a_cluster_client_writes_and_reads_any_key(cluster: Cache) -> None:
    written = fill(cluster, 300)
    assert missing(cluster, written) == []
    for one in masters(cluster):
        assert one.address is not None
        with at(cluster, one.address.ip) as link:
            size: Any = link.dbsize()
            assert size > 50  # a third each, roughly
    with closing(client(cluster)) as link:
        assert link.delete(*written) == 300


def test_redis_cli_finds_nothing_wrong(cluster: Cache) -> None:
    assert "All 16384 slots covered" in check(cluster)


def test_the_wrong_node_says_which_is_the_right_one(cluster: Cache) -> None:
    ends = [one.address.ip for one in masters(cluster) if one.address is not None]
    with at(cluster, ends[0]) as link:
        slot: Any = link.execute_command("CLUSTER", "KEYSLOT", "foo")
        right = next(one for one in masters(cluster) if any(a <= slot <= b for a, b in one.slots))
        wrong = next(ip for ip in ends if right.address is not None and ip != right.address.ip)
    with at(cluster, wrong) as link, pytest.raises(redis.ResponseError, match=r"^(MOVED )?\d+ 127\."):
        link.set("foo", "value")


def test_slots_are_balanced_within_one(cluster: Cache) -> None:
    held = [sum(last - first + 1 for first, last in one.slots) for one in masters(cluster)]
    assert sum(held) == SLOTS
    assert max(held) - min(held) <= 1


def test_every_node_sees_the_same_cluster(cluster: Cache) -> None:
    seen = seen_by(cluster)
    assert len(seen) == 6
    pictures = {
        frozenset((one.engine_id, one.address, one.role, one.master_id, one.slots) for one in each)
        for each in seen.values()
    }
    assert len(pictures) == 1


def test_replicas_have_their_masters_data(cluster: Cache) -> None:
    with closing(client(cluster)) as link:
        link.set("copied", "value")
    seen = next(iter(seen_by(cluster).values()))
    replicas = [one.address.ip for one in seen if one.role is Role.REPLICA and one.address is not None]

    def copies() -> int:
        found = 0
        for ip in replicas:
            with at(cluster, ip) as link:
                info: Any = link.info("replication")
                assert info["master_link_status"] == "up"
                assert link.readonly()
                with suppress(redis.ResponseError):  # another shard's
                    found += link.get("copied") == "value"
        return found

    until(lambda: copies() == 1, seconds=10, what="the copy of a key")


def test_a_node_has_its_shards_share_of_memory_and_clients(cluster: Cache) -> None:
    for ip in ips(cluster):
        with at(cluster, ip) as link:
            info: Any = link.info()
            assert info["maxmemory"] == (4096 // 3) << 20
            assert info["maxclients"] == 10_000
            assert info["cluster_enabled"] == 1
            assert link.config_get("appendonly") == {"appendonly": "yes"}
            assert link.config_get("cluster-announce-ip") == {"cluster-announce-ip": ip}


def test_a_cluster_has_one_database(cluster: Cache) -> None:
    assert cluster.show()["db_number"] == 1
    with at(cluster, ips(cluster)[0]) as link, pytest.raises(redis.ResponseError):
        link.select(1)


@pytest.mark.parametrize("version", ["4.0", "5.0", "6.0", "7.0"])
def test_every_engine_version_has_clusters(yard: Service, version: str) -> None:
    """Those below 7.0 are served by an older server if the machine has one."""
    with made(yard, engine_version=version, **spec("r2.4")) as cache:
        until_whole(cache)
        with at(cache, ips(cache)[0]) as link:
            info: Any = link.info("server")
            assert cache.show()["internal_version"] == info["redis_version"]
        assert missing(cache, fill(cache, 30)) == []


@pytest.mark.parametrize(
    ("flavor", "shards", "nodes"),
    [("r1.8", 3, 1), ("r3.16", 3, 3), ("r4.4", 3, 4), ("r5.24", 3, 5), ("r2.48", 6, 2), ("r2.s1.8", 8, 2)],
)
def test_a_flavor_has_the_shards_and_nodes_that_it_says(
    yard: Service, flavor: str, shards: int, nodes: int
) -> None:
    with made(yard, az_codes=yard.facts.az_codes, **spec(flavor)) as cache:
        shown = cache.show()
        assert (shown["sharding_count"], shown["replica_count"]) == (shards, nodes)
        until_whole(cache)
        seen = next(iter(seen_by(cache).values()))
        assert len(seen) == shards * nodes
        followed = [str(one.master_id) for one in seen if one.role is Role.REPLICA]
        assert sorted(followed) == sorted(
            one.engine_id for one in seen if one.slots for _ in range(nodes - 1)
        )
        assert "All 16384 slots covered" in check(cache)


def test_a_cluster_may_be_large(yard: Service) -> None:
    with made(yard, **spec("r1.192")) as cache:
        until_whole(cache)
        assert len(masters(cache)) == 24
        assert missing(cache, fill(cache, 100)) == []


def test_several_clusters_can_be_asked_for_at_once(yard: Service) -> None:
    with made(yard, count=2, name="several", **spec("r1.4")) as caches:
        assert not set(ips(caches[0])) & set(ips(caches[1]))
        for cache in caches:
            until_whole(cache)
            assert missing(cache, fill(cache, 30)) == []


def test_when_a_shard_is_gone_the_others_serve_on(yard: Service) -> None:
    with made(yard, **spec("r1.4")) as cache:
        written = fill(cache, 90)
        first, *others = [one.address.ip for one in masters(cache) if one.address is not None]
        with at(cache, first) as link:
            pid: Any = link.info("server")["process_id"]
        with frozen(pid):

            def known() -> bool:
                with at(cache, others[0]) as link:
                    return any(one.flags & {"fail", "fail?"} for one in members(link))

            until(known, seconds=20, what="the others to know", pause=0.1)
            for ip in others:
                with at(cache, ip) as link:
                    keys: Any = link.keys("*")
                    assert keys
                    assert all(link.get(key) == written[key] for key in keys)
                    assert link.set(keys[0], written[keys[0]])


# --- what the API shows ----------------------------------------------------------------------------


def test_the_first_shards_nodes_are_in_the_zones_in_their_order(yard: Service, cluster: Cache) -> None:
    answer = cluster.http("GET", "/logical-nodes")
    assert answer.status_code == 200, answer.text
    first = [node for node in answer.json()["nodes"] if node["group_name"] == "group-0"]
    placed = {node["node_type"]: node["az_code"] for node in first}
    assert placed == {"master": yard.facts.az_codes[1], "slave": yard.facts.az_codes[2]}


def test_a_cluster_is_shown_with_all_its_addresses(yard: Service, cluster: Cache) -> None:
    shown = cluster.show()
    [listed] = yard.http("GET", f"/v2/{{p}}/instances?instance_id={cluster.id}").json()["instances"]
    [old] = yard.http("GET", f"/v1.0/{{p}}/instances?id={cluster.id}").json()["instances"]
    addresses = {one.address.ip for one in seen_by(cluster)[ips(cluster)[0]] if one.address is not None}
    assert len(ips(cluster)) == 6
    for each in (shown, listed, old):
        assert set(each["ip"].split(",")) == addresses
        assert each["backend_addrs"] == ",".join(f"{ip}:6379" for ip in each["ip"].split(","))
    assert shown["az_codes"] == yard.facts.az_codes[1:]
    assert (shown["capacity"], shown["max_memory"]) == (4, 4096)
    assert (shown["cache_mode"], shown["sharding_count"], shown["replica_count"]) == ("cluster", 3, 2)


def test_a_cluster_is_found_by_any_of_its_addresses(yard: Service, cluster: Cache) -> None:
    for ip in ips(cluster):
        found = yard.http("GET", f"/v2/{{p}}/instances?ip={ip}").json()
        assert [each["instance_id"] for each in found["instances"]] == [cluster.id]


def test_figures_are_the_sum_of_all_shards(yard: Service, cluster: Cache) -> None:
    with closing(client(cluster)) as link:
        link.flushall(target_nodes=RedisCluster.PRIMARIES)
    fill(cluster, 90, size=1 << 19)
    sdk = yard.sdk()

    def figures() -> Any:
        answer = sdk.list_statistics_of_running_instances(dcs.ListStatisticsOfRunningInstancesRequest())
        return next(each for each in answer.statistics if each.instance_id == cluster.id)

    seen: Any = until(lambda: (f := figures()).keys == 90 and f, seconds=10, what="the figures of 90 keys")
    assert 45 <= seen.used_memory < 90
    assert seen.max_memory == 4096
    assert seen.cmd_set_count >= 90
    assert cluster.show()["used_memory"] == seen.used_memory


# --- who may do what -------------------------------------------------------------------------------

FORBIDDEN = [
    "MEET 127.0.0.1 6379",
    "FORGET {id}",
    "SETSLOT 0 STABLE",
    "SETSLOT 0 NODE {id}",
    "ADDSLOTS 0",
    "ADDSLOTSRANGE 0 1",
    "DELSLOTS 0",
    "DELSLOTSRANGE 0 1",
    "FLUSHSLOTS",
    "BUMPEPOCH",
    "SAVECONFIG",
    "SET-CONFIG-EPOCH 1",
    "REPLICATE {id}",
    "FAILOVER",
    "FAILOVER TAKEOVER",
    "COUNT-FAILURE-REPORTS {id}",
    "RESET SOFT",
]
ALLOWED = ["SLOTS", "NODES", "INFO", "KEYSLOT key", "MYID", "COUNTKEYSINSLOT 1", "GETKEYSINSLOT 1 10"]
ALLOWED_7 = ["SHARDS", "LINKS"]


def test_a_tenant_cannot_change_the_cluster_on_any_node(cluster: Cache) -> None:
    before = seen_by(cluster)
    for ip, seen in before.items():
        other = next(one.engine_id for one in seen if "myself" not in one.flags)
        with at(cluster, ip) as link:
            for command in FORBIDDEN:
                with pytest.raises(NoPermissionError):
                    link.execute_command("CLUSTER", *command.format(id=other).split())
            with pytest.raises(NoPermissionError):
                link.execute_command("MIGRATE", "127.0.0.1", "1", "key", "0", "10")
    check(cluster)


def test_a_tenant_may_ask_every_node_where_things_are(cluster: Cache) -> None:
    new = cluster.show()["internal_version"] >= "7"
    for ip in ips(cluster):
        with at(cluster, ip) as link:
            for command in ALLOWED + (ALLOWED_7 if new else []):
                assert link.execute_command("CLUSTER", *command.split()) is not None
            for command in ("ASKING", "READONLY", "READWRITE"):
                assert link.execute_command(command)


def test_a_password_is_changed_on_every_node(yard: Service) -> None:
    with made(yard, **spec("r2.4")) as cache:
        written = fill(cache, 10)
        answer = cache.http(
            "PUT", "/password", json={"old_password": PASSWORD, "new_password": "Cache-yard-2"}
        )
        assert answer.json()["result"] == "success"
        cache.until_running()
        for ip in ips(cache):
            with at(cache, ip, "Cache-yard-2") as link:
                assert link.ping()
            with pytest.raises(redis.AuthenticationError), at(cache, ip) as link:
                link.ping()
        answer = cache.http("POST", "/password/reset", json={"no_password_access": True})
        assert answer.status_code == 200, answer.text
        cache.until_running()
        with closing(client(cache, None)) as free:
            assert all(free.get(key) == value for key, value in written.items())


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"private_ip": "127.127.127.127"}, "DCS.4800", "private_ip"),
        ({"port": 55_536}, "DCS.4800", "port"),
        ({"az_codes": ["nowhere-1a"]}, "DCS.4042", "az_codes"),
        ({"capacity": 8}, "DCS.4012", "capacity"),
        ({"spec_code": "redis.cluster.xu1.large.r6.4"}, "DCS.4927", "spec_code"),
        ({"spec_code": "redis.cluster.xu1.large.r2.s3.4"}, "DCS.4927", "spec_code"),
        ({"engine_version": "3.0"}, "DCS.4008", "engine_version"),
    ],
)
def test_what_cannot_be_is_refused_and_makes_nothing(
    yard: Service, changes: dict[str, Any], code: str, named: str
) -> None:
    before, wanted = rows(yard), spec("r2.4") | changes
    with refused(400, code, named):
        yard.sdk().create_instance(dcs.CreateInstanceRequest(body=sdk_body(yard, **wanted)))
    assert rows(yard) == before


def test_version_1_refuses_a_chosen_address_too(yard: Service) -> None:
    before = rows(yard)
    body = body_for(yard, private_ips=["127.127.127.127"], product_id="OTC_DCS_CL", **spec("r2.4"))
    zones = yard.http("GET", "/v1.0/availableZones").json()["available_zones"]
    body |= {"available_zones": [zones[0]["id"]], "spec_code": None}
    answer = yard.http("POST", "/v1.0/{p}/instances", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "111400800")
    assert "private_ip" in answer.json()["error"]["message"]
    assert rows(yard) == before


def test_the_largest_port_can_be_had_and_not_a_larger_one(yard: Service) -> None:
    with made(yard, port=55_535, **spec("r1.4")) as cache:
        until_whole(cache)
        answer = cache.http("PUT", json={"port": 60_000})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
        assert cache.show()["port"] == 55_535


def test_more_memory_than_there_is_is_not_promised(service: Service) -> None:
    """All nodes count, and flavors that do not fit have no zones."""
    before, sdk = rows(service), service.sdk()
    with refused(400, "DCS.4054"):
        sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service, **spec("r5.1024"))))
    assert rows(service) == before
    offered = sdk.list_flavors(dcs.ListFlavorsRequest(cache_mode="cluster", cpu_type="x86_64")).flavors
    nodes = {each.spec_code: each.tenant_ip_count for each in offered}
    assert nodes["redis.cluster.xu1.large.r5.1024"] == 640
    zones = {each.spec_code: each.flavors_available_zones[0].az_codes for each in offered}
    assert not zones["redis.cluster.xu1.large.r5.1024"]


def test_a_subnet_with_too_few_addresses_is_refused_and_none_is_taken(yard: Service) -> None:
    start = yard.facts.cidr.rsplit(".", 2)[0] + ".200"
    asked = {"name": "small", "cidr": f"{start}.0/28", "gateway_ip": f"{start}.1"}
    answer = yard.http("POST", "/v1/{p}/subnets", json={"subnet": asked | {"vpc_id": yard.facts.vpc_id}})
    assert answer.status_code == 200, answer.text
    small, before = answer.json()["subnet"]["id"], rows(yard)
    with refused(400, "DCS.4911"):
        body = sdk_body(yard, subnet_id=small, **spec("r5.4"))  # 15 nodes, 13 addresses
        yard.sdk().create_instance(dcs.CreateInstanceRequest(body=body))
    assert rows(yard) == before
    with made(yard, subnet_id=small, **spec("r1.4")) as cache:
        assert len(ips(cache)) == 3
    gone = yard.http("DELETE", f"/v1/{{p}}/vpcs/{yard.facts.vpc_id}/subnets/{small}")
    assert gone.status_code == 204


def test_version_1_makes_clusters(yard: Service) -> None:
    zones = yard.http("GET", "/v1.0/availableZones").json()["available_zones"]
    body = body_for(yard, product_id="OTC_DCS_CL", capacity=8, spec_code=None, az_codes=None)
    answer = yard.http("POST", "/v1.0/{p}/instances", json=body | {"available_zones": [zones[0]["id"]]})
    assert answer.status_code == 200, answer.text
    cache = Cache(yard, answer.json()["instance_id"])
    try:
        assert cache.until_running()["spec_code"] == "redis.cluster.xu1.large.r2.8"
        old = yard.http("GET", f"/v1.0/{{p}}/instances/{cache.id}").json()
        assert (old["cache_mode"], old["sharding_count"], old["db_number"]) == ("cluster", 3, 1)
        assert old["product_id"] == "redis.cluster.xu1.large.r2.8-h"
        until_whole(cache)
    finally:
        remove(cache)


# --- what a creation survives ----------------------------------------------------------------------


def test_an_address_that_a_stranger_uses_fails_the_creation_and_nothing_is_left(yard: Service) -> None:
    with made(yard, **spec("r1.4")) as cache:
        taken = ips(cache)[1]
    before = set(yard.processes())
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind((taken, 16_379))  # not even the port itself: where nodes talk to each other
        stranger.listen()
        answer = yard.http("POST", "/v2/{p}/instances", json=body_for(yard, **spec("r1.4")))
        failed = Cache(yard, answer.json()["instances"][0]["instance_id"])
        assert taken in ips(failed)
        until(lambda: failed.show()["status"] != "CREATING", seconds=60, what="the creation to end")
        assert failed.show()["status"] == "CREATEFAILED"
        until(lambda: set(yard.processes()) <= before, seconds=10, what="its servers to be gone")
        [task] = failed.tasks()
        assert (task["name"], task["status"]) == ("create", "FAILED")
    remove(failed)
    with made(yard, **spec("r1.4")) as cache:
        assert taken in ips(cache)


@pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.2, 0.3])
def test_a_creation_goes_on_after_kill_9(yard: Service, after: float) -> None:
    answer = yard.http("POST", "/v2/{p}/instances", json=body_for(yard, **spec("r2.4")))
    cache = Cache(yard, answer.json()["instances"][0]["instance_id"])
    time.sleep(after)  # wherever that is
    yard.kill()
    yard.start()
    try:
        cache.until_running()
        until_whole(cache)
        check(cache)
        assert missing(cache, fill(cache, 30)) == []
    finally:
        remove(cache)


def test_a_cluster_outlives_the_service_and_comes_back_with_its_data(yard: Service) -> None:
    with made(yard, **spec("r2.4")) as cache:
        written = fill(cache, 100)
        with closing(client(cache)) as link:
            yard.kill()
            assert all(link.get(key) == value for key, value in written.items())
        yard.start()
        assert cache.show()["status"] == "RUNNING"
        yard.down(instances=True)
        assert yard.processes() == {}
        yard.start()
        until_whole(cache)
        assert missing(cache, written) == []


def test_a_deleted_cluster_leaves_no_process_and_frees_its_addresses(yard: Service) -> None:
    before = set(yard.processes())
    with made(yard, **spec("r2.4")) as cache:
        had = ips(cache)
        assert len(set(yard.processes()) - before) >= 6
    assert set(yard.processes()) <= before
    with made(yard, **spec("r2.4")) as cache:
        assert ips(cache) == had
