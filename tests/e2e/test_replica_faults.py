"""Replicas come and go whatever fails meanwhile: masters, the service, the start of new ones."""

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import pytest
import redis
from chaos.traffic import Traffic
from support import clusters
from support.caches import PASSWORD, Cache, made
from support.replicas import (
    ADD,
    REMOVE,
    SMALLEST,
    all_answer,
    at,
    body,
    check_nothing_lost,
    check_whole,
    groups,
    nodes,
    prioritize,
    resize,
    resized,
)
from support.service import Service
from support.waiting import until

from cacheyard.contract.types import ResizeInstanceBody
from cacheyard.domain.identity import Principal
from cacheyard.services.call import Call, House
from cacheyard.services.resizing import begin
from cacheyard.settings import load
from cacheyard.store import nodes as node_rows
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_a_replica_that_became_master_hands_over_before_it_goes(
    yard: Service, dcs_client: Any, kind: str
) -> None:
    """The master is killed in the moment of the request; whoever is promoted, the request is done."""
    for _ in range(3):
        with made(yard, **(SMALLEST[kind] | {"spec_code": body(3, kind)["spec_code"]})) as cache:
            with Traffic(cache.show(), PASSWORD) as traffic:
                shard = groups(dcs_client, cache)[0]
                with at(cache, shard[0].replication_ip) as link:
                    info: Any = link.info("server")
                resize(dcs_client, cache, body(2, kind, **REMOVE))
                os.kill(info["process_id"], signal.SIGKILL)
                cache.until_running()
                until(partial(all_answer, dcs_client, cache), seconds=20, what="all nodes to be back")
                traffic.flows(10)
            check_whole(dcs_client, cache)


@contextmanager
def rows_of(service: Service) -> Iterator[Store]:
    """The database of a service that does not run."""
    store = Store(service.data / "cacheyard.sqlite")
    try:
        yield store
    finally:
        store.close()


def ask_nobody(service: Service, store: Store, cache: Cache, asked: dict[str, Any]) -> None:
    """The request, written down as the service does it, while it is not there to begin."""
    settings = load(service.data)
    house = House(settings, service.facts.region, store, Sealer.of(settings.secret_key), lambda _: None)
    who = Principal(user_id="u", user_name="user", domain_id="", domain_name="")
    where = {"project_id": service.facts.project_id, "instance_id": cache.id}
    call = Call(house, who, where, ResizeInstanceBody(**asked), "")
    with store.write() as tx:
        begin(tx, call, call.instance(tx))


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_a_replica_that_was_promoted_while_nobody_looked_hands_over(
    fresh_service: Callable[..., Service], kind: str
) -> None:
    service = fresh_service(CACHEYARD_OVERCOMMIT="100")
    sdk = service.sdk_token()
    with made(service, **(SMALLEST[kind] | {"spec_code": body(3, kind)["spec_code"]})) as cache:
        master, other, promoted = groups(sdk, cache)[0]
        prioritize(sdk, cache, other, 0)
        if kind == "cluster":
            until(lambda: epochs_settled(cache), seconds=20, what="the masters' epochs to be known to all")
        with at(cache, master.replication_ip) as link:
            info: Any = link.info("server")
        service.kill()
        os.kill(info["process_id"], signal.SIGKILL)
        with at(cache, promoted.replication_ip) as link:
            until(lambda: link.role()[0] == "master", seconds=60, what="a replica to be promoted")
            tag = next(tag for tag in range(10_000) if writes(link, f"{{{tag}}}"))
        with rows_of(service) as store:
            ask_nobody(service, store, cache, body(2, kind, **REMOVE, reserved_ip=[other.replication_ip]))
            with store.write() as tx:
                (row,) = node_rows.by_ids(tx, [other.node_id])
                node_rows.want(tx, row, priority=100)
        service.start()
        assert cache.until_running()["replica_count"] == 2
        until(lambda: cache.tasks()[0]["status"] == "SUCCESS", seconds=5, what="the task to be recorded")
        assert promoted.node_id not in {node.node_id for node in nodes(sdk, cache)}
        check_whole(sdk, cache)
        link = clusters.client(cache) if kind == "cluster" else cache.client()
        with closing(link):
            assert link.get(f"{{{tag}}}") == "value"


def epochs_settled(cache: Cache) -> bool:
    """Whether all nodes know the same epoch of each master, and no two masters have the same: by it they tell
    who became master last."""
    known = [
        {one.engine_id: one.epoch for one in seen if one.slots} for seen in clusters.seen_by(cache).values()
    ]
    return all(each == known[0] for each in known) and len(set(known[0].values())) == len(known[0])


def writes(link: "redis.Redis", key: str) -> bool:
    """Whether the node takes the key: in a cluster, one of its slots."""
    try:
        return bool(link.set(key, "value"))
    except redis.ResponseError:
        return False


def test_replicas_that_do_not_start_leave_nothing_behind(yard: Service, dcs_client: Any) -> None:
    """Their addresses are in use by somebody else."""
    with ExitStack() as stack:
        caches = {kind: stack.enter_context(made(yard, **smallest)) for kind, smallest in SMALLEST.items()}
        before = {kind: (cache.show(), nodes(dcs_client, cache)) for kind, cache in caches.items()}
        taken = [node.replication_ip for _, there in before.values() for node in there]
        network, _, highest = max(taken, key=lambda ip: int(ip.rpartition(".")[2])).rpartition(".")
        for last in range(int(highest) + 1, int(highest) + 6):
            stranger = stack.enter_context(socket.socket())
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # there were connections
            stranger.bind((f"{network}.{last}", 6379))
            stranger.listen()
        for kind, cache in caches.items():
            resize(dcs_client, cache, body(3, kind, **ADD))
        for kind, cache in caches.items():
            until(partial(is_free, cache), seconds=60, what="the undoing")
            shown, there = before[kind]
            now = cache.show()
            for name in ("status", "spec_code", "az_codes", "replica_count", "ip"):
                assert now[name] == shown[name]
            assert {node.node_id for node in nodes(dcs_client, cache)} == {node.node_id for node in there}
            assert cache.tasks()[0]["status"] == "FAILED"
            check_whole(dcs_client, cache)
        with closing(sqlite3.connect(yard.data / "cacheyard.sqlite", timeout=30)) as database:
            held = database.execute(
                "SELECT count(*) FROM addresses WHERE instance_id IN (?, ?)",
                [cache.id for cache in caches.values()],
            ).fetchone()
        assert held == (3 + 6,)  # the pair's two and its floating one, the cluster's six


def is_free(cache: Cache) -> bool:
    return cache.show()["task"] is None


@pytest.mark.parametrize("kind", ["ha", "cluster"])
@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_killed_service_goes_on_with_it(
    fresh_service: Callable[..., Service], kind: str, change: str
) -> None:
    service = fresh_service(CACHEYARD_OVERCOMMIT="100")
    sdk = service.sdk_token()
    few, many = body(2, kind, **REMOVE), body(4, kind, **ADD)
    first = SMALLEST[kind] | {"spec_code": (few if change == "add" else many)["spec_code"]}
    asked, back = (many, few) if change == "add" else (few, many)
    with made(service, **first) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        for delay in (0.0, 0.04, 0.1):
            resize(sdk, cache, asked)
            time.sleep(delay)
            service.kill()
            service.start()
            shown = cache.until_running()
            assert shown["spec_code"] == asked["spec_code"]
            check_whole(sdk, cache)
            resized(sdk, cache, back)
        check_nothing_lost(traffic)
        until(
            lambda: (
                sum("redis-server" in each for each in service.processes().values())
                == len(nodes(sdk, cache)) + 3 * (kind == "ha")
            ),  # the Sentinels
            seconds=10,
            what="no process to be left over",
        )
