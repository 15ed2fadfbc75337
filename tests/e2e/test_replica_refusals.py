"""Numbers of replicas that cannot be are refused, and nothing changes: 5.1.7, 8.3.1 and 8.3.2."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from support.caches import HA, SINGLE, Cache, made, refused
from support.replicas import (
    ADD,
    CLUSTER_NODES,
    HA_NODES,
    REMOVE,
    body,
    group_id,
    nodes,
    replicas,
    resize,
    resized,
)
from support.service import Service

BUSY = {"DCS.4026", "DCS.4049", "DCS.4113"}


@pytest.fixture(scope="module")
def pair(yard: Service) -> Iterator[Cache]:
    """For requests that are refused."""
    with made(yard, name="pair-1", spec_code=HA) as cache:
        yield cache


@pytest.fixture(scope="module")
def trio(yard: Service) -> Iterator[Cache]:
    """For requests that are refused: a cluster of three nodes a shard, in two zones."""
    zones = yard.facts.az_codes[:2]
    with made(yard, name="trio-1", spec_code=CLUSTER_NODES.format(3), capacity=4, az_codes=zones) as cache:
        yield cache


OF_A_PAIR: dict[str, tuple[dict[str, Any], str, str]] = {
    "replicas and capacity at once": (
        {"spec_code": "redis.ha.xu1.tiny.r3.256", "new_capacity": 0.25} | ADD,
        "DCS.4102",
        "spec_code",
    ),
    "more without saying so": (body(3), "DCS.4102", "change_type"),
    "more, called fewer": (body(3, change_type="addSharding"), "DCS.4102", "change_type"),
    "as many": (body(2, **ADD), "DCS.4103", "spec_code"),
    "the last one": (body(2, **REMOVE), "DCS.4937", "change_type"),
    "the last one, as another type": (
        {"spec_code": SINGLE, "new_capacity": 0.125} | REMOVE,
        "DCS.4937",
        "change_type",
    ),
    "more than there are": (body(6, **ADD), "DCS.4927", "spec_code"),
    "a zone that is none": (body(3, **ADD, available_zones=["nowhere-1a"]), "DCS.4933", "available_zones"),
    "another processor": (
        {"spec_code": "redis.ha.au1.tiny.r3.128", "new_capacity": 0.125} | ADD,
        "DCS.4102",
        "spec_code",
    ),
    "another type": ({"spec_code": SINGLE, "new_capacity": 0.125}, "DCS.4102", "spec_code"),
    "two nodes named": (body(2, **REMOVE, node_list=["a", "b"]), "DCS.4930", "node_list"),
}


@pytest.mark.parametrize("what", OF_A_PAIR)
def test_of_a_pair_this_is_refused(dcs_client: Any, pair: Cache, what: str) -> None:
    asked, code, parameter = OF_A_PAIR[what]
    before = nodes(dcs_client, pair)
    with refused(400, code, parameter):
        resize(dcs_client, pair, asked)
    shown = pair.show()
    assert (shown["status"], shown["task"], shown["spec_code"]) == ("RUNNING", None, HA)
    assert nodes(dcs_client, pair) == before


def test_a_node_that_cannot_go_is_refused(yard: Service, dcs_client: Any, pair: Cache) -> None:
    with made(yard, spec_code=HA_NODES.format(4)) as cache:
        master, first, *_ = nodes(dcs_client, cache)
        strange = replicas(dcs_client, pair)[0].node_id
        cases = [
            (body(3, **REMOVE, node_list=[master.node_id]), "DCS.4936"),
            (body(3, **REMOVE, node_list=[strange]), "DCS.4930"),
            (body(3, **REMOVE, node_list=["no-such-node"]), "DCS.4930"),
            (body(2, **REMOVE, node_list=[first.node_id]), "DCS.4930"),
        ]
        for asked, code in cases:
            with refused(400, code, "node_list"):
                resize(dcs_client, cache, asked)
        path = f"/v2/{{p}}/instances/{cache.id}/groups/{group_id(dcs_client, cache)}/replications"
        assert yard.http("DELETE", f"{path}/{master.node_id}").json()["error_code"] == "DCS.4936"
        assert yard.http("DELETE", f"{path}/{strange}").json()["error_code"] == "DCS.3053"
        assert len(nodes(dcs_client, cache)) == 4
        assert cache.show()["spec_code"] == HA_NODES.format(4)


def test_of_a_cluster_this_is_refused(yard: Service, dcs_client: Any, trio: Cache, pair: Cache) -> None:
    before = {node.node_id for node in nodes(dcs_client, trio)}
    every = [node.replication_ip for node in nodes(dcs_client, trio)]
    one = replicas(dcs_client, trio)[0].node_id
    cases: list[tuple[dict[str, Any], str, str]] = [
        (REMOVE | {"node_list": [one]}, "DCS.4930", "node_list"),
        (REMOVE | {"available_zones": ["nowhere-1a"]}, "DCS.4933", "available_zones"),
        (REMOVE | {"available_zones": [yard.facts.az_codes[2]]}, "DCS.4933", "available_zones"),
        (REMOVE | {"reserved_ip": every}, "DCS.4800", "reserved_ip"),
        (REMOVE | {"reserved_ip": ["192.0.2.1"]}, "DCS.4800", "reserved_ip"),
        (ADD, "DCS.4102", "change_type"),
    ]
    for more, code, parameter in cases:
        with refused(400, code, parameter):
            resize(dcs_client, trio, body(2, "cluster") | more)
    with refused(400, "DCS.4102", "spec_code"):
        resize(dcs_client, trio, {"spec_code": "redis.cluster.xu1.large.r4.8", "new_capacity": 8} | ADD)
    assert {node.node_id for node in nodes(dcs_client, trio)} == before


def test_no_more_replicas_than_a_flavor_has(yard: Service, dcs_client: Any) -> None:
    with made(yard, spec_code=HA_NODES.format(5)) as cache:
        with refused(400, "DCS.4875", "change_type"):
            resize(dcs_client, cache, body(6, **ADD))
        path = f"/v2/{{p}}/instance/{cache.id}/groups/{group_id(dcs_client, cache)}/replications"
        answer = yard.http("POST", path)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4875")
        assert len(nodes(dcs_client, cache)) == 5


def test_one_replica_more_or_less_is_refused_where_it_cannot_be(
    yard: Service, dcs_client: Any, pair: Cache, trio: Cache
) -> None:
    def told(method: str, path: str, **more: Any) -> tuple[int, str]:
        answer = yard.http(method, path, **more)
        return answer.status_code, answer.json()["error_code"]

    own = f"/v2/{{p}}/instance/{pair.id}/groups/{group_id(dcs_client, pair)}/replications"
    last = replicas(dcs_client, pair)[0].node_id
    assert told("POST", own, json={"az_code": "nowhere-1a"}) == (400, "DCS.4042")
    assert told("DELETE", f"{own.replace('/instance/', '/instances/')}/{last}") == (400, "DCS.4937")
    foreign = own.replace(pair.id, trio.id)
    assert told("POST", foreign)[0] == 404
    with made(yard) as single:
        assert told("POST", f"/v2/{{p}}/instance/{single.id}/groups/any/replications") == (400, "DCS.4086")


def test_replicas_need_memory_that_is_there_and_a_zone_with_a_host(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service(CACHEYARD_OVERCOMMIT="0.02")  # some 480 MB
    sdk = service.sdk_token()
    with made(service, spec_code=HA) as cache:
        with refused(400, "DCS.4054"):
            resize(sdk, cache, body(5, **ADD))
        zones = service.facts.az_codes
        with closing(sqlite3.connect(service.data / "cacheyard.sqlite", timeout=30)) as database, database:
            database.execute("UPDATE hosts SET az_codes = ?", [json.dumps(zones[:2])])
        with refused(400, "DCS.4054", zones[2]):
            resize(sdk, cache, body(3, **ADD, available_zones=[zones[2]]))
        assert len(nodes(sdk, cache)) == 2
        resized(sdk, cache, body(3, **ADD, available_zones=[zones[1]]))
        with refused(400, "DCS.4054"):  # what was added counts
            resize(sdk, cache, {"spec_code": HA_NODES.format(3).replace("128", "256"), "new_capacity": 0.25})


def test_an_instance_that_is_being_changed_is_refused(yard: Service, dcs_client: Any) -> None:
    with made(yard, spec_code=HA) as cache:
        resize(dcs_client, cache, body(5, **ADD))
        answer = cache.http("POST", "/resize", json=body(4, **REMOVE))
        assert answer.status_code == 400
        assert answer.json()["error_code"] in BUSY | {"DCS.4102"}
        assert cache.until_running()["replica_count"] == 5
