"""Restarts, stops, other ports, names and passwords of instances whose masters are watched: what is planned
is no failure, and loses nothing."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest
import redis
from chaos.traffic import Traffic
from redis.cluster import ClusterNode, RedisCluster
from support.caches import HA, PASSWORD, Cache, made
from support.clusters import spec
from support.service import Service

SHAPES: dict[str, dict[str, Any]] = {
    "ha": {"spec_code": "redis.ha.xu1.tiny.r3.128"},
    "cluster": spec("r2.4"),
}


def rows(cache: Cache) -> dict[str, sqlite3.Row]:
    """Rows of the nodes, by id."""
    with closing(sqlite3.connect(cache.service.data / "cacheyard.sqlite", timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM nodes WHERE instance_id = ?"
        return {row["id"]: row for row in connection.execute(query, (cache.id,))}


def client(cache: Cache, password: str | None = PASSWORD) -> Any:
    """As its users have it."""
    shown = cache.show()
    if shown["cache_mode"] != "cluster":
        return cache.client(password)
    known = [ClusterNode(ip, shown["port"]) for ip in shown["ip"].split(",")]  # type: ignore[no-untyped-call]
    return RedisCluster(startup_nodes=known, password=password, decode_responses=True)


def fill(cache: Cache) -> None:
    """Write keys that fall to all shards."""
    with closing(client(cache)) as link:
        for number in range(60):
            assert link.set(f"key-{number}", number)


def filled(cache: Cache, password: str | None = PASSWORD) -> bool:
    """Whether all are there."""
    with closing(client(cache, password)) as link:
        return [link.get(f"key-{number}") for number in range(60)] == [str(number) for number in range(60)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("action", ["restart", "soft_restart"])
def test_a_restart_restarts_every_node_once_and_none_takes_anothers_place(
    yard: Service, shape: str, action: str
) -> None:
    with made(yard, **SHAPES[shape]) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        before = rows(cache)
        assert cache.act(action).status_code == 200
        cache.until_running()
        after = rows(cache)
        traffic.flows(20)
        traffic.stop()
        assert traffic.lost() == []
        for node_id, was in before.items():
            assert after[node_id]["role"] == was["role"]
            assert after[node_id]["seen_incarnation"] == was["seen_incarnation"] + 1
            assert after[node_id]["seen_pid"] != was["seen_pid"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stop_is_no_failure_and_a_start_finds_the_data_again(yard: Service, shape: str) -> None:
    with made(yard, **SHAPES[shape]) as cache:
        fill(cache)
        before = rows(cache)
        assert cache.act("stop").status_code == 200
        shown = cache.until_running("CLOSED")
        for ip in shown["ip"].split(","):
            with pytest.raises(redis.ConnectionError):
                cache.client(host=ip, port=6379).ping()
        assert {row["seen_state"] for row in rows(cache).values()} == {"Stopped"}
        assert cache.act("start").status_code == 200
        cache.until_running()
        assert filled(cache)
        assert {key: row["role"] for key, row in rows(cache).items()} == {
            key: row["role"] for key, row in before.items()
        }


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_port_and_new_names_of_commands_keep_roles_and_data(yard: Service, shape: str) -> None:
    with made(yard, **SHAPES[shape]) as cache:
        fill(cache)
        before = {key: row["role"] for key, row in rows(cache).items()}
        for body in ({"port": 7001}, {"rename_commands": {"keys": "hidden_keys"}}):
            assert cache.http("PUT", json=body).status_code == 204
            cache.until_running()
            assert filled(cache)
            assert {key: row["role"] for key, row in rows(cache).items()} == before
        shown = cache.show()
        assert shown["port"] == 7001
        for ip in shown["ip"].split(","):
            with (
                cache.client(host=ip, port=7001) as link,
                pytest.raises(redis.ResponseError, match="unknown command"),
            ):
                link.keys("*")
            with pytest.raises(redis.ConnectionError):
                cache.client(host=ip, port=6379).ping()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_password_interrupts_nobody(yard: Service, shape: str) -> None:
    with made(yard, **SHAPES[shape]) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        fill(cache)
        before = rows(cache)
        answer = cache.http("POST", "/password/reset", json={"new_password": "Other-yard-2"})
        assert answer.status_code == 200, answer.text
        assert filled(cache, "Other-yard-2")
        traffic.flows(20)  # who is logged in stays
        traffic.stop()
        assert not traffic.errors
        assert {key: row["seen_pid"] for key, row in rows(cache).items()} == {
            key: row["seen_pid"] for key, row in before.items()
        }


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flush_empties_all_nodes(yard: Service, shape: str) -> None:
    with made(yard, **SHAPES[shape]) as cache:
        fill(cache)
        assert cache.act("flush").status_code == 200
        cache.until_running()
        with closing(client(cache)) as link:
            assert [link.get(f"key-{number}") for number in range(60)] == [None] * 60


def test_stops_and_starts_move_no_master(
    yard: Service,
) -> None:
    with made(yard, spec_code=HA) as cache:
        fill(cache)
        before = {key: row["role"] for key, row in rows(cache).items()}
        for _ in range(3):
            assert cache.act("stop").status_code == 200
            cache.until_running("CLOSED")
            assert cache.act("start").status_code == 200
            cache.until_running()
        assert {key: row["role"] for key, row in rows(cache).items()} == before
        assert filled(cache)
