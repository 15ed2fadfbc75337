"""Single nodes are stopped and started: their instance serves on, or is closed as a whole."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, PASSWORD, Cache, first_ip, made, refused
from support.clusters import spec
from support.service import Service
from support.waiting import until

CLUSTER = spec("r2.4")
HA3 = "redis.ha.xu1.tiny.r3.128"


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """A service that may promise clusters more memory than there is, and replaces replicas soon."""
    with Service(CACHEYARD_OVERCOMMIT="20", CACHEYARD_REPLACE_SECONDS="1") as running:
        yield running


def nodes(cache: Cache) -> list[dict[str, Any]]:
    """Of all shards, masters first."""
    answer = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups")
    found = [one for group in answer.json()["group_list"] for one in group["replication_list"]]
    return sorted(found, key=lambda one: one["replication_role"] != "master")


def ids(cache: Cache, role: str) -> list[str]:
    """Of the nodes in a role."""
    return [one["node_id"] for one in nodes(cache) if one["replication_role"] == role]


def states(cache: Cache) -> dict[str, str]:
    """Of the nodes, by id."""
    return {one["node_id"]: one["status"] for one in nodes(cache)}


def status(sdk: Any, cache: Cache, action: str, *node_ids: str) -> str:
    """Ask for it, and wait for the job, as the provider does: how it ended."""
    body = dcs.ChangeNodesStartStopStatusBody(node_ids=list(node_ids), action=action)
    request = dcs.ChangeNodesStartStopStatusRequest(instance_id=cache.id, body=body)
    answer = sdk.change_nodes_start_stop_status(request).body
    assert answer.startswith("job_id:"), answer
    job_id = answer.removeprefix("job_id:")

    def ended() -> str | None:
        found = cache.service.http("GET", f"/v2/{{p}}/jobs/{job_id}").json()
        return found["status"] if found["status"] in ("SUCCESS", "FAIL") else None

    return until(ended, seconds=60, what=f"job {job_id} to end", pause=0.02)


def node_ids(cache: Cache) -> set[str]:
    """Of the rows, whether the API shows them or not."""
    with closing(sqlite3.connect(cache.service.data / "cacheyard.sqlite", timeout=10)) as connection:
        query = "SELECT id FROM nodes WHERE instance_id = ?"
        return {row[0] for row in connection.execute(query, (cache.id,))}


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_master_that_is_stopped_hands_over_first_and_comes_back_as_a_replica(
    yard: Service, shape: str
) -> None:
    sdk = yard.sdk()
    form = {"spec_code": HA} if shape == "ha" else CLUSTER
    with made(yard, **form) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        master = ids(cache, "master")[0]
        everyone = node_ids(cache)
        assert status(sdk, cache, "stop", master) == "SUCCESS"
        assert cache.show()["status"] == "RUNNING"
        assert states(cache).pop(master) == "Inactive"
        assert master in ids(cache, "slave")
        traffic.flows(20)
        time.sleep(2.5)  # nobody takes it for broken, and puts another in its place
        assert node_ids(cache) == everyone
        assert states(cache)[master] == "Inactive"
        assert status(sdk, cache, "start", master) == "SUCCESS"
        assert set(states(cache).values()) == {"Active"}
        assert master in ids(cache, "slave")
        traffic.flows(20)
        traffic.stop()
        assert traffic.lost() == []


def test_an_instance_with_a_stopped_replica_can_be_restarted_and_changed(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, spec_code=HA3) as cache:
        first, second = ids(cache, "slave")
        assert status(sdk, cache, "stop", first) == "SUCCESS"
        assert cache.act("restart").status_code == 200
        cache.until_running()
        assert cache.http("PUT", json={"port": 7002}).status_code == 204
        cache.until_running()
        assert cache.http("POST", "/swap").status_code == 204
        assert ids(cache, "master") == [second]
        assert states(cache)[first] == "Inactive"
        with cache.client() as link:
            link.set("key", "value")
            assert status(sdk, cache, "start", first) == "SUCCESS"
            assert link.wait(2, 5000) == 2


def test_a_cluster_restarts_without_its_stopped_replica(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, **CLUSTER) as cache:
        master = ids(cache, "master")[0]
        replica = next(
            one["node_id"]
            for one in nodes(cache)
            if one["replication_role"] == "slave" and one["node_id"] in same_shard(cache, master)
        )
        assert status(sdk, cache, "stop", replica) == "SUCCESS"
        assert cache.act("restart").status_code == 200
        cache.until_running()
        assert master in ids(cache, "master")
        assert status(sdk, cache, "start") == "SUCCESS"
        assert set(states(cache).values()) == {"Active"}


def same_shard(cache: Cache, node_id: str) -> list[str]:
    """The nodes of its shard."""
    groups = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups").json()["group_list"]
    shards = [[one["node_id"] for one in group["replication_list"]] for group in groups]
    return next(shard for shard in shards if node_id in shard)


@pytest.mark.parametrize("shape", ["single", "ha", "cluster"])
def test_without_any_running_node_the_instance_is_closed_and_starts_with_its_data(
    yard: Service, shape: str
) -> None:
    sdk = yard.sdk()
    form: dict[str, Any] = {"single": {}, "ha": {"spec_code": HA}, "cluster": CLUSTER}[shape]
    with made(yard, **form) as cache:
        ip = first_ip(cache.show())
        with (
            cache.client()
            if shape != "cluster"
            else redis.RedisCluster(host=ip, port=6379, password=PASSWORD, decode_responses=True) as link
        ):
            for number in range(20):
                link.set(f"key-{number}", number)
        assert status(sdk, cache, "stop") == "SUCCESS"
        cache.until_running("CLOSED")
        with pytest.raises(redis.ConnectionError):
            cache.client(host=ip, port=6379).ping()
        assert status(sdk, cache, "stop") == "SUCCESS"
        assert cache.show()["status"] == "CLOSED"
        if shape != "single":
            with refused(400, "DCS.4027", ids(cache, "master")[0]):
                status(sdk, cache, "start", ids(cache, "slave")[0])
            assert status(sdk, cache, "start", *ids(cache, "master")) == "SUCCESS"
            assert sorted(set(states(cache).values())) == ["Active", "Inactive"]
        assert status(sdk, cache, "start") == "SUCCESS"
        assert cache.until_running()["status"] == "RUNNING"
        assert set(states(cache).values()) == {"Active"}
        with (
            cache.client()
            if shape != "cluster"
            else redis.RedisCluster(host=ip, port=6379, password=PASSWORD, decode_responses=True) as link
        ):
            assert [link.get(f"key-{number}") for number in range(20)] == [str(n) for n in range(20)]


def test_to_start_what_runs_succeeds(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, spec_code=HA) as cache:
        assert status(sdk, cache, "start") == "SUCCESS"
        assert status(sdk, cache, "start", *ids(cache, "slave")) == "SUCCESS"
        told = yard.command(
            "call", "change_nodes_start_stop_status", "--instance-id", cache.id, "--action=start"
        )
        assert told.startswith("job_id:")
        assert cache.until_running()["status"] == "RUNNING"


def test_what_cannot_be_is_refused_and_changes_nothing(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, **CLUSTER) as cache:
        with refused(400, "DCS.4064", "action"):
            status(sdk, cache, "pause")
        with refused(400, "DCS.3053", "node_ids"):
            status(sdk, cache, "stop", "none")
        with refused(400, "DCS.4027", "group-0"):
            status(sdk, cache, "stop", *same_shard(cache, ids(cache, "master")[0]))
        with refused(404, "DCS.3022"):
            status(sdk, Cache(yard, "none"), "stop")
        assert [task["name"] for task in cache.tasks()] == ["create"]
        assert set(states(cache).values()) == {"Active"}
