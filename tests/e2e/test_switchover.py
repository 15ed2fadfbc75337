"""Chapters 5.2.2, 5.2.10 and 5.2.11: masters hand over to replicas while clients write; nothing is lost."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import pytest
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, PASSWORD, Cache, made, refused
from support.clusters import spec
from support.inside import inside
from support.service import Service
from support.waiting import until

from cacheyard.domain.tasks import Change
from cacheyard.engine.redis import Link
from cacheyard.tasks.engine import Work
from cacheyard.tasks.switchover import SWITCHOVER
from cacheyard.tasks.tools import Tools

SOAK = bool(os.environ.get("CACHEYARD_SOAK"))
ROUNDS = 100 if SOAK else 10
GAP = 0.2 if SOAK else 2.0  # seconds without a write; machines that test are busy
KILLS = 60 if SOAK else 3
EVERY = 1 if SOAK else 3  # of all moments at which a switchover can break off
SPREAD = 0.08  # seconds; a switchover takes about so long

CLUSTER = spec("r2.4")


def groups(cache: Cache) -> list[dict[str, Any]]:
    """The shards as the API shows them."""
    answer = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups")
    found: list[dict[str, Any]] = answer.json()["group_list"]
    return found


def of_role(group: dict[str, Any], role: str) -> list[str]:
    """Node ids."""
    return [one["node_id"] for one in group["replication_list"] if one["replication_role"] == role]


def ips(group: dict[str, Any]) -> list[str]:
    """Of all nodes of a shard."""
    return [one["replication_ip"] for one in group["replication_list"]]


def says_master(cache: Cache, ip: str) -> bool:
    """Whether a node says that it is a master."""
    with closing(cache.client(host=ip, port=6379)) as link:
        answer: Any = link.execute_command("INFO", "replication")  # type: ignore[no-untyped-call]
    return bool(answer["role"] == "master")


def full_copies(cache: Cache, *hosts: str) -> int:
    """How often replicas had to be given all data anew."""
    total = 0
    for ip in hosts:
        with closing(cache.client(host=ip, port=6379)) as link:
            stats: Any = link.info("stats")
            total += stats["sync_full"]
    return total


def job(cache: Cache, job_id: str) -> dict[str, Any]:
    """A job at its end."""

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = cache.service.http("GET", f"/v2/{{p}}/jobs/{job_id}").json()
        return found if found["status"] in ("SUCCESS", "FAIL") else None

    return until(ended, seconds=60, what=f"job {job_id} to end", pause=0.02)


def test_ten_swaps_of_master_and_standby_lose_nothing(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, spec_code=HA) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        (group,) = groups(cache)
        master = of_role(group, "master")
        copies = full_copies(cache, *ips(group))
        swaps = []
        for _ in range(ROUNDS):
            began = time.monotonic()
            sdk.change_master_standby(dcs.ChangeMasterStandbyRequest(instance_id=cache.id))
            (group,) = groups(cache)
            assert of_role(group, "slave") == master  # the request waits for the end
            master = of_role(group, "master")
            traffic.flows(10)
            swaps.append((began, time.monotonic()))
        assert full_copies(cache, *ips(group)) == copies
        traffic.stop()
        assert traffic.lost() == []
        gaps = [traffic.gap(began, ended) for began, ended in swaps]
        assert max(gaps) < GAP, gaps
        assert sorted(says_master(cache, ip) for ip in ips(group)) == [False, True]


def test_a_swap_is_a_job_when_asked_for_so(yard: Service) -> None:
    with made(yard, spec_code=HA) as cache:
        (group,) = groups(cache)
        answer = yard.sdk().change_master_standby_async(
            dcs.ChangeMasterStandbyAsyncRequest(instance_id=cache.id)
        )
        ended = job(cache, answer.job_id)
        assert (ended["status"], ended["job_type"]) == ("SUCCESS", "masterStandbySwapJob")
        assert of_role(groups(cache)[0], "master") == of_role(group, "slave")


def test_of_several_replicas_the_one_with_the_lowest_priority_number_is_promoted(yard: Service) -> None:
    with made(yard, spec_code="redis.ha.xu1.tiny.r3.128") as cache:
        (group,) = groups(cache)
        first, second = of_role(group, "slave")
        for node_id, weight in ((first, 0), (second, 70)):
            path = f"/v2/{{p}}/instance/{cache.id}/groups/{group['group_id']}/replications/{node_id}"
            answer = yard.http("POST", f"{path}/slave-priority", json={"slave_priority_weight": weight})
            assert answer.status_code == 204, answer.text
        assert cache.http("POST", "/swap").status_code == 204
        (group,) = groups(cache)
        assert of_role(group, "master") == [second]
        new = next(one["replication_ip"] for one in group["replication_list"] if one["node_id"] == second)

        def both_follow() -> bool:
            with closing(cache.client(host=new, port=6379)) as link:
                told: Any = link.info("replication")
            return bool(told["connected_slaves"] == 2)

        until(both_follow, seconds=10, what="both others to follow the new master")


def test_ten_switchovers_of_cluster_shards_lose_nothing(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, **CLUSTER) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        switches = []
        everyone = [ip for group in groups(cache) for ip in ips(group)]
        copies = full_copies(cache, *everyone)
        for number in range(ROUNDS):
            group = groups(cache)[number % 3]
            (wanted,) = of_role(group, "slave")
            began = time.monotonic()
            request = dcs.ExecuteClusterSwitchoverRequest(
                instance_id=cache.id, group_id=group["group_id"], node_id=wanted
            )
            answer = sdk.execute_cluster_switchover(request)
            assert job(cache, answer.job_id)["status"] == "SUCCESS"
            assert of_role(groups(cache)[number % 3], "master") == [wanted]
            traffic.flows(10)
            switches.append((began, time.monotonic()))
        assert full_copies(cache, *everyone) == copies
        traffic.stop()
        assert traffic.lost() == []
        gaps = [traffic.gap(began, ended) for began, ended in switches]
        assert max(gaps) < GAP, gaps
        for group in groups(cache):
            assert sorted(says_master(cache, ip) for ip in ips(group)) == [False, True]


def switch(sdk: Any, cache: Cache, group_id: str, node_id: str) -> Any:
    """5.2.10 by the SDK."""
    request = dcs.ExecuteClusterSwitchoverRequest(instance_id=cache.id, group_id=group_id, node_id=node_id)
    return sdk.execute_cluster_switchover(request)


def test_what_cannot_be_switched_is_refused(yard: Service) -> None:
    sdk = yard.sdk()
    swap = dcs.ChangeMasterStandbyRequest
    with made(yard) as single, made(yard, spec_code=HA) as ha, made(yard, **CLUSTER) as cluster:
        with refused(400, "DCS.4855", "no replicas"):
            sdk.change_master_standby(swap(instance_id=single.id))
        with refused(400, "DCS.4855", "cluster"):
            sdk.change_master_standby(swap(instance_id=cluster.id))
        with refused(404, "DCS.3022"):
            sdk.change_master_standby(swap(instance_id="none"))
        with refused(400, "DCS.4086"):
            switch(sdk, single, groups(single)[0]["group_id"], "node")
        (group,) = groups(ha)
        with refused(400, "DCS.4855", "swap"):
            switch(sdk, ha, group["group_id"], of_role(group, "slave")[0])
        one, other, _ = groups(cluster)
        with refused(404, "DCS.4001", "group_id"):
            switch(sdk, cluster, "none", of_role(one, "slave")[0])
        with refused(400, "DCS.3053", "node_id"):
            switch(sdk, cluster, one["group_id"], of_role(other, "slave")[0])
        with refused(400, "DCS.3053", "node_id"):
            switch(sdk, cluster, one["group_id"], of_role(group, "slave")[0])
        with refused(400, "DCS.4027", "master already"):
            switch(sdk, cluster, one["group_id"], of_role(one, "master")[0])
        for cache in (single, ha, cluster):
            assert [task["name"] for task in cache.tasks()] == ["create"]


def test_a_replica_that_is_not_in_sync_is_not_promoted(yard: Service) -> None:
    with made(yard, spec_code=HA) as cache, inside(cache) as known:
        (group,) = groups(cache)
        (replica,) = [one for one in group["replication_list"] if one["replication_role"] == "slave"]
        known.call(replica["replication_ip"], "REPLICAOF", "127.0.0.1", 1)
        with Traffic(cache.show(), PASSWORD) as traffic:
            answer = cache.http("PUT", "/async-swap")
            ended = job(cache, answer.json()["job_id"])
            assert ended["status"] == "FAIL"
            assert "in sync" in ended["fail_reason"]
            traffic.flows(10)
            traffic.stop()
            assert traffic.lost() == []
        assert of_role(groups(cache)[0], "master") == of_role(group, "master")
        assert cache.until_running()["status"] == "RUNNING"
        known.call(replica["replication_ip"], "REPLICAOF", *master_address(group))
        until(
            lambda: "master_link_status:up" in known.call(replica["replication_ip"], "INFO", "replication"),
            seconds=10,
            what="the replica to be back",
        )


def master_address(group: dict[str, Any]) -> tuple[str, int]:
    """Where a shard's master is."""
    ip = next(
        one["replication_ip"] for one in group["replication_list"] if one["replication_role"] == "master"
    )
    return ip, 6379


def test_a_replica_that_has_not_heard_of_its_masters_last_claim_does_not_take_over_yet(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, **CLUSTER) as cache, inside(cache) as known, Traffic(cache.show(), PASSWORD) as traffic:
        for number in range(4):
            group, other = groups(cache)[number % 3], groups(cache)[(number + 1) % 3]
            for one in (other, group):  # a newer claim, of which nobody is told before the next ping
                known.call(master_address(one)[0], "CLUSTER", "BUMPEPOCH")
            (wanted,) = of_role(group, "slave")
            assert job(cache, switch(sdk, cache, group["group_id"], wanted).job_id)["status"] == "SUCCESS"
            traffic.flows(20)
            assert of_role(groups(cache)[number % 3], "master") == [wanted]
        traffic.stop()
        assert traffic.lost() == []
        assert known.masters == known.masters_in_fact()


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_a_service_that_is_killed_in_a_switchover_ends_it(yard: Service, kind: str) -> None:
    shape = {"spec_code": HA} if kind == "ha" else CLUSTER
    with made(yard, **shape) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        for number in range(KILLS):
            group = groups(cache)[0]
            (wanted,) = of_role(group, "slave")
            if kind == "ha":
                assert cache.http("PUT", "/async-swap").status_code == 200
            else:
                path = f"/v2/{{p}}/instance/{cache.id}/groups/{group['group_id']}/replications/{wanted}"
                assert yard.http("POST", f"{path}/async-switchover").status_code == 200
            time.sleep(SPREAD * number / KILLS)
            yard.kill()
            yard.start()
            cache.until_running()
            assert of_role(groups(cache)[0], "master") == [wanted]
            assert sorted(says_master(cache, ip) for ip in ips(group)) == [False, True]
            traffic.flows(10)
        traffic.stop()
        assert traffic.lost() == []


class Broken(BaseException):
    """As if the service had been killed: nothing catches it."""


class Fuse:
    """Breaks the work at the n-th thing that it tells a server or writes down: before it or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for owner, name in ((Link, "call"), (Link, "calls"), (Tools, "write")):
            monkeypatch.setattr(owner, name, self._fused(getattr(owner, name)))

    def _fused(self, act: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def fused(*arguments: Any, **more: Any) -> Any:
            self._burn()
            done = await act(*arguments, **more)
            self._burn()
            return done

        return fused

    def _burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Broken


@pytest.mark.parametrize("kind", ["ha", "cluster"])
def test_a_switchover_that_breaks_off_anywhere_is_ended_by_beginning_again(
    yard: Service, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"spec_code": HA} if kind == "ha" else CLUSTER
    fuse = Fuse(monkeypatch)
    with made(yard, **shape) as cache, Traffic(cache.show(), PASSWORD) as traffic:
        broken, moment = True, 1 - EVERY
        while broken:
            moment += EVERY
            with inside(cache) as known:
                shard_id, old_id = next(iter(known.masters.items()))
                work = known.begun(Change.SWITCHOVER, {"from": {shard_id: old_id}, "to": {}})
                fuse.left = moment
                broken = fails(SWITCHOVER.steps[0], work)
                fuse.left = 0
                if kind == "ha":
                    known.masters_in_fact()  # asserts that there are not two
            with inside(cache) as known:
                again = Work(work.task, known.tools)
                for step in SWITCHOVER.steps:
                    asyncio.run(_done(step, again))
                assert known.masters == known.masters_in_fact(), moment
                assert known.masters[shard_id] != old_id, moment
            traffic.flows(10)
        assert moment > 20
        traffic.stop()
        assert traffic.lost() == []


def fails(step: Callable[[Work], Awaitable[None]], work: Work) -> bool:
    """Whether the fuse broke the step."""
    try:
        asyncio.run(_done(step, work))
    except Broken:
        return True
    return False


async def _done(step: Callable[[Work], Awaitable[None]], work: Work) -> None:
    await step(work)
