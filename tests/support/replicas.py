"""Resizes to other numbers of replicas in tests, and what is looked at before and after."""

import socket
from typing import Any

import redis
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support import clusters
from support.caches import HA, Cache
from support.waiting import until

HA_NODES = "redis.ha.xu1.tiny.r{}.128"
CLUSTER_NODES = "redis.cluster.xu1.large.r{}.4"
SMALLEST: dict[str, dict[str, Any]] = {
    "ha": {"spec_code": HA},
    "cluster": {"spec_code": CLUSTER_NODES.format(2), "capacity": 4},
}
ADD = {"change_type": "createReplication"}
REMOVE = {"change_type": "deleteReplication"}


# --- asking -----------------------------------------------------------------------------------------


def body(nodes: int, kind: str = "ha", **more: Any) -> dict[str, Any]:
    """Of a resize to so many nodes a shard; `add` or `remove` say how."""
    code, capacity = (HA_NODES, 0.125) if kind == "ha" else (CLUSTER_NODES, 4)
    return {"spec_code": code.format(nodes), "new_capacity": capacity} | more


def resize(sdk: Any, cache: Cache, asked: dict[str, Any]) -> None:
    request = dcs.ResizeInstanceRequest(instance_id=cache.id, body=dcs.ResizeInstanceBody(**asked))
    sdk.resize_instance(request)
    assert cache.show()["status"] in ("EXTENDING", "RUNNING")


def resized(sdk: Any, cache: Cache, asked: dict[str, Any]) -> dict[str, Any]:
    """The instance as shown when it is resized; the task has succeeded."""
    resize(sdk, cache, asked)
    shown = cache.until_running()
    until(lambda: cache.tasks()[0]["status"] != "EXECUTING", seconds=5, what="the task to be recorded")
    assert cache.tasks()[0]["status"] == "SUCCESS", cache.tasks()[0]
    assert (shown["spec_code"], shown["max_memory"]) == (
        asked["spec_code"],
        int(asked["new_capacity"] * 1024),
    )
    return shown


def prioritize(sdk: Any, cache: Cache, node: Any, priority: int) -> None:
    sdk.update_slave_priority(
        dcs.UpdateSlavePriorityRequest(
            instance_id=cache.id,
            group_id=group_id(sdk, cache),
            node_id=node.node_id,
            body=dcs.PriorityBody(slave_priority_weight=priority),
        )
    )
    cache.until_running()


def groups(sdk: Any, cache: Cache) -> list[list[Any]]:
    """The nodes of each shard, as the API lists them."""
    answer = sdk.list_group_replication_info(dcs.ListGroupReplicationInfoRequest(instance_id=cache.id))
    return [group.replication_list for group in answer.group_list]


def nodes(sdk: Any, cache: Cache) -> list[Any]:
    return [node for group in groups(sdk, cache) for node in group]


def replicas(sdk: Any, cache: Cache) -> list[Any]:
    return [node for node in nodes(sdk, cache) if node.replication_role == "slave"]


def group_id(sdk: Any, cache: Cache, number: int = 0) -> str:
    answer = sdk.list_group_replication_info(dcs.ListGroupReplicationInfoRequest(instance_id=cache.id))
    return str(answer.group_list[number].group_id)


# --- looking from outside ---------------------------------------------------------------------------


def at(cache: Cache, ip: str) -> "redis.Redis":
    return cache.client(host=ip, port=6379)


def listens(ip: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ip, 6379)) == 0


def all_answer(sdk: Any, cache: Cache) -> bool:
    return {node.status for node in nodes(sdk, cache)} == {"Active"}


def check_replication(sdk: Any, cache: Cache) -> None:
    """Each replica follows its shard's master, which has no others. After a failover that takes a moment."""

    def said(ip: str) -> dict[str, Any]:
        with at(cache, ip) as link:
            info: Any = link.info("replication")
        return dict(info)

    for shard in groups(sdk, cache):
        (master,) = [node.replication_ip for node in shard if node.replication_role == "master"]
        others = [node.replication_ip for node in shard if node.replication_role != "master"]

        def followed(master: str = master, others: list[str] = others) -> bool:
            there = [said(ip) for ip in others]
            return said(master)["role"] == "master" and all(
                (each["role"], each["master_host"], each["master_link_status"]) == ("slave", master, "up")
                for each in there
            )

        def alone(master: str = master, count: int = len(others)) -> bool:
            return int(said(master)["connected_slaves"]) == count

        until(followed, seconds=10, what=f"{others} to follow {master}", pause=0.02)
        until(alone, seconds=10, what=f"{len(others)} replicas of {master}", pause=0.02)


def check_whole(sdk: Any, cache: Cache) -> None:
    """Rows, servers and, in a cluster, the nodes among themselves say the same."""
    shown = cache.show()
    assert {len(shard) for shard in groups(sdk, cache)} == {shown["replica_count"]}
    assert {node.status for node in nodes(sdk, cache)} == {"Active"}
    assert set(shown["az_codes"]) >= {node.az_code for node in nodes(sdk, cache)}
    check_replication(sdk, cache)
    if shown["cache_mode"] == "cluster":
        clusters.until_whole(cache)
        clusters.check(cache)
    mine = [each for each in cache.service.processes().values() if "redis-server" in each and ":6379" in each]
    assert all(any(node.replication_ip in each for each in mine) for node in nodes(sdk, cache))


def check_nothing_lost(traffic: Traffic) -> None:
    traffic.flows(5)
    traffic.stop()
    assert traffic.acknowledged > 50
    assert traffic.lost() == []
