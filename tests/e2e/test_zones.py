"""Nodes move to other zones while clients write: new ones are made there and take over, the old ones go."""

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, PASSWORD, Cache, made, refused
from support.clusters import check, spec, until_whole
from support.inside import inside
from support.service import Service
from support.waiting import until

from cacheyard.store import hosts, network

CLUSTER = spec("r2.4")


def groups(cache: Cache) -> list[list[dict[str, Any]]]:
    """The nodes of each shard, the master first."""
    answer = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups")
    return [
        sorted(group["replication_list"], key=lambda one: one["replication_role"] != "master")
        for group in answer.json()["group_list"]
    ]


def places(cache: Cache) -> set[str]:
    """Ids of the places in all shards."""
    return {one["replication_id"] for group in groups(cache) for one in group}


def migrate(sdk: Any, cache: Cache, *zones: str, now: bool | None = None) -> None:
    """Ask for it by the SDK."""
    body = dcs.MigrateAZRequestBody(new_available_zones=list(zones), execute_immediately=now)
    sdk.migrate_az(dcs.MigrateAzRequest(instance_id=cache.id, body=body))


def moved(cache: Cache) -> None:
    """Wait for the end of a migration."""

    def ended() -> bool:
        task = cache.tasks()[0]
        assert task["status"] != "FAILED", task
        return bool(task["status"] == "SUCCESS" and cache.show()["task"] is None)

    until(ended, seconds=60, what="the nodes to be in their zones", pause=0.05)


def lost(cache: Cache, traffic: Traffic) -> list[Any]:
    """What was acknowledged and is not there, asked at the nodes that there are now."""
    traffic._target["hosts"] = cache.show()["ip"].split(",")
    return list(traffic.lost())


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_all_nodes_move_and_nothing_is_lost(yard: Service, shape: str) -> None:
    sdk, (a, b, c) = yard.sdk(), yard.facts.az_codes
    form = {"spec_code": HA} if shape == "ha" else CLUSTER
    with made(yard, **form, az_codes=[a, b]) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        before, there = groups(cache), places(cache)
        began = time.monotonic()
        migrate(sdk, cache, c)
        moved(cache)
        traffic.flows(20)
        over = time.monotonic()
        traffic.stop()
        assert lost(cache, traffic) == []
        assert traffic.gap(began, over) < 3, traffic.errors
        assert {one["az_code"] for group in groups(cache) for one in group} == {c}
        assert places(cache) == there
        gone = {one["node_id"] for group in before for one in group}
        assert gone.isdisjoint({one["node_id"] for group in groups(cache) for one in group})
        assert cache.show()["az_codes"] == [c]
        if shape == "cluster":
            until_whole(cache)
            check(cache)
        else:
            with closing(cache.client()) as link:
                assert link.set("key", "value")
                assert link.wait(1, 5000) == 1
        nothing_is_left(
            cache, nodes=sum(map(len, before)), addresses=len(before[0]) + 1 if shape == "ha" else 6
        )


def nothing_is_left(cache: Cache, *, nodes: int, addresses: int) -> None:
    """As many rows, directories and addresses as the instance has nodes."""
    with inside(cache) as known:
        assert len(known.nodes) == nodes
        assert all(node.settled and node.priority == 100 and node.in_dns for node in known.nodes)
        with known.store.read() as tx:
            assert len(network.addresses_of(tx, cache.id)) == addresses
        directories = {path.name for path in (cache.service.data / "nodes").iterdir() if path.is_dir()}
        assert directories == {node.id for node in known.nodes}


def test_a_master_whose_zone_is_wanted_stays_and_so_do_its_clients(yard: Service) -> None:
    sdk, (a, b, c) = yard.sdk(), yard.facts.az_codes
    with made(yard, spec_code=HA, az_codes=[a, b]) as cache, cache.client() as link:
        (before,) = groups(cache)
        assert link.set("key", "value")
        mine: Any = link.client_id()
        migrate(sdk, cache, c, a)
        moved(cache)
        (after,) = groups(cache)
        assert after[0] == before[0]
        assert (before[1]["az_code"], after[1]["az_code"]) == (b, c)
        assert link.client_id() == mine
        assert cache.show()["az_codes"] == [c, a]


def test_who_is_there_already_does_not_move(yard: Service) -> None:
    sdk, (a, b, _) = yard.sdk(), yard.facts.az_codes
    with made(yard, spec_code=HA, az_codes=[a, b]) as cache:
        before = groups(cache)
        migrate(sdk, cache, b, a)
        assert groups(cache) == before
        assert [task["name"] for task in cache.tasks()] == ["create"]


def test_a_migration_can_wait_for_the_maintenance_window(yard: Service) -> None:
    sdk, (a, b, c) = yard.sdk(), yard.facts.az_codes
    later = datetime.now(UTC) + timedelta(hours=3)
    window: dict[str, Any] = {
        "maintain_begin": f"{later:%H}:00",
        "maintain_end": f"{later + timedelta(hours=1):%H}:00",
    }
    with made(yard, spec_code=HA, az_codes=[a, b], **window) as cache:
        migrate(sdk, cache, c, now=False)
        (task, _) = cache.tasks()
        assert task["status"] == "WAITING"
        assert {one["az_code"] for group in groups(cache) for one in group} == {a, b}
        with refused(400, "DCS.4108", task["id"]):
            migrate(sdk, cache, c)
        now = datetime.now(UTC)
        opened = {"maintain_begin": f"{now:%H}:00", "maintain_end": f"{now + timedelta(hours=1):%H}:00"}
        assert cache.http("PUT", json=opened).status_code == 204
        moved(cache)
        assert cache.tasks()[0]["id"] == task["id"]
        assert {one["az_code"] for group in groups(cache) for one in group} == {c}


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_service_that_is_killed_in_a_migration_ends_it(yard: Service, shape: str) -> None:
    sdk, (a, b, c) = yard.sdk(), yard.facts.az_codes
    form = {"spec_code": HA} if shape == "ha" else CLUSTER
    with made(yard, **form, az_codes=[a, b]) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        there = places(cache)
        migrate(sdk, cache, c)
        for _ in range(3):
            time.sleep(0.3)
            yard.kill()
            yard.start()
        moved(cache)
        traffic.flows(20)
        traffic.stop()
        assert lost(cache, traffic) == []
        assert {one["az_code"] for group in groups(cache) for one in group} == {c}
        assert places(cache) == there


def test_what_cannot_be_is_refused_and_changes_nothing(yard: Service) -> None:
    sdk, (a, b, c) = yard.sdk(), yard.facts.az_codes
    with made(yard, az_codes=[a]) as single, made(yard, spec_code=HA, az_codes=[a, b]) as cache:
        with refused(400, "DCS.4086"):
            migrate(sdk, single, c)
        with refused(400, "DCS.4933", "new_available_zones"):
            migrate(sdk, cache, "nowhere")
        with refused(400, "DCS.4933", "new_available_zones"):
            migrate(sdk, cache)
        with refused(404, "DCS.3022"):
            migrate(sdk, Cache(yard, "none"), c)
        with inside(cache) as known, known.store.write() as tx:
            (host,) = hosts.every(tx)
            hosts.register(tx, msgspec.structs.replace(host, az_codes=(a, b)))
        try:
            with refused(400, "DCS.4054", "new_available_zones"):
                migrate(sdk, cache, c)
        finally:
            with inside(cache) as known, known.store.write() as tx:
                hosts.register(tx, host)
        assert [task["name"] for task in cache.tasks()] == ["create"]
        assert cache.show()["az_codes"] == [a, b]
