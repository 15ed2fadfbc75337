"""Shards of a Redis Cluster come and go while clients write: 5.1.7 to flavors with more shards, or fewer."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import redis
from chaos.traffic import Load, Traffic, may_be_lost
from huaweicloudsdkdcs import v2 as dcs
from redis.crc import key_slot
from support import clusters
from support.caches import PASSWORD, Cache, first_ip, made, refused
from support.service import Service
from support.waiting import until

from cacheyard.domain.slots import balanced
from cacheyard.store.secrets import Sealer

THREE, FOUR, EIGHT = "r2.4", "r2.s1.4", "r2.s1.8"
KEYS = 40_000
DONE_SECONDS = 120.0  # twenty times what it takes on an idle machine


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """A service that does not put servers right to which a test gives another limit of memory."""
    with Service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_DRIFT_SECONDS="86400") as running:
        yield running


@pytest.fixture(scope="module")
def steady(yard: Service) -> Iterator[Cache]:
    """Four shards, for requests that are refused."""
    with made(yard, name="four-1", **clusters.spec(FOUR)) as cache:
        yield cache


def resize(dcs_client: Any, cache: Cache, flavor: str, **more: Any) -> None:
    asked = clusters.spec(flavor)
    body = {"spec_code": asked["spec_code"], "new_capacity": asked["capacity"]} | more
    dcs_client.resize_instance(dcs.ResizeInstanceRequest(cache.id, dcs.ResizeInstanceBody(**body)))
    assert cache.show()["status"] in ("EXTENDING", "RUNNING")


def done(cache: Cache, status: str = "SUCCESS") -> dict[str, Any]:
    """The instance as shown when its last task has ended so."""
    until(lambda: cache.show()["task"] is None, seconds=DONE_SECONDS, what="the resize to end", pause=0.05)
    shown = cache.until_running()
    until(lambda: cache.tasks()[0]["status"] != "EXECUTING", seconds=5, what="the task to be recorded")
    assert cache.tasks()[0]["status"] == status, cache.tasks()[0]
    return shown


def check_whole(dcs_client: Any, cache: Cache, flavor: str) -> None:
    """The instance is what the flavor says: to the API, to each server, and to the nodes among themselves."""
    shown, asked = cache.show(), clusters.spec(flavor)
    assert shown["spec_code"] == asked["spec_code"]
    assert shown["max_memory"] == asked["capacity"] * 1024
    count, nodes = shown["sharding_count"], shown["replica_count"]
    answer = dcs_client.list_group_replication_info(dcs.ListGroupReplicationInfoRequest(cache.id))
    groups = [group.replication_list for group in answer.group_list]
    assert [len(group) for group in groups] == [nodes] * count
    assert len({group.group_name for group in answer.group_list}) == count
    assert {node.status for group in groups for node in group} == {"Active"}
    assert sorted(node.replication_ip for group in groups for node in group) == sorted(clusters.ips(cache))
    clusters.until_whole(cache)
    clusters.check(cache)
    shares = [sum(last - first + 1 for first, last in one.slots) for one in clusters.masters(cache)]
    assert len(shares) == count
    assert max(shares) - min(shares) <= 1
    for ip in clusters.ips(cache):
        with clusters.at(cache, ip) as link:
            told: Any = link.config_get("maxmemory")
            assert int(told["maxmemory"]) == (asked["capacity"] * 1024 // count) << 20
            assert all(not one.importing and not one.migrating for one in clusters.members(link))
    servers = [each for each in cache.service.processes().values() if "redis-server" in each]
    assert sum(any(f"{ip}:6379" in each for each in servers) for ip in clusters.ips(cache)) == count * nodes


def connected(cache: Cache) -> Any:
    """The usual client."""
    return clusters.client(cache)


def fill(cache: Cache, keys: int = KEYS) -> None:
    """So many keys, quickly."""
    with closing(connected(cache)) as link, link.pipeline() as pipeline:
        for number in range(keys):
            pipeline.set(f"key:{number}", f"value {number}")
        pipeline.execute()


def wrong(cache: Cache, keys: int = KEYS) -> list[tuple[int, Any]]:
    """The keys that `fill` made and that are not so any more."""
    with closing(connected(cache)) as link, link.pipeline() as pipeline:
        for number in range(keys):
            pipeline.get(f"key:{number}")
        found = zip(range(keys), pipeline.execute(), strict=True)
        return [(number, value) for number, value in found if value != f"value {number}"]


def under_way(cache: Cache, known: list[str]) -> str:
    """Wait until a new shard has keys; the address of its master."""
    found: list[str] = []

    def moving() -> bool:
        for ip in set(clusters.ips(cache)) - set(known):
            with suppress(redis.RedisError), closing(clusters.at(cache, ip)) as link:
                role: Any = link.role()
                if role[0] == "master" and int(link.dbsize()) > KEYS // 40:
                    found.append(ip)
        return bool(found)

    until(moving, seconds=DONE_SECONDS, what="keys to be under way", pause=0.002)
    return found[0]


def zones(dcs_client: Any, cache: Cache) -> list[set[str]]:
    """Those in which the nodes of each shard are."""
    answer = dcs_client.list_group_replication_info(dcs.ListGroupReplicationInfoRequest(cache.id))
    return [{node.az_code for node in group.replication_list} for group in answer.group_list]


def test_shards_come_and_go_while_clients_write(yard: Service, dcs_client: Any) -> None:
    renamed = {"keys": "list-keys", "scan": "look", "flushall": "no-keys"}
    two = yard.facts.az_codes[:2]
    with made(yard, az_codes=two, rename_commands=renamed, **clusters.spec(THREE)) as cache:
        before = clusters.ips(cache)
        fill(cache, 10_000)
        spans = []
        with Traffic(cache.show(), PASSWORD, load=Load(clients=2)) as traffic:
            for flavor, nodes in ((FOUR, 8), (EIGHT, 16), (THREE, 6)):
                began = time.monotonic()
                resize(dcs_client, cache, flavor)
                done(cache)
                traffic.flows(5)
                spans.append((flavor, began, time.monotonic()))
                check_whole(dcs_client, cache, flavor)
                assert clusters.ips(cache)[:6] == before
                assert len(clusters.ips(cache)) == nodes
                assert all(len(some) == 2 for some in zones(dcs_client, cache))
            traffic.stop()
            now = ",".join(clusters.ips(cache))
            assert traffic.acknowledged > 500
            assert traffic.lost(now) == []
        assert wrong(cache, 10_000) == []
        for flavor, began, ended in spans:
            print(f"to {flavor} in {ended - began:.1f} s, no write for {traffic.gap(began, ended):.3f} s")
        print(traffic.errors)
        assert max(traffic.gap(began, ended) for _, began, ended in spans) < 1.0


@pytest.mark.parametrize(
    ("old", "new"),
    [("r2.24", "r2.s4.16"), ("r2.s4.16", "r2.24"), ("r1.4", "r1.48")],
    ids=["more and smaller", "fewer and larger", "without replicas"],
)
def test_shards_change_their_number_and_their_size(
    yard: Service, dcs_client: Any, old: str, new: str
) -> None:
    with made(yard, **clusters.spec(old)) as cache:
        fill(cache, 1000)
        resize(dcs_client, cache, new)
        done(cache)
        check_whole(dcs_client, cache, new)
        assert wrong(cache, 1000) == []


def test_the_shards_that_stay_can_be_named(yard: Service, dcs_client: Any, steady: Cache) -> None:
    with made(yard, **clusters.spec(FOUR)) as cache:
        fill(cache, 1000)
        ips = clusters.ips(cache)
        # by the addresses of replicas too; the first shard has the address by which the instance is known
        resize(dcs_client, cache, THREE, reserved_ip=[ips[5], f"{ips[6]}:6379"])
        done(cache)
        check_whole(dcs_client, cache, THREE)
        assert clusters.ips(cache) == [*ips[:2], *ips[4:]]
        resize(dcs_client, cache, FOUR)
        done(cache)
        check_whole(dcs_client, cache, FOUR)
        assert sorted(clusters.ips(cache)) == sorted(ips)  # the addresses had been given back
        answer = dcs_client.list_group_replication_info(dcs.ListGroupReplicationInfoRequest(cache.id))
        assert [group.group_name for group in answer.group_list] == [f"group-{n}" for n in range(4)]
        assert wrong(cache, 1000) == []


def test_what_cannot_be_is_refused_and_changes_nothing(dcs_client: Any, steady: Cache) -> None:
    ips = clusters.ips(steady)
    before = steady.show() | {"bandwidth_info": None}
    for kept in ([ips[2], ips[4], ips[6]], ips):
        with refused(400, "DCS.4800", "reserved_ip"):
            resize(dcs_client, steady, THREE, reserved_ip=kept)
    for strange in ("192.0.2.1", "somewhere", first_ip(before) + "0"):
        with refused(400, "DCS.4800", "reserved_ip", strange):
            resize(dcs_client, steady, THREE, reserved_ip=[ips[0], strange])
        with refused(400, "DCS.4800", "reserved_ip", strange):
            resize(dcs_client, steady, EIGHT, reserved_ip=[strange])
    with refused(400, "DCS.4102", "change_type"):
        resize(dcs_client, steady, THREE, change_type="addSharding")
    assert steady.show() | {"bandwidth_info": None} == before
    assert [task["name"] for task in steady.tasks()] == ["create"]


def test_a_service_that_was_killed_goes_on_where_the_cluster_is(yard: Service, dcs_client: Any) -> None:
    with made(yard, **clusters.spec(THREE)) as cache:
        before = clusters.ips(cache)
        fill(cache)
        with Traffic(cache.show(), PASSWORD) as traffic:
            for flavor, reached in ((FOUR, under_way), (THREE, half_empty)):
                resize(dcs_client, cache, flavor)
                reached(cache, before)
                yard.kill()
                traffic.flows(5)  # meanwhile the cluster goes on
                yard.restart()
                done(cache)
                check_whole(dcs_client, cache, flavor)
            traffic.flows(5)
            traffic.stop()
            assert traffic.lost() == []
        assert wrong(cache) == []
        assert clusters.ips(cache) == before


def half_empty(cache: Cache, known: list[str]) -> None:
    """Wait until a shard that goes has lost keys."""
    ip = (set(clusters.ips(cache)) - set(known)).pop()
    with closing(clusters.at(cache, ip)) as link:
        first = int(link.dbsize())
        until(lambda: int(link.dbsize()) < first * 0.8, seconds=20, what="keys to go", pause=0.001)


@pytest.mark.parametrize("dies", ["source", "target"])
def test_a_master_that_dies_meanwhile_is_replaced(yard: Service, dcs_client: Any, dies: str) -> None:
    with made(yard, **clusters.spec(THREE)) as cache:
        before = clusters.ips(cache)
        fill(cache)
        with Traffic(cache.show(), PASSWORD) as traffic:
            resize(dcs_client, cache, FOUR)
            new = under_way(cache, before)
            victim = new if dies == "target" else before[2]
            with closing(clusters.at(cache, victim)) as link:
                info: Any = link.info("server")
            os.kill(int(info["process_id"]), signal.SIGKILL)
            struck = [time.monotonic()]
            done(cache)
            traffic.flows(10)
            traffic.stop()
            lost = traffic.lost(",".join(clusters.ips(cache)))
            assert [one for one in lost if not may_be_lost(one.at, struck)] == []
        gone = {key_slot(f"key:{number}".encode()) for number, _ in wrong(cache)}
        # a target may have told each source that it has the keys of a slot when its replica had not yet
        most = 1 if dies == "target" else 0
        by_source = [[slot for slot in gone if first <= slot <= last] for first, last in balanced(3)]
        assert all(len(slots) <= most for slots in by_source), by_source
        check_whole(dcs_client, cache, FOUR)


def internal(cache: Cache, ip: str) -> Any:
    """The service's own connection to a server: the tenant may not change its limits."""
    data = cache.service.data
    with closing(sqlite3.connect(data / "cacheyard.sqlite")) as rows:
        (secret,) = rows.execute("SELECT internal_secret FROM instances WHERE id = ?", (cache.id,)).fetchone()
    opened = Sealer.of(data / "secret.key").open(secret)
    return cache.client(opened, host=ip, port=6379, username="cacheyard")


@pytest.mark.parametrize(("old", "new"), [(THREE, FOUR), (FOUR, THREE)], ids=["more", "fewer"])
def test_what_cannot_be_done_is_undone(yard: Service, dcs_client: Any, old: str, new: str) -> None:
    """The servers that keys go to have no memory: all is as before, and nothing is lost."""
    with made(yard, **clusters.spec(old)) as cache:
        before = clusters.ips(cache)
        fill(cache)
        with Traffic(cache.show(), PASSWORD) as traffic:
            resize(dcs_client, cache, new)
            full = [under_way(cache, before)] if new == FOUR else before[:6:2]
            if new == THREE:
                half_empty(cache, before[:6])
            for ip in full:
                with closing(internal(cache, ip)) as link:
                    link.config_set("maxmemory", 1 << 20)
            done(cache, "FAILED")
            traffic.flows(5)
            traffic.stop()
            assert set(traffic.errors) <= {"OutOfMemoryError", "AttributeError", "ConnectionError"}
            assert traffic.lost() == []
        check_whole(dcs_client, cache, old)
        assert clusters.ips(cache) == before
        assert wrong(cache) == []
        resize(dcs_client, cache, new)
        done(cache)
        check_whole(dcs_client, cache, new)


def test_functions_are_known_to_new_shards(yard: Service, dcs_client: Any) -> None:
    code = "#!lua name=mine\nredis.register_function('where', function(keys) return keys[1] end)"
    with made(yard, **clusters.spec(THREE)) as cache:
        for one in clusters.masters(cache):
            assert one.address is not None
            with closing(clusters.at(cache, one.address.ip)) as link:
                link.function_load(code)
        resize(dcs_client, cache, FOUR)
        done(cache)
        with closing(connected(cache)) as client:
            assert [client.fcall("where", 1, f"key:{n}") for n in range(50)] == [
                f"key:{n}" for n in range(50)
            ]


def test_a_restart_ends_what_a_failed_change_of_shards_left_half_done(yard: Service) -> None:
    """As when slots could neither be moved on nor back: one is open, some of its keys have gone, and the
    instance is ERROR."""
    with made(yard, **clusters.spec(THREE)) as cache:
        written = clusters.fill(cache, 1000)
        source, target, _ = clusters.masters(cache)
        assert source.address is not None
        assert target.address is not None
        slots = [slot for first, last in source.slots for slot in range(first, last + 1)]
        key = next(key for key in written if key_slot(key.encode()) in slots)
        slot, to = key_slot(key.encode()), target.address
        with (
            closing(internal(cache, source.address.ip)) as giver,
            closing(internal(cache, to.ip)) as taker,
        ):
            taker.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.engine_id)
            giver.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.engine_id)
            moved = giver.execute_command("MIGRATE", to.ip, to.port, key, 0, 1000, "AUTH", PASSWORD)
            assert moved == "OK"
        with closing(sqlite3.connect(yard.data / "cacheyard.sqlite", timeout=30)) as rows, rows:
            rows.execute("UPDATE instances SET status = 'ERROR' WHERE id = ?", (cache.id,))
        assert cache.show()["status"] == "ERROR"
        cache.act("restart")
        cache.until_running()
        clusters.until_whole(cache)
        clusters.check(cache)  # it would warn of an open slot
        assert clusters.missing(cache, written) == []
