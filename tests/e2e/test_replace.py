"""What is lost comes back: nodes whose directory is gone, and replicas that do not come back at all."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from support.caches import HA, Cache, made, pid_of
from support.clusters import (
    at,
    check,
    client,
    fill,
    ips,
    masters,
    missing,
    seen_by,
    spec,
    until_whole,
)
from support.proxied import FORMS, PROXY, SPLIT, groups, job, needs_program, of_role, proxies
from support.service import Service
from support.waiting import until

from cacheyard.agent import process


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """A service that promises more memory than the machine has, and waits for replicas only a moment."""
    with Service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_REPLACE_SECONDS="3") as running:
        yield running


def directory(service: Service, ip: str) -> Path:
    """The data directory of the node at an address."""
    for path in (service.data / "nodes").iterdir():
        record = process.read_record(path) if path.is_dir() else None
        if record is not None and record.ip == ip:
            return path
    raise AssertionError(f"no node at {ip}")


def until_ended(pid: int) -> None:
    until(lambda: process.start_time(pid) is None, seconds=10, what=f"{pid} to end")


def lose(service: Service, *addresses: str) -> None:
    """While the service is away, these nodes die and their directories go."""
    service.kill()
    for ip in addresses:
        path = directory(service, ip)
        record = process.read_record(path)
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        until_ended(record.pid)
        shutil.rmtree(path)
    service.start()


@contextmanager
def stranger(ip: str) -> Iterator[None]:
    """Somebody else listens where a node should."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def bound() -> bool:  # the last threads of a killed server hold its address a moment longer
            listening.bind((ip, 6379))
            return True

        until(bound, seconds=5, what=f"{ip} to be free")
        listening.listen()
        yield


@contextmanager
def ousted(service: Service, ip: str) -> Iterator[None]:
    """A node dies, and cannot be started again as long as this lasts."""
    service.kill()
    record = process.read_record(directory(service, ip))
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    until_ended(record.pid)
    with stranger(ip):
        service.start()
        yield


def replacements(cache: Cache) -> list[dict[str, Any]]:
    """The tasks that replace replicas, newest first."""
    return [task for task in cache.tasks() if task["name"] == "ReplaceReplica"]


def until_replaced(cache: Cache, count: int = 1) -> dict[str, Any]:
    """Wait until the last of so many replacements has ended well."""

    def ended() -> bool:
        found = replacements(cache)
        return len(found) == count and found[0]["status"] != "EXECUTING"

    until(ended, seconds=40, what="the replica to be replaced", pause=0.05)
    task = replacements(cache)[0]
    assert task["status"] == "SUCCESS", cache.service.log()[-3000:]
    cache.until_running()
    return task


def replica_of_first_master(cache: Cache) -> str:
    """The address of the first shard's replica."""
    first, seen = masters(cache)[0], next(iter(seen_by(cache).values()))
    return next(
        one.address.ip for one in seen if one.master_id == first.engine_id and one.address is not None
    )


# --- directories that are gone ---------------------------------------------------------------------


def test_a_master_without_replicas_that_lost_its_directory_serves_its_slots_again(yard: Service) -> None:
    with made(yard, **spec("r1.4")) as cache:
        written, held = fill(cache, 90), {one.engine_id: one.slots for one in masters(cache)}
        lost = masters(cache)[1]
        assert lost.address is not None
        lose(yard, lost.address.ip)
        until_whole(cache)
        assert {one.engine_id: one.slots for one in masters(cache)} == held
        gone = missing(cache, written)
        assert 0 < len(gone) < 90  # its share, and no other's
        with at(cache, lost.address.ip) as link:
            assert link.dbsize() == 0
        assert missing(cache, fill(cache, 90)) == []
        check(cache)


def test_a_cluster_whose_directories_are_all_gone_is_an_empty_cluster(yard: Service) -> None:
    with made(yard, **spec("r2.4")) as cache:
        fill(cache, 90)
        lose(yard, *ips(cache))
        until_whole(cache)
        with closing(client(cache)) as link:
            assert link.dbsize() == 0
        assert missing(cache, fill(cache, 90)) == []
        check(cache)


def test_a_clusters_replica_that_lost_its_directory_copies_its_master_again(yard: Service) -> None:
    with made(yard, **spec("r2.4")) as cache:
        written, before = fill(cache, 90), masters(cache)
        lost = replica_of_first_master(cache)
        lose(yard, lost)
        until_whole(cache)
        until_in_sync(cache, lost)
        assert [one.engine_id for one in masters(cache)] == [one.engine_id for one in before]
        assert missing(cache, written) == []
        check(cache)


def test_a_replica_that_lost_its_directory_copies_its_master_again(yard: Service) -> None:
    with made(yard, spec_code=HA) as cache:
        with cache.client() as link:
            link.set("key", "value")
        address = cache.addresses()[1]
        lose(yard, address)
        until_in_sync(cache, address)
        with cache.client(host=address, port=6379) as link:
            assert link.get("key") == "value"
        assert cache.addresses()[1] == address


def until_in_sync(cache: Cache, address: str) -> None:
    def synced() -> bool:
        try:
            with cache.client(host=address, port=6379) as link:
                info: Any = link.info("replication")
        except redis.RedisError as error:
            raise OSError(str(error)) from error
        return bool(info["role"] == "slave" and info["master_link_status"] == "up")

    until(synced, seconds=20, what=f"{address} to be in sync", pause=0.05)


# --- replicas that do not come back ----------------------------------------------------------------


def nodes_of(cache: Cache) -> list[dict[str, Any]]:
    """The nodes that the API shows."""
    answer = cache.http("GET", "/logical-nodes")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["nodes"]
    return found


def place(node: dict[str, Any]) -> dict[str, Any]:
    """What a node that takes another's place has of it."""
    return {
        name: node[name]
        for name in ("logical_node_id", "replication_id", "az_code", "group_id", "priority_weight")
    }


def test_a_replica_that_cannot_be_started_is_replaced(yard: Service) -> None:
    with made(yard, spec_code=HA, az_codes=yard.facts.az_codes[:2]) as cache:
        with cache.client() as link:
            link.set("key", "value")
        old = cache.addresses()[1]
        [before] = [node for node in nodes_of(cache) if node["node_ip"] == old]
        with ousted(yard, old):
            task = until_replaced(cache)
            assert (task["user_name"], task["user_id"]) == ("system", "")
            assert task["details"]["source_ip"] == old
            [new] = cache.addresses()[1:]
            assert new == task["details"]["target_ip"] != old
            with cache.client(host=new, port=6379) as link:
                assert link.get("key") == "value"
                info: Any = link.info("replication")
                assert info["master_link_status"] == "up"
            assert {node["node_ip"] for node in nodes_of(cache)} == {new, *masters_of(cache)}
            [after] = [node for node in nodes_of(cache) if node["node_ip"] == new]
            assert place(after) == place(before)
            assert after["node_id"] != before["node_id"]
            assert len(list((yard.data / "nodes").glob("*-*"))) == 2  # no directory is left of it
        with made(yard) as other:  # the address is free again
            assert other.show()["ip"] == old


def masters_of(cache: Cache) -> set[str]:
    return {node["node_ip"] for node in nodes_of(cache) if node["node_type"] == "master"}


def test_a_replacement_may_be_promoted(yard: Service) -> None:
    with made(yard, spec_code=HA) as cache:
        with cache.client() as link:
            link.set("key", "value")
        with ousted(yard, cache.addresses()[1]):
            until_replaced(cache)
            before = pid_of(cache)
            os.kill(before, signal.SIGKILL)

            def taken_over() -> bool:
                try:
                    with cache.client() as link:
                        return bool(link.get("key") == "value" and pid_of(cache) != before)
                except redis.RedisError as error:
                    raise OSError(str(error)) from error

            until(taken_over, seconds=20, what="the new replica to be master", pause=0.05)


def test_a_replica_of_a_cluster_that_cannot_be_started_is_replaced(yard: Service) -> None:
    with made(yard, **spec("r2.4")) as cache:
        written, old = fill(cache, 90), replica_of_first_master(cache)
        with ousted(yard, old):
            task = until_replaced(cache)
            new = task["details"]["target_ip"]
            assert task["details"]["source_ip"] == old
            assert new in ips(cache)
            assert old not in ips(cache)
            until_whole(cache)  # nobody knows the old one any more
            check(cache)
            until_in_sync(cache, new)
            assert missing(cache, written) == []
            with at(cache, masters_first(cache)) as link:
                before: Any = link.info("server")["process_id"]
            os.kill(before, signal.SIGKILL)
            until_whole(cache)
            assert missing(cache, written) == []


def masters_first(cache: Cache) -> str:
    first = masters(cache)[0]
    assert first.address is not None
    return first.address.ip


@needs_program
@pytest.mark.parametrize("form", [PROXY, SPLIT | {"spec_code": "redis.ha.xu1.large.p2.1"}], ids=list(FORMS))
def test_a_replica_behind_proxies_that_cannot_be_started_is_replaced_and_can_take_over(
    yard: Service, form: dict[str, Any]
) -> None:
    with made(yard, az_codes=yard.facts.az_codes[:2], **form) as cache:
        written = {f"key-{number}": str(number) for number in range(90)}
        with cache.client() as link:
            for key, value in written.items():
                assert link.set(key, value)
        [master], [before] = (of_role(groups(cache)[0], role) for role in ("master", "slave"))
        shown, fronts = nodes_of(cache), proxies(cache)
        old = before["replication_ip"]
        with ousted(yard, old):
            task = until_replaced(cache)
            assert task["details"]["source_ip"] == old
            [after] = of_role(groups(cache)[0], "slave")
            assert after["replication_ip"] == task["details"]["target_ip"] != old
            assert after["replication_id"] == before["replication_id"]
            assert [place(one) for one in nodes_of(cache) if "replication_id" in one] == [
                place(one) for one in shown if "replication_id" in one
            ]
            assert proxies(cache) == fronts
            if form is PROXY:
                path = f"/v2/{{p}}/instance/{cache.id}/groups/{groups(cache)[0]['group_id']}/replications"
                answer = yard.http("POST", f"{path}/{after['node_id']}/async-switchover")
            else:
                answer = cache.http("PUT", "/async-swap")
            assert job(cache, answer.json()["job_id"]) == "SUCCESS"
            [promoted] = of_role(groups(cache)[0], "master")
            assert promoted["node_id"] == after["node_id"] != master["node_id"]
            with cache.client() as link:
                assert {key: link.get(key) for key in written} == written
                assert link.set("key", "value")


def test_a_replacement_goes_on_after_kill_9(yard: Service) -> None:
    with made(yard, **spec("r2.4")) as cache:
        written, old = fill(cache, 90), replica_of_first_master(cache)
        with ousted(yard, old):
            until(lambda: replacements(cache), seconds=20, what="the replacement to begin", pause=0.002)
            for after in (0.0, 0.05, 0.1):
                time.sleep(after)  # wherever that is
                yard.kill()
                yard.start()
            task = until_replaced(cache)
            assert old not in ips(cache)
            assert task["details"]["target_ip"] in ips(cache)
            assert len(ips(cache)) == 6
            until_whole(cache)
            assert missing(cache, written) == []
            assert len(list((yard.data / "nodes").glob("*-*"))) == 6


def test_a_replacement_that_fails_leaves_nothing_and_is_not_tried_again_at_once(yard: Service) -> None:
    with made(yard, spec_code=HA) as cache:
        old = cache.addresses()[1]
        with made(yard) as next_one:
            taken = next_one.show()["ip"]
        with stranger(taken), ousted(yard, old):

            def failed() -> bool:
                return any(task["status"] == "FAILED" for task in replacements(cache))

            until(failed, seconds=60, what="the replacement to fail", pause=0.1)
            [task] = replacements(cache)
            assert task["details"]["target_ip"] == taken
            cache.until_running()
            assert {node["node_ip"] for node in nodes_of(cache)} == {old, *masters_of(cache)}
            assert len(list((yard.data / "nodes").glob("*-*"))) == 2
            time.sleep(5)  # more than `replace_seconds`
            assert len(replacements(cache)) == 1
        with made(yard) as other:
            assert other.show()["ip"] == taken


def test_what_is_away_as_planned_or_for_a_moment_is_not_replaced(yard: Service) -> None:
    with made(yard, spec_code=HA) as closed, made(yard, spec_code=HA) as crashed:
        assert closed.act("stop").status_code == 200
        closed.until_running("CLOSED")
        replica = crashed.addresses()[1]
        for _ in range(4):  # together longer than `replace_seconds`
            with crashed.client(host=replica, port=6379) as link:
                pid: Any = link.info("server")["process_id"]
            os.kill(pid, signal.SIGKILL)
            until_ended(pid)
            until_in_sync(crashed, replica)
            time.sleep(1.2)
        assert replacements(closed) == []
        assert replacements(crashed) == []
        assert closed.act("start").status_code == 200
        closed.until_running()
