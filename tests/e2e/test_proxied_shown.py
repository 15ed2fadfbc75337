"""Instances behind proxies as the API shows them, and what is refused for them."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from dns.resolver import NXDOMAIN, Resolver
from huaweicloudsdkdcs import v2 as dcs
from support.caches import PASSWORD, Cache, made, refused, remove
from support.proxied import FORMS, groups, logical_nodes, needs_program, of_role, proxies, servers
from support.service import Service
from support.waiting import until

pytestmark = needs_program

NODES = {"proxy": 6, "ha_rw_split": 3}
SHARDS = {"proxy": 3, "ha_rw_split": 1}
INSTANCE, NODE, PROXY = "dcs_instance_id", "dcs_cluster_redis_node", "dcs_cluster_proxy2_node"


@pytest.fixture(scope="module")
def names() -> int:
    """The port of the name server: one that was just free."""
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        return int(stream.getsockname()[1])


@pytest.fixture(scope="module")
def yard(names: int) -> Iterator[Service]:
    """A service with names that may promise more memory than there is, and asks servers often."""
    with Service(
        CACHEYARD_OVERCOMMIT="100", CACHEYARD_DNS_PORT=str(names), CACHEYARD_OBSERVE_SECONDS="0.5"
    ) as running:
        yield running


@pytest.fixture(scope="module", params=list(FORMS))
def front(yard: Service, request: pytest.FixtureRequest) -> Iterator[Cache]:
    """An instance of each type, which tests do not change."""
    with made(yard, name="front-1", az_codes=yard.facts.az_codes[:2], **FORMS[request.param]) as cache:
        yield cache


def mode(cache: Cache) -> str:
    return str(cache.show()["cache_mode"])


def test_the_instance_is_shown_with_the_one_address_that_clients_use(yard: Service, front: Cache) -> None:
    sdk, form = yard.sdk_token(), FORMS[mode(front)]
    shown = sdk.show_instance(dcs.ShowInstanceRequest(instance_id=front.id))
    assert (shown.spec_code, shown.capacity, shown.engine_version) == (
        form["spec_code"],
        form["capacity"],
        form["engine_version"],
    )
    assert shown.sharding_count == SHARDS[mode(front)]
    assert shown.sharding_count * shown.replica_count == NODES[mode(front)]
    assert shown.db_number == {"proxy": 1, "ha_rw_split": 256}[mode(front)]
    assert shown.ip not in {node["node_ip"] for node in servers(front)}
    assert shown.backend_addrs is None
    assert shown.transparent_client_ip_enable is True
    with front.client(host=shown.ip, port=shown.port) as link:
        assert link.set("key", "value")


def test_a_list_finds_it_by_that_address_and_by_no_node_of_it(yard: Service, front: Cache) -> None:
    sdk = yard.sdk_token()

    def found(ip: str) -> list[str]:
        return [one.instance_id for one in sdk.list_instances(dcs.ListInstancesRequest(ip=ip)).instances]

    shown = front.show()
    assert front.id in found(shown["ip"])
    for node in servers(front):
        assert front.id not in found(node["node_ip"])
    listed = yard.http("GET", "/v2/{p}/instances").json()["instances"]
    (mine,) = [one for one in listed if one["instance_id"] == front.id]
    assert mine["ip"] == shown["ip"]


def test_its_name_leads_to_that_address_and_there_is_no_read_only_one(names: int, front: Cache) -> None:
    shown = front.show()
    assert "readonly_domain_name" not in shown
    resolver = Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = ["127.0.0.1"], names, 5.0
    host, _, zone = shown["domain_name"].partition(".")

    def leads() -> bool:
        return [record.to_text() for record in resolver.resolve(shown["domain_name"], "A")] == [shown["ip"]]

    until(leads, seconds=20, what="the name to lead to the address")
    with pytest.raises(NXDOMAIN):
        resolver.resolve(f"{host}-readonly.{zone}", "A")


def test_proxies_are_nodes_of_no_shard(yard: Service, front: Cache) -> None:
    sdk, ip = yard.sdk_token(), front.show()["ip"]
    answer = sdk.show_nodes_information(dcs.ShowNodesInformationRequest(instance_id=front.id))
    assert answer.total == len(answer.nodes) == NODES[mode(front)] + len(proxies(front))
    behind = [one for one in answer.nodes if one.node_role == "redis-server"]
    before = [one for one in answer.nodes if one.node_role == "redis-proxy"]
    assert len(behind) == NODES[mode(front)]
    assert sorted({one.node_type for one in behind}) == ["master", "slave"]
    assert {one.is_access for one in behind} == {False}
    assert len(before) >= 2
    for one in before:
        assert (one.node_type, one.status, one.node_ip, one.node_port) == ("proxy", "Active", ip, "6379")
        assert one.is_access
        assert (one.group_id, one.replication_id, one.priority_weight) == (None, None, None)
        assert [(dimension.name, dimension.value) for dimension in one.dimensions] == [
            (INSTANCE, front.id),
            (PROXY, one.logical_node_id),
        ]
    assert {one.az_code for one in before} == set(yard.facts.az_codes[:2])
    assert len({one.node_id for one in answer.nodes}) == answer.total
    assert len({one.logical_node_id for one in answer.nodes}) == answer.total
    every = sdk.batch_show_nodes_information(dcs.BatchShowNodesInformationRequest()).instances
    (mine,) = [one for one in every if one.instance_id == front.id]
    assert mine.node_count == len(mine.nodes) == answer.total


def test_shards_have_servers_alone(front: Cache) -> None:
    found = groups(front)
    assert len(found) == SHARDS[mode(front)]
    assert {len(of_role(group, "master")) for group in found} == {1}
    listed = {one["node_id"] for group in found for one in group["replication_list"]}
    assert listed == {node["node_id"] for node in servers(front)}


def test_what_can_be_monitored_has_dimensions_for_servers_and_for_proxies(
    yard: Service, front: Cache
) -> None:
    sdk = yard.sdk_token()
    request = dcs.ListMonitoredObjectsOfInstanceRequest(instance_id=front.id, dim_name=INSTANCE)
    answer = sdk.list_monitored_objects_of_instance(request)
    assert {(one.dim_name, one.dim_route) for one in answer.children} == {
        (NODE, f"{INSTANCE},{NODE}"),
        (PROXY, f"{INSTANCE},{PROXY}"),
    }
    assert {one.dcs_cluster_redis_node for one in answer.dcs_cluster_redis_node} == {
        node["logical_node_id"] for node in servers(front)
    }
    assert {one.dcs_cluster_proxy2_node for one in answer.dcs_cluster_proxy2_node} == {
        node["logical_node_id"] for node in proxies(front)
    }
    monitored = answer.dcs_cluster_redis_node + answer.dcs_cluster_proxy2_node
    assert {(one.dcs_instance_id, one.status) for one in monitored} == {(front.id, "RUNNING")}
    primary = sdk.list_monitored_objects(dcs.ListMonitoredObjectsRequest(dim_name=INSTANCE))
    assert PROXY in {one.dim_name for one in primary.children}


def test_the_topology_says_what_proxies_have_to_do(yard: Service, front: Cache) -> None:
    sdk = yard.sdk_token()

    def topology() -> Any:
        return sdk.show_instance_topology(dcs.ShowInstanceTopologyRequest(instance_id=front.id))

    shown = topology()
    assert len(shown.redis_server) == NODES[mode(front)]
    by_id = {node["node_id"]: node for node in proxies(front)}
    assert {one.node_id for one in shown.cluster_proxy} == set(by_id)
    for one in shown.cluster_proxy:
        node = by_id[one.node_id]
        assert (one.node_name, one.ip, one.port) == (node["name"], node["node_ip"], node["node_port"])
        assert (one.node_type, one.status) == ("proxy", node["status"])
        assert one.dims.dim_k == f"{INSTANCE},{PROXY}"
        assert one.dims.dim_v == node["logical_node_id"]

    def is_busy() -> bool:
        with front.client() as link, link.pipeline(transaction=False) as pipe:
            for number in range(2000):
                pipe.set(f"topology:{number}", "x" * 100)
            pipe.execute()
        return any(
            float(one.qps or 0) > 0 and float(one.bandwidth.input) > 0 for one in topology().cluster_proxy
        )

    until(is_busy, seconds=30, what="a proxy to say that it is busy")


def test_statistics_count_what_clients_asked_of_all_servers(yard: Service, front: Cache) -> None:
    with front.client() as link:
        for number in range(60):
            link.set(f"statistics:{number}", number)
            link.get(f"statistics:{number}")
    there = servers(front)

    def asked(command: str, *roles: str) -> int:
        """How often, by the servers themselves."""
        total = 0
        for node in there:
            if node["node_type"] in roles:
                with front.client(host=node["node_ip"], port=int(node["node_port"])) as link:
                    said: Any = link.info("commandstats")
                total += said.get(f"cmdstat_{command}", {}).get("calls", 0)
        return total

    gets, sets = asked("get", "master", "slave"), asked("set", "master")
    assert min(gets, sets) >= 60

    def counted() -> Any:
        request = dcs.ListStatisticsOfRunningInstancesRequest()
        found = yard.sdk_token().list_statistics_of_running_instances(request).statistics
        (mine,) = [one for one in found if one.instance_id == front.id]
        return mine if (mine.cmd_get_count, mine.cmd_set_count) == (gets, sets) else None

    mine = until(counted, seconds=20, what=f"{gets} and {sets} to be counted")
    assert mine.keys >= 60
    assert float(mine.used_cpu) > 0


def test_both_versions_are_shown(yard: Service, front: Cache) -> None:
    shown = yard.sdk_token().show_instance_version(dcs.ShowInstanceVersionRequest(instance_id=front.id))
    assert shown.engine_minor_version == front.show()["internal_version"]
    assert shown.proxy_minor_version
    assert shown.latest_proxy_minor_version == shown.proxy_minor_version
    assert shown.proxy_minor_version_upgradable is False


def test_flavors_are_offered_as_they_are(yard: Service, front: Cache) -> None:
    sdk, form = yard.sdk_token(), FORMS[mode(front)]
    (flavor,) = sdk.list_flavors(dcs.ListFlavorsRequest(spec_code=form["spec_code"])).flavors
    assert flavor.cache_mode == mode(front)
    assert flavor.engine_version == "4.0;5.0;6.0"
    assert flavor.flavors_available_zones[0].az_codes == yard.facts.az_codes
    attributes = {one.name: one.value for one in flavor.attrs}
    assert attributes["sharding_num"] == str(SHARDS[mode(front)])
    assert attributes["db_number"] == {"proxy": "1", "ha_rw_split": "256"}[mode(front)]
    assert attributes["proxy_num"] == {"proxy": "3", "ha_rw_split": "0"}[mode(front)]
    products = yard.http("GET", "/v1.0/products").json()["products"]
    (product,) = [one for one in products if one["spec_code"] == form["spec_code"]]
    assert product["details"]["proxy_num"] == int(attributes["proxy_num"])
    assert product["flavors"][0]["available_zones"]


def test_v1_shows_and_lists_it(yard: Service, front: Cache) -> None:
    shown = yard.http("GET", f"/v1.0/{{p}}/instances/{front.id}").json()
    assert shown["product_id"] == f"{FORMS[mode(front)]['spec_code']}-h"
    assert shown["ip"] == front.show()["ip"]
    listed = yard.http("GET", "/v1.0/{p}/instances").json()["instances"]
    (mine,) = [one for one in listed if one["instance_id"] == front.id]
    assert mine["cache_mode"] == mode(front)


def test_v1_makes_one(yard: Service) -> None:
    facts = yard.facts
    zones = yard.http("GET", "/v1.0/availableZones").json()["available_zones"]
    body = {
        "name": "front-2",
        "engine": "Redis",
        "engine_version": "6.0",
        "capacity": 1,
        "product_id": "redis.ha.xu1.large.p2.1-h",
        "available_zones": [zone["id"] for zone in zones[:2]],
        "vpc_id": facts.vpc_id,
        "subnet_id": facts.subnet_id,
        "security_group_id": facts.security_group_id,
        "password": PASSWORD,
    }
    answer = yard.http("POST", "/v1.0/{p}/instances", json=body)
    assert answer.status_code == 200, answer.text
    cache = Cache(yard, answer.json()["instance_id"])
    try:
        assert cache.until_running()["cache_mode"] == "ha_rw_split"
        with cache.client() as link:
            assert link.set("key", "value")
    finally:
        remove(cache)


# --- Refusals -------------------------------------------------------------------------------------


def test_what_servers_alone_can_do_is_refused_for_proxies(yard: Service, front: Cache) -> None:
    sdk, proxy = yard.sdk_token(), proxies(front)[0]["node_id"]
    group = groups(front)[0]["group_id"]
    path = {"instance_id": front.id, "group_id": group, "node_id": proxy}
    with refused(400, "DCS.4027", "node_ids", proxy):
        body = dcs.ChangeNodesStartStopStatusBody(node_ids=[proxy], action="stop")
        sdk.change_nodes_start_stop_status(
            dcs.ChangeNodesStartStopStatusRequest(instance_id=front.id, body=body)
        )
    with refused(400, "DCS.4027", "node_id", proxy):
        priority = dcs.PriorityBody(slave_priority_weight=50)
        sdk.update_slave_priority(dcs.UpdateSlavePriorityRequest(**path, body=priority))
    if mode(front) == "proxy":
        with refused(400, "DCS.4027", "node_id", proxy):
            sdk.execute_cluster_switchover(dcs.ExecuteClusterSwitchoverRequest(**path))
    unchanged(front)


def test_what_its_type_does_not_have_is_refused(yard: Service, front: Cache) -> None:
    sdk, group = yard.sdk_token(), groups(front)[0]
    replica = of_role(group, "slave")[0]["node_id"]
    path = {"instance_id": front.id, "group_id": group["group_id"], "node_id": replica}
    with refused(400, "DCS.4086", mode(front)):
        sdk.delete_ip_from_domain_name(dcs.DeleteIpFromDomainNameRequest(**path))
    with refused(400, "DCS.4800", mode(front)):
        sdk.validate_deletable_replica(dcs.ValidateDeletableReplicaRequest(instance_id=front.id))
    with refused(400, "DCS.4855"):
        if mode(front) == "proxy":
            sdk.change_master_standby(dcs.ChangeMasterStandbyRequest(instance_id=front.id))
        else:
            sdk.execute_cluster_switchover(dcs.ExecuteClusterSwitchoverRequest(**path))
    unchanged(front)


def test_versions_of_proxies_that_are_not_installed_are_refused(yard: Service, front: Cache) -> None:
    sdk, shown = yard.sdk_token(), front.http("GET", "/version").json()

    def upgrade(version: str) -> None:
        body = dcs.UpgradeMinorVersionRequestBody(proxy_minor_version=version)
        sdk.upgrade_instance_minor_version(
            dcs.UpgradeInstanceMinorVersionRequest(instance_id=front.id, body=body)
        )

    with refused(400, "DCS.4053"):
        upgrade(shown["proxy_minor_version"])
    with refused(400, "DCS.4800", "proxy_minor_version"):
        upgrade("99.0.0")
    unchanged(front)


def unchanged(cache: Cache) -> None:
    assert [task["name"] for task in cache.tasks()] == ["create"]
    assert {node["status"] for node in logical_nodes(cache)} == {"Active"}
    assert cache.show()["status"] == "RUNNING"
