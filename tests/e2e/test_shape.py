"""Shards, nodes, dimensions and priorities: what the API says of them is what the servers are."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest
from huaweicloudsdkdcs import v2 as dcs
from redis.cluster import RedisCluster
from support.caches import HA, PASSWORD, Cache, body_for, made, pid_of, refused
from support.service import Service
from support.waiting import until

KINDS: dict[str, dict[str, Any]] = {
    "single": {},
    "ha": {"spec_code": HA.replace("r2", "r3")},
    "cluster": {"spec_code": "redis.cluster.xu1.large.r2.4", "capacity": 4},
}
UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def caches(yard: Service) -> Iterator[dict[str, Cache]]:
    """One of each type, in two zones."""
    zones = yard.facts.az_codes[:2]
    with (
        made(yard, name="a-single", az_codes=zones[:1]) as single,
        made(yard, name="a-pair", az_codes=zones, **KINDS["ha"]) as ha,
        made(yard, name="a-cluster", az_codes=zones, **KINDS["cluster"]) as cluster,
    ):
        yield {"single": single, "ha": ha, "cluster": cluster}


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest, caches: dict[str, Cache]) -> Cache:
    return caches[request.param]


def groups(dcs_client: Any, cache: Cache) -> list[Any]:
    answer = dcs_client.list_group_replication_info(dcs.ListGroupReplicationInfoRequest(instance_id=cache.id))
    assert answer.group_count == len(answer.group_list)
    return list(answer.group_list)


def nodes(dcs_client: Any, cache: Cache) -> list[Any]:
    answer = dcs_client.show_nodes_information(dcs.ShowNodesInformationRequest(instance_id=cache.id))
    assert answer.instance_id == cache.id
    assert answer.total == len(answer.nodes)
    return list(answer.nodes)


def topology(dcs_client: Any, cache: Cache) -> list[Any]:
    answer = dcs_client.show_instance_topology(dcs.ShowInstanceTopologyRequest(instance_id=cache.id))
    return list(answer.redis_server)


def prioritize(dcs_client: Any, cache: Cache, group_id: str, node_id: str, weight: Any) -> Any:
    body = dcs.PriorityBody(slave_priority_weight=weight)
    request = dcs.UpdateSlavePriorityRequest(
        instance_id=cache.id, group_id=group_id, node_id=node_id, body=body
    )
    return dcs_client.update_slave_priority(request)


def role_at(cache: Cache, ip: str) -> str:
    with cache.client(host=ip, port=6379) as link:
        role: Any = link.role()
    return str(role[0])


# --- shards and nodes ------------------------------------------------------------------------------


def test_shards_are_listed_with_the_roles_that_the_servers_have(dcs_client: Any, cache: Cache) -> None:
    found, shown = groups(dcs_client, cache), cache.show()
    assert [group.group_name for group in found] == [f"group-{n}" for n in range(shown["sharding_count"])]
    everyone = [one for group in found for one in group.replication_list]
    assert len({one.node_id for one in everyone}) == len({one.replication_id for one in everyone})
    assert len({one.replication_ip for one in everyone}) == len(everyone)
    for group in found:
        roles = [one.replication_role for one in group.replication_list]
        assert roles == ["master"] + ["slave"] * (shown["replica_count"] - 1)
        for one in group.replication_list:
            assert one.replication_role == role_at(cache, one.replication_ip)
            assert (one.status, one.is_replication) == ("Active", False)


def test_the_first_shard_begins_in_the_zones_asked_for_in_their_order(dcs_client: Any, cache: Cache) -> None:
    """Terraform reads an instance's zones so."""
    first = groups(dcs_client, cache)[0].replication_list
    master = next(one.az_code for one in first if one.replication_role == "master")
    slave = next((one.az_code for one in first if one.replication_role == "slave"), master)
    assert list(dict.fromkeys([master, slave])) == cache.show()["az_codes"]


def test_the_nodes_of_one_shard_are_those_of_the_list_of_shards(dcs_client: Any, cache: Cache) -> None:
    for group in groups(dcs_client, cache):
        request = dcs.ShowReplicationStatesRequest(instance_id=cache.id, group_id=group.group_id)
        states = dcs_client.show_replication_states(request).body
        assert [one.to_dict() for one in states] == [one.to_dict() for one in group.replication_list]


def test_nodes_are_listed_by_shard_the_master_first(dcs_client: Any, cache: Cache) -> None:
    found = nodes(dcs_client, cache)
    by_shard = [(group, one) for group in groups(dcs_client, cache) for one in group.replication_list]
    for (group, replication), node in zip(by_shard, found, strict=True):
        assert (node.node_id, node.node_ip) == (replication.node_id, replication.replication_ip)
        assert (node.node_type, node.az_code) == (replication.replication_role, replication.az_code)
        assert (node.group_id, node.group_name) == (group.group_id, group.group_name)
        assert node.replication_id == replication.replication_id
        kind = "master" if node.node_type == "master" else "replica"
        assert node.name == f"({kind}){node.node_ip}"
        assert (node.node_role, node.status, node.priority_weight) == ("redis-server", "Active", 100)
    raw = cache.http("GET", "/logical-nodes").json()["nodes"]
    assert all(one["node_port"] == "6379" for one in raw)
    assert all((one["is_access"], one["is_remove_ip"]) == (True, False) for one in raw)


def test_a_node_has_one_name_for_metrics_wherever_it_is_listed(dcs_client: Any, cache: Cache) -> None:
    found = {node.node_id: node for node in nodes(dcs_client, cache)}
    names = {node.logical_node_id for node in found.values()}
    assert len(names) == len(found)
    assert not any("-" in name for name in names)
    listed = [one for group in groups(dcs_client, cache) for one in group.replication_list]
    for one in [*listed, *found.values()]:
        told = [(dimension.name, dimension.value) for dimension in one.dimensions]
        mine = found[one.node_id].logical_node_id
        assert told == [("dcs_instance_id", cache.id), ("dcs_cluster_redis_node", mine)]
    for node in topology(dcs_client, cache):
        assert node.dims.dim_k == "dcs_instance_id,dcs_cluster_redis_node"
        assert node.dims.dim_v == found[node.node_id].logical_node_id


def test_a_restart_changes_no_id(dcs_client: Any, caches: dict[str, Cache]) -> None:
    cache = caches["cluster"]
    before = [(node.node_id, node.logical_node_id, node.replication_id) for node in nodes(dcs_client, cache)]
    assert cache.act("restart").status_code == 200
    cache.until_running()
    after = [(node.node_id, node.logical_node_id, node.replication_id) for node in nodes(dcs_client, cache)]
    assert sorted(after) == sorted(before)


def test_nodes_of_all_instances_come_in_pages_until_an_empty_one(
    dcs_client: Any, yard: Service, caches: dict[str, Cache]
) -> None:
    pages, offset = [], 0
    while True:  # as Terraform does: no limit, an offset of as many as it has
        path = "/v2/{p}/instances-logical-nodes" + (f"?offset={offset}" if offset else "")
        pages.append(yard.http("GET", path).json())
        assert pages[-1]["count"] == len(caches)
        if not pages[-1]["instances"]:
            break
        offset += len(pages[-1]["instances"])
    assert pages[-1]["instances"] == []
    assert offset == len(caches)
    all_of_them = {one["instance_id"]: one for page in pages for one in page["instances"]}
    for cache in caches.values():
        mine = all_of_them[cache.id]
        assert mine["nodes"] == cache.http("GET", "/logical-nodes").json()["nodes"]
        assert mine["node_count"] == len(mine["nodes"])
    ids = []
    for number in range(4):
        request = dcs.BatchShowNodesInformationRequest(offset=number, limit=1)
        ids.append([one.instance_id for one in dcs_client.batch_show_nodes_information(request).instances])
    assert ids[3] == []
    assert {one for page in ids[:3] for one in page} == {cache.id for cache in caches.values()}


@pytest.mark.parametrize("query", ["offset=-1", "offset=one", "limit=0", "limit=1001"])
def test_a_page_that_cannot_be_is_refused(yard: Service, query: str) -> None:
    for path in ("instances-logical-nodes?", "dims/monitored-objects?dim_name=dcs_instance_id&"):
        answer = yard.http("GET", f"/v2/{{p}}/{path}{query}")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
        assert query.partition("=")[0] in answer.json()["error_msg"]


def test_an_instance_that_is_being_created_has_no_nodes_yet(dcs_client: Any, yard: Service) -> None:
    answer = yard.http("POST", "/v2/{p}/instances", json=body_for(yard, **KINDS["cluster"]))
    cache = Cache(yard, answer.json()["instances"][0]["instance_id"])
    early = cache.http("GET", "/logical-nodes").json()
    listed = yard.http("GET", "/v2/{p}/instances-logical-nodes").json()["instances"]
    status = cache.show()["status"]
    cache.until_running()
    assert len(nodes(dcs_client, cache)) == 6
    cache.http("DELETE")
    cache.until_gone()
    assert status == "CREATING"  # else the machine was too fast to tell
    assert early == {"instance_id": cache.id, "total": 0, "nodes": []}
    assert {"instance_id": cache.id, "node_count": 0, "nodes": []} in listed


def test_a_shard_that_the_instance_does_not_have_is_not_there(
    dcs_client: Any, caches: dict[str, Cache]
) -> None:
    others = groups(dcs_client, caches["single"])[0].group_id
    for group_id in (UNKNOWN, others):
        with refused(404, "DCS.4001", group_id):
            request = dcs.ShowReplicationStatesRequest(instance_id=caches["ha"].id, group_id=group_id)
            dcs_client.show_replication_states(request)


# --- figures ---------------------------------------------------------------------------------------


def write(cache: Cache, ip: str, count: int) -> None:
    """So many keys, every other one with a time to live. In a cluster all shards get some."""
    clustered = cache.show()["cache_mode"] == "cluster"
    client: Any = RedisCluster(host=ip, port=6379, password=PASSWORD) if clustered else cache.client()
    with closing(client) as link:
        for number in range(count):
            link.set(f"key-{number}", "x" * 100, px=600_000 if number % 2 else None)


def test_the_topology_has_what_the_servers_say(dcs_client: Any, cache: Cache) -> None:
    shown, there = cache.show(), {node.node_id: node for node in nodes(dcs_client, cache)}
    masters = {node.group_id: node for node in there.values() if node.node_type == "master"}
    for master in masters.values():
        with cache.client(host=master.node_ip, port=6379) as link:
            link.flushall()
    write(cache, next(iter(masters.values())).node_ip, 1000)

    def told(node_id: str) -> Any:
        return next(node for node in topology(dcs_client, cache) if node.node_id == node_id)

    for node in there.values():
        with cache.client(host=node.node_ip, port=6379) as link:
            keys, info = str(link.dbsize()), link.info()
        is_master = node.node_type == "master"

        def has_said(node_id: str = node.node_id, keys: str = keys, is_master: bool = is_master) -> Any:
            one = told(node_id)
            # replicas expire nothing, and so do not know how long their keys have
            return one if one.dbs.keys == keys and (one.dbs.avg_ttl != "0" or not is_master) else None

        one = until(has_said, seconds=15, what=f"the figures of {node.name}")
        assert 0 < int(one.dbs.expires) < int(keys)
        assert int(one.dbs.avg_ttl) <= 600_000
        assert (one.dbs.db_idx, one.db_num) == ("0", str(shown["db_number"]))
        assert int(one.used_memory) == pytest.approx(info["used_memory"] >> 20, abs=1)
        assert int(one.max_memory) == shown["max_memory"] // shown["sharding_count"]
        assert one.qps.isdecimal()
        assert float(one.bandwidth.input) >= 0
        assert float(one.bandwidth.output) >= 0
        assert (one.ip, one.port, one.node_type) == (node.node_ip, "6379", node.node_type)
        assert (one.node_name, one.group_id, one.status) == (node.name, node.group_id, "Active")
        related = (None, None) if is_master else (masters[node.group_id].node_ip, "6379")
        assert (one.relation_ip, one.relation_port) == related
    assert len(topology(dcs_client, cache)) == len(there)


def test_the_topology_names_the_databases_that_have_keys(dcs_client: Any, caches: dict[str, Cache]) -> None:
    cache = caches["single"]
    with cache.client() as link:
        link.flushall()
    for number in (2, 7):
        with cache.client(db=number) as link:
            link.set("key", "value")
    shown: Any = until(
        lambda: (n := topology(dcs_client, cache)[0]).dbs.db_idx == "2,7" and n,
        seconds=10,
        what="two databases",
    )
    assert (shown.dbs.keys, shown.dbs.expires, shown.dbs.avg_ttl) == ("2", "0", "0")


def test_what_no_redis_of_today_has_is_empty_in_the_topology(cache: Cache) -> None:
    shown = cache.http("GET", "/nodes").json()
    assert shown.pop("redis_server")
    others = ("cluster_proxy", "cluster_lvs", "cluster_admin", "master", "vpcendpoint", "elb")
    assert shown == {name: [] for name in others}


# --- monitored objects -----------------------------------------------------------------------------


def test_an_instance_is_monitored_and_the_nodes_of_a_cluster_are(dcs_client: Any, cache: Cache) -> None:
    request = dcs.ListMonitoredObjectsOfInstanceRequest(instance_id=cache.id, dim_name="dcs_instance_id")
    told, shown = dcs_client.list_monitored_objects_of_instance(request), cache.show()
    assert (told.router, told.total) == (["dcs_instance_id"], 1)
    only = [(one.dcs_instance_id, one.name, one.status) for one in told.instances]
    assert only == [(cache.id, shown["name"], "RUNNING")]
    if shown["cache_mode"] != "cluster":
        assert (told.children, told.dcs_cluster_redis_node) == ([], [])
        return
    child = (told.children[0].dim_name, told.children[0].dim_route)
    assert child == ("dcs_cluster_redis_node", "dcs_instance_id,dcs_cluster_redis_node")
    listed = [
        (one.dcs_instance_id, one.name, one.dcs_cluster_redis_node, one.status)
        for one in told.dcs_cluster_redis_node
    ]
    there = [(cache.id, node.name, node.logical_node_id, "RUNNING") for node in nodes(dcs_client, cache)]
    assert listed == there


def test_the_instances_of_a_dimension_come_in_pages(dcs_client: Any, caches: dict[str, Cache]) -> None:
    def page(**given: Any) -> Any:
        return dcs_client.list_monitored_objects(dcs.ListMonitoredObjectsRequest(**given))

    everyone = page(dim_name="dcs_instance_id")
    assert (everyone.router, everyone.total) == (["dcs_instance_id"], len(caches))
    children = ["dcs_cluster_redis_node", "dcs_cluster_proxy2_node"]
    assert [child.dim_name for child in everyone.children] == children
    names = {one.dcs_instance_id: (one.name, one.status) for one in everyone.instances}
    assert names == {cache.id: (cache.show()["name"], "RUNNING") for cache in caches.values()}
    pages = [page(dim_name="dcs_instance_id", offset=number, limit=2) for number in (0, 2, 4)]
    assert [len(one.instances) for one in pages] == [2, 1, 0]
    assert {one.dcs_instance_id for each in pages for one in each.instances} == set(names)
    none = page(dim_name="dcs_memcached_instance_id")
    assert (none.router, none.total, none.instances) == (["dcs_memcached_instance_id"], 0, [])


def test_a_dimension_that_is_none_is_refused(yard: Service, caches: dict[str, Cache]) -> None:
    for path in ("dims/monitored-objects", f"dims/monitored-objects/{caches['single'].id}"):
        for query in ("", "?dim_name=dcs_cluster_redis_node"):
            answer = yard.http("GET", f"/v2/{{p}}/{path}{query}")
            assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
            assert "dim_name" in answer.json()["error_msg"]


# --- what could be done ----------------------------------------------------------------------------


def test_a_replica_of_each_shard_of_a_cluster_can_be_deleted(
    dcs_client: Any, yard: Service, caches: dict[str, Cache]
) -> None:
    cache = caches["cluster"]
    told = dcs_client.validate_deletable_replica(dcs.ValidateDeletableReplicaRequest(instance_id=cache.id))
    assert told.check_result is True
    zones = yard.http("GET", "/v2/available-zones").json()["available_zones"]
    codes = {zone["id"]: zone["code"] for zone in zones}
    there = {node.node_id: node for node in nodes(dcs_client, cache)}
    for one in told.replication_list:
        node = there[one.node_id]
        assert node.node_type == "slave"
        assert (one.replication_id, one.replication_ip) == (node.replication_id, f"{node.node_ip}:6379")
        assert (one.group_id, one.group_name) == (node.group_id, node.group_name)
        assert codes[one.available_zone] == node.az_code
    assert [one.group_name for one in told.replication_list] == ["group-0", "group-1", "group-2"]
    assert set(told.available_zone.split(",")) == {one.available_zone for one in told.replication_list}


def test_the_replicas_that_can_be_deleted_are_those_that_a_resize_deletes(
    dcs_client: Any, yard: Service
) -> None:
    with made(yard, az_codes=yard.facts.az_codes[:2], **KINDS["cluster"]) as cache:
        told = dcs_client.validate_deletable_replica(
            dcs.ValidateDeletableReplicaRequest(instance_id=cache.id)
        )
        before = {node.node_id for node in nodes(dcs_client, cache)}
        body = {
            "spec_code": "redis.cluster.xu1.large.r1.4",
            "new_capacity": 4,
            "change_type": "deleteReplication",
            "available_zones": told.available_zone.split(","),
        }
        answer = cache.http("POST", "/resize", json=body)
        assert answer.status_code == 204, answer.text
        cache.until_running()
        after = {node.node_id for node in nodes(dcs_client, cache)}
        assert before - after == {one.node_id for one in told.replication_list}


def test_nothing_can_be_deleted_from_a_cluster_without_replicas(dcs_client: Any, yard: Service) -> None:
    with made(yard, spec_code="redis.cluster.xu1.large.r1.4", capacity=4) as cache:
        told = dcs_client.validate_deletable_replica(
            dcs.ValidateDeletableReplicaRequest(instance_id=cache.id)
        )
        assert (told.check_result, told.available_zone, told.replication_list) == (False, None, [])


@pytest.mark.parametrize("kind", ["single", "ha"])
def test_only_clusters_say_what_can_be_deleted(dcs_client: Any, caches: dict[str, Cache], kind: str) -> None:
    with refused(400, "DCS.4800", kind):
        dcs_client.validate_deletable_replica(
            dcs.ValidateDeletableReplicaRequest(instance_id=caches[kind].id)
        )


def can_grow(dcs_client: Any, cache: Cache) -> tuple[bool, str | None]:
    request = dcs.ListInstanceOperationsRequest(instance_id=cache.id, operation="extend")
    answer = dcs_client.list_instance_operations(request)
    (only,) = answer.operations
    assert (answer.instance_id, only.operation) == (cache.id, "extend")
    return only.is_support, only.cause_id


def test_an_instance_can_grow_while_it_runs(dcs_client: Any, cache: Cache) -> None:
    assert can_grow(dcs_client, cache) == (True, None)


def test_an_instance_that_is_stopped_cannot_grow(dcs_client: Any, yard: Service) -> None:
    with made(yard) as cache:
        cache.act("stop")
        cache.until_running("CLOSED")
        assert can_grow(dcs_client, cache) == (False, "DCS.4049")


def test_an_instance_cannot_grow_beyond_what_the_project_may_have() -> None:
    with (
        Service(CACHEYARD_MEMORY_QUOTA="1") as service,
        made(service, spec_code="redis.single.xu1.large.1", capacity=1) as cache,
    ):
        assert can_grow(service.sdk(), cache) == (False, "DCS.4036")
        bigger = {"spec_code": "redis.single.xu1.large.2", "new_capacity": 2}
        answer = cache.http("POST", "/resize", json=bigger)
        assert answer.json()["error_code"] == "DCS.4036"


def test_only_growth_can_be_asked_for(yard: Service, caches: dict[str, Cache]) -> None:
    for query in ("", "?operation=shrink"):
        answer = caches["single"].http("GET", f"/operations{query}")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4063")
        assert "operation" in answer.json()["error_msg"]


def test_the_minor_version_is_that_of_the_server(dcs_client: Any, cache: Cache) -> None:
    told = dcs_client.show_instance_version(dcs.ShowInstanceVersionRequest(instance_id=cache.id))
    with cache.client(host=nodes(dcs_client, cache)[0].node_ip, port=6379) as link:
        info: Any = link.info("server")
    assert told.engine_minor_version == info["redis_version"]
    newest = tuple(map(int, told.latest_engine_minor_version.split(".")))
    now = tuple(map(int, told.engine_minor_version.split(".")))
    assert (newest[:2], newest > now) == (now[:2], told.engine_minor_version_upgradable)
    assert (told.proxy_minor_version, told.proxy_minor_version_upgradable) == (None, False)


# --- priorities ------------------------------------------------------------------------------------


def priority_of(cache: Cache, ip: str) -> int:
    with cache.client(host=ip, port=6379) as link:
        told: Any = link.config_get("replica-priority")
    return int(told["replica-priority"])


def shown_priorities(dcs_client: Any, cache: Cache) -> dict[str, int]:
    return {node.node_id: node.priority_weight for node in nodes(dcs_client, cache)}


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_a_priority_is_in_force_when_the_request_is_answered_and_stays(
    dcs_client: Any, caches: dict[str, Cache], kind: str
) -> None:
    cache = caches[kind]
    group = groups(dcs_client, cache)[-1]
    replica, others = group.replication_list[1], shown_priorities(dcs_client, cache)
    for weight in (7, 100, 1):
        path = f"/groups/{group.group_id}/replications/{replica.node_id}/slave-priority"
        answer = cache.http("POST", path, json={"slave_priority_weight": weight})
        assert (answer.status_code, answer.content) == (204, b"")
        assert priority_of(cache, replica.replication_ip) == weight
        assert shown_priorities(dcs_client, cache) == others | {replica.node_id: weight}
        assert cache.show()["task"] is None
    task = cache.tasks()[0]
    assert (task["name"], task["status"]) == ("UpdateSlavePriority", "SUCCESS")
    assert task["details"]["replica_ip"] == replica.replication_ip
    cache.act("restart")
    cache.until_running()
    assert priority_of(cache, replica.replication_ip) == 1
    prioritize(dcs_client, cache, group.group_id, replica.node_id, 1)  # it has it already
    prioritize(dcs_client, cache, group.group_id, replica.node_id, "100")


def test_the_replica_with_the_smallest_priority_is_promoted(dcs_client: Any, yard: Service) -> None:
    with made(yard, **KINDS["ha"]) as cache:
        (group,) = groups(dcs_client, cache)
        master, first, second = group.replication_list
        prioritize(dcs_client, cache, group.group_id, second.node_id, 10)
        places = {
            node.node_id: (node.logical_node_id, node.replication_id) for node in nodes(dcs_client, cache)
        }
        os.kill(pid_of(cache), signal.SIGKILL)

        def promoted() -> bool:
            found = groups(dcs_client, cache)[0].replication_list
            return found[0].node_id != master.node_id and all(one.status == "Active" for one in found)

        until(promoted, seconds=20, what="another master")
        found = groups(dcs_client, cache)[0].replication_list
        assert [one.node_id for one in found] == [second.node_id, master.node_id, first.node_id]
        for one in found:
            assert role_at(cache, one.replication_ip) == one.replication_role
        assert {n.node_id: (n.logical_node_id, n.replication_id) for n in nodes(dcs_client, cache)} == places


def test_a_replica_with_priority_0_is_never_promoted(dcs_client: Any, yard: Service) -> None:
    with made(yard, **KINDS["ha"]) as cache:
        (group,) = groups(dcs_client, cache)
        master, first, second = group.replication_list
        prioritize(dcs_client, cache, group.group_id, first.node_id, 0)
        with refused(400, "DCS.4253", "slave_priority_weight"):
            prioritize(dcs_client, cache, group.group_id, second.node_id, 0)
        assert (priority_of(cache, first.replication_ip), priority_of(cache, second.replication_ip)) == (
            0,
            100,
        )
        os.kill(pid_of(cache), signal.SIGKILL)

        def led_by() -> str:
            return str(groups(dcs_client, cache)[0].replication_list[0].node_id)

        until(lambda: led_by() != master.node_id, seconds=20, what="another master")
        assert led_by() == second.node_id


def test_a_priority_that_was_begun_is_in_force_however_soon_the_service_dies(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service()
    with made(service, **KINDS["ha"]) as cache:
        (group,) = groups(service.sdk_token(), cache)
        replica = group.replication_list[1]
        path = f"/groups/{group.group_id}/replications/{replica.node_id}/slave-priority"

        def ask(weight: int) -> None:
            with suppress(httpx.TransportError):
                cache.http("POST", path, json={"slave_priority_weight": weight})

        for weight, delay in enumerate((0.0, 0.05), 1):
            asked = threading.Thread(target=ask, args=[weight])
            asked.start()
            until(lambda: cache.show()["task"] is not None, seconds=5, what="a task", pause=0.001)
            asked.join(delay)
            service.kill()
            asked.join()
            service.start()
            cache.until_running()
            assert shown_priorities(service.sdk_token(), cache)[replica.node_id] == weight
            assert priority_of(cache, replica.replication_ip) == weight
        assert {task["status"] for task in cache.tasks()} == {"SUCCESS"}


BAD = {"101": 101, "-1": -1, "a half": 0.5, "a word": "high", "nothing": None}


@pytest.mark.parametrize("weight", BAD)
def test_a_priority_outside_its_range_is_refused(
    dcs_client: Any, caches: dict[str, Cache], weight: str
) -> None:
    cache = caches["ha"]
    (group,) = groups(dcs_client, cache)
    before = shown_priorities(dcs_client, cache)
    with refused(400, "DCS.4939", "slave_priority_weight"):
        prioritize(dcs_client, cache, group.group_id, group.replication_list[1].node_id, BAD[weight])
    assert shown_priorities(dcs_client, cache) == before


def test_the_only_replica_must_stay_able_to_be_promoted(dcs_client: Any, caches: dict[str, Cache]) -> None:
    cache = caches["cluster"]
    group = groups(dcs_client, cache)[1]
    with refused(400, "DCS.4253", "slave_priority_weight"):
        prioritize(dcs_client, cache, group.group_id, group.replication_list[1].node_id, 0)


def test_only_a_replica_of_the_shard_has_a_priority(dcs_client: Any, caches: dict[str, Cache]) -> None:
    (pair,), shards = groups(dcs_client, caches["ha"]), groups(dcs_client, caches["cluster"])
    (alone,) = groups(dcs_client, caches["single"])
    replica, master = pair.replication_list[1].node_id, pair.replication_list[0].node_id
    elsewhere = shards[1].replication_list[1].node_id
    before = {kind: shown_priorities(dcs_client, cache) for kind, cache in caches.items()}
    for kind, group_id, node_id, status, code, word in (
        ("ha", pair.group_id, master, 400, "DCS.4027", "master"),
        ("cluster", shards[0].group_id, shards[0].replication_list[0].node_id, 400, "DCS.4027", "master"),
        ("ha", pair.group_id, elsewhere, 400, "DCS.3053", "node_id"),
        ("ha", pair.group_id, UNKNOWN, 400, "DCS.3053", "node_id"),
        ("cluster", shards[0].group_id, elsewhere, 400, "DCS.3053", "node_id"),
        ("ha", shards[0].group_id, replica, 404, "DCS.4001", "group_id"),
        ("ha", UNKNOWN, replica, 404, "DCS.4001", "group_id"),
        ("single", alone.group_id, alone.replication_list[0].node_id, 400, "DCS.4086", "replicas"),
    ):
        with refused(status, code, word):
            prioritize(dcs_client, caches[kind], group_id, node_id, 50)
    assert {kind: shown_priorities(dcs_client, cache) for kind, cache in caches.items()} == before


def test_a_priority_waits_until_the_instance_is_free(dcs_client: Any, yard: Service) -> None:
    answer = yard.http("POST", "/v2/{p}/instances", json=body_for(yard, **KINDS["ha"]))
    cache = Cache(yard, answer.json()["instances"][0]["instance_id"])
    (group,) = groups(dcs_client, cache)  # the places are known at once
    with refused(400, "DCS.4118"):
        prioritize(dcs_client, cache, group.group_id, group.replication_list[1].node_id, 50)
    cache.until_running()
    assert set(shown_priorities(dcs_client, cache).values()) == {100}
    cache.http("DELETE")
    cache.until_gone()
