"""Replicas come and go while clients write: 5.1.7 with other numbers of nodes, 8.3.1 and 8.3.2."""

from typing import Any

import pytest
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, PASSWORD, made, refused
from support.replicas import (
    ADD,
    CLUSTER_NODES,
    HA_NODES,
    REMOVE,
    SMALLEST,
    at,
    body,
    check_nothing_lost,
    check_replication,
    check_whole,
    group_id,
    groups,
    listens,
    nodes,
    prioritize,
    replicas,
    resize,
    resized,
)
from support.service import Service


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_replicas_come_and_go_while_clients_write(yard: Service, dcs_client: Any, kind: str) -> None:
    zones = yard.facts.az_codes
    with made(yard, az_codes=zones[:2], **SMALLEST[kind]) as cache:
        shards = len(groups(dcs_client, cache))
        before = {node.node_id for node in nodes(dcs_client, cache)}
        with Traffic(cache.show(), PASSWORD) as traffic:
            shown = resized(dcs_client, cache, body(4, kind, **ADD, available_zones=zones[1:]))
            assert (shown["replica_count"], shown["az_codes"]) == (4, zones)
            check_whole(dcs_client, cache)
            new = [node for node in nodes(dcs_client, cache) if node.node_id not in before]
            assert {node.is_replication for node in new} == {True}
            assert sorted(node.az_code for node in new) == sorted(zones[1:] * shards)
            task = cache.tasks()[0]
            assert task["name"] == "AddReplica"
            assert set(task["details"]["replica_ip"].split(",")) == {node.replication_ip for node in new}

            resized(dcs_client, cache, body(3, kind, **REMOVE, available_zones=[zones[2]]))
            check_whole(dcs_client, cache)
            gone = [node for node in new if node.az_code == zones[2]]
            assert len(gone) == shards
            assert before <= {node.node_id for node in nodes(dcs_client, cache)}
            assert not any(listens(node.replication_ip) for node in gone)
            assert cache.show()["az_codes"] == zones[:2]
            assert cache.tasks()[0]["name"] == "DelReplica"

            resized(dcs_client, cache, body(2, kind, **REMOVE))
            check_whole(dcs_client, cache)
            assert {node.node_id for node in nodes(dcs_client, cache)} == before
            check_nothing_lost(traffic)
            assert traffic.errors.total() == 0, traffic.errors


def test_a_cluster_has_no_replicas_if_its_owner_wants_none(yard: Service, dcs_client: Any) -> None:
    with made(yard, **SMALLEST["cluster"]) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        assert resized(dcs_client, cache, body(1, "cluster", **REMOVE))["replica_count"] == 1
        assert replicas(dcs_client, cache) == []
        resized(dcs_client, cache, body(2, "cluster", **ADD))
        check_whole(dcs_client, cache)
        check_nothing_lost(traffic)


def test_data_are_in_a_new_replica(yard: Service, dcs_client: Any) -> None:
    with made(yard, spec_code=HA) as cache:
        with cache.client() as link:
            link.mset({f"key-{number}": number for number in range(1000)})
        resized(dcs_client, cache, body(3, **ADD))
        for node in replicas(dcs_client, cache):
            with at(cache, node.replication_ip) as link:
                assert link.dbsize() == 1000


# --- where they come and which go -------------------------------------------------------------------


def test_a_zone_for_each_new_replica_or_one_for_all(yard: Service, dcs_client: Any) -> None:
    one, two, three = yard.facts.az_codes
    ids = {
        zone.code: zone.id
        for zone in dcs_client.list_available_zones(dcs.ListAvailableZonesRequest()).available_zones
    }
    with made(yard, az_codes=[one, two], spec_code=HA) as cache:

        def added(nodes_then: int, zones: list[str]) -> list[str]:
            before = {node.node_id for node in nodes(dcs_client, cache)}
            resized(dcs_client, cache, body(nodes_then, **ADD, available_zones=zones))
            return [node.az_code for node in nodes(dcs_client, cache) if node.node_id not in before]

        assert added(4, [ids[three], two]) == [three, two]
        resized(dcs_client, cache, body(2, **REMOVE))
        assert added(4, [three]) == [three, three]
        resized(dcs_client, cache, body(2, **REMOVE))
        # the zones of all nodes, as Terraform sends them: the one that has fewest is meant
        assert added(3, [one, two, three]) == [three]
        resized(dcs_client, cache, body(2, **REMOVE))
        assert added(3, []) == [three]


def test_the_replica_that_is_named_goes(yard: Service, dcs_client: Any) -> None:
    with made(yard, spec_code=HA_NODES.format(4)) as cache:
        first, *others = replicas(dcs_client, cache)
        resized(dcs_client, cache, body(3, **REMOVE, node_list=[first.node_id]))
        assert [node.node_id for node in replicas(dcs_client, cache)] == [node.node_id for node in others]
        check_whole(dcs_client, cache)


def test_the_replica_that_is_promoted_last_goes_first(yard: Service, dcs_client: Any) -> None:
    with made(yard, spec_code=HA_NODES.format(4)) as cache:
        first, second, third = replicas(dcs_client, cache)
        for node, priority in ((first, 90), (second, 0), (third, 50)):
            prioritize(dcs_client, cache, node, priority)
        resized(dcs_client, cache, body(3, **REMOVE))
        assert [node.node_id for node in replicas(dcs_client, cache)] == [first.node_id, third.node_id]
        resized(dcs_client, cache, body(2, **REMOVE))
        assert [node.node_id for node in replicas(dcs_client, cache)] == [third.node_id]


def test_addresses_that_are_reserved_stay(yard: Service, dcs_client: Any) -> None:
    with made(yard, spec_code=CLUSTER_NODES.format(3), capacity=4) as cache:
        newest = {shard[-1].replication_ip for shard in groups(dcs_client, cache)}
        asked = body(2, "cluster", **REMOVE, reserved_ip=[f"{ip}:6379" for ip in newest])
        resized(dcs_client, cache, asked)
        assert newest <= {node.replication_ip for node in nodes(dcs_client, cache)}
        check_whole(dcs_client, cache)


def test_a_replica_that_left_the_read_only_name_goes_before_the_last_one_in_it(
    yard: Service, dcs_client: Any
) -> None:
    with made(yard, spec_code=HA_NODES.format(3)) as cache:
        first, second = replicas(dcs_client, cache)
        path = f"/v2/{{p}}/instances/{cache.id}/groups/{group_id(dcs_client, cache)}/replications"
        assert yard.http("DELETE", f"{path}/{first.node_id}/remove-ip").status_code == 200
        cache.until_running()
        with refused(400, "DCS.4935", "node_list"):
            resize(dcs_client, cache, body(2, **REMOVE, node_list=[second.node_id]))
        answer = yard.http("DELETE", f"{path}/{second.node_id}")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4935")
        resized(dcs_client, cache, body(2, **REMOVE))
        assert [node.node_id for node in replicas(dcs_client, cache)] == [second.node_id]


# --- 8.3.1 and 8.3.2: one replica of one shard ------------------------------------------------------


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_one_replica_of_one_shard(yard: Service, dcs_client: Any, kind: str) -> None:
    zone = yard.facts.az_codes[2]
    with made(yard, **SMALLEST[kind]) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        group = group_id(dcs_client, cache)
        answer = yard.http(
            "POST", f"/v2/{{p}}/instance/{cache.id}/groups/{group}/replications", json={"az_code": zone}
        )
        assert (answer.status_code, answer.content) == (204, b"")
        shown = cache.until_running()
        assert shown["spec_code"] == body(3, kind)["spec_code"]
        new = groups(dcs_client, cache)[0][-1]
        assert (new.az_code, new.is_replication, new.replication_role) == (zone, True, "slave")
        assert [len(shard) for shard in groups(dcs_client, cache)][1:] in ([], [2, 2])
        check_replication(dcs_client, cache)

        answer = yard.http(
            "DELETE", f"/v2/{{p}}/instances/{cache.id}/groups/{group}/replications/{new.node_id}"
        )
        assert answer.status_code == 200
        shown = cache.until_running()
        job = dcs_client.show_job_info(dcs.ShowJobInfoRequest(job_id=answer.json()["job_id"]))
        assert (job.job_type, job.fail_reason) == ("DelReplica", None)
        assert shown["spec_code"] == SMALLEST[kind]["spec_code"]
        check_whole(dcs_client, cache)
        check_nothing_lost(traffic)


def test_shards_that_differ_are_made_equal_by_the_next_resize(yard: Service, dcs_client: Any) -> None:
    with made(yard, **SMALLEST["cluster"]) as cache:
        for number in (0, 0, 2):
            path = f"/v2/{{p}}/instance/{cache.id}/groups/{group_id(dcs_client, cache, number)}/replications"
            assert yard.http("POST", path).status_code == 204
            cache.until_running()
        assert [len(shard) for shard in groups(dcs_client, cache)] == [4, 2, 3]
        assert cache.show()["spec_code"] == CLUSTER_NODES.format(4)
        resized(dcs_client, cache, body(3, "cluster", **REMOVE))
        assert [len(shard) for shard in groups(dcs_client, cache)] == [3, 2, 3]
        resized(dcs_client, cache, body(4, "cluster", **ADD))
        check_whole(dcs_client, cache)
        resized(dcs_client, cache, body(2, "cluster", **REMOVE))
        check_whole(dcs_client, cache)
