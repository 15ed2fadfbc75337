"""What is done to instances behind proxies while clients write to their one address; nothing is lost."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support.caches import PASSWORD, Cache, made, refused
from support.inside import inside
from support.proxied import (
    FORMS,
    groups,
    job,
    logical_nodes,
    needs_program,
    of_role,
    proxies,
    servers,
)
from support.service import Service
from support.waiting import until

from cacheyard.domain.nodes import NodeState
from cacheyard.domain.tasks import Change
from cacheyard.engine import find
from cacheyard.services.proxies import replacements
from cacheyard.store import hosts
from cacheyard.store import proxies as proxy_rows
from cacheyard.store.db import Store
from cacheyard.store.proxies import ProxyReport
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.upgrade import UPGRADE, upgrade_proxies

pytestmark = needs_program

GAP = 5.0  # seconds without a write; machines that test are busy


@pytest.fixture(scope="module", params=list(FORMS))
def front(yard: Service, request: pytest.FixtureRequest) -> Iterator[Cache]:
    """An instance of each type, which the tests change in turn."""
    with made(yard, name="front-1", az_codes=yard.facts.az_codes[:2], **FORMS[request.param]) as cache:
        yield cache


@pytest.fixture
def traffic(front: Cache) -> Iterator[Traffic]:
    """Writes to it, all of which are there in the end."""
    front.until_running()
    with Traffic(front.show(), PASSWORD, prefix=f"n{time.monotonic_ns()}") as flowing:
        yield flowing


def nothing_lost(front: Cache, traffic: Traffic) -> None:
    """Writes go on, and all that were acknowledged are there: at a master, if replicas may be behind."""
    traffic.flows(20)
    traffic.stop()
    shown = front.show()
    master = of_role(groups(front)[0], "master")[0]["replication_ip"]
    assert traffic.lost(shown["ip"] if shown["cache_mode"] == "proxy" else master) == []


def status(front: Cache, action: str, *node_ids: str) -> str:
    """Ask by the SDK; how the job ended."""
    body = dcs.ChangeNodesStartStopStatusBody(node_ids=list(node_ids), action=action)
    request = dcs.ChangeNodesStartStopStatusRequest(instance_id=front.id, body=body)
    answer = front.service.sdk_token().change_nodes_start_stop_status(request).body
    return job(front, str(answer).removeprefix("job_id:"))


def states(front: Cache) -> dict[str, str]:
    """Of all nodes and proxies, by id."""
    return {one["node_id"]: one["status"] for one in logical_nodes(front)}


def ended(front: Cache) -> None:
    """Wait for the last task to end well."""

    def over() -> bool:
        task = front.tasks()[0]
        assert task["status"] != "FAILED", task
        return bool(task["status"] == "SUCCESS" and front.show()["task"] is None)

    until(over, seconds=120, what="the task to end", pause=0.05)


# --- Masters and nodes ----------------------------------------------------------------------------


def test_a_master_hands_over_and_clients_keep_their_connections(front: Cache, traffic: Traffic) -> None:
    sdk = front.service.sdk_token()
    group = groups(front)[0]
    (old,), (new, *_) = of_role(group, "master"), of_role(group, "slave")
    with front.client() as link:
        assert link.set("key", "before")
        mine: Any = link.client_id()
        began = time.monotonic()
        if front.show()["cache_mode"] == "proxy":
            request = dcs.ExecuteClusterSwitchoverRequest(
                instance_id=front.id, group_id=group["group_id"], node_id=new["node_id"]
            )
            job_id = sdk.execute_cluster_switchover(request).job_id
        else:
            request = dcs.ChangeMasterStandbyAsyncRequest(instance_id=front.id)
            job_id = sdk.change_master_standby_async(request).job_id
        assert job(front, job_id) == "SUCCESS"
        traffic.flows(20)
        over = time.monotonic()
        assert link.set("key", "after")
        assert link.client_id() == mine
    (master,) = of_role(groups(front)[0], "master")
    assert master["node_id"] != old["node_id"]
    if front.show()["cache_mode"] == "proxy":
        assert master["node_id"] == new["node_id"]
    nothing_lost(front, traffic)
    assert traffic.gap(began, over) < GAP, traffic.errors
    assert not traffic.errors, "what is written to the old master is sent on to the new one"


def test_a_split_instance_can_be_swapped_by_a_request_that_waits(front: Cache) -> None:
    if front.show()["cache_mode"] != "ha_rw_split":
        with refused(400, "DCS.4855"):
            front.service.sdk_token().change_master_standby(
                dcs.ChangeMasterStandbyRequest(instance_id=front.id)
            )
        return
    (old,) = of_role(groups(front)[0], "master")
    front.service.sdk_token().change_master_standby(dcs.ChangeMasterStandbyRequest(instance_id=front.id))
    (new,) = of_role(groups(front)[0], "master")
    assert new["node_id"] != old["node_id"]


def test_a_replica_has_a_priority_and_one_with_0_is_not_promoted(front: Cache) -> None:
    sdk, group = front.service.sdk_token(), groups(front)[0]

    def prioritize(node: dict[str, Any], weight: int) -> None:
        request = dcs.UpdateSlavePriorityRequest(
            instance_id=front.id,
            group_id=group["group_id"],
            node_id=node["node_id"],
            body=dcs.PriorityBody(slave_priority_weight=weight),
        )
        sdk.update_slave_priority(request)

    replica, *others = of_role(group, "slave")
    if not others:  # no failover would be left
        with refused(400, "DCS.4253", "slave_priority_weight"):
            prioritize(replica, 0)
        prioritize(replica, 7)
    else:
        prioritize(replica, 0)
    shown = {one["node_id"]: one["priority_weight"] for one in servers(front)}
    assert shown[replica["node_id"]] == (0 if others else 7)
    if others:
        sdk.change_master_standby(dcs.ChangeMasterStandbyRequest(instance_id=front.id))
        (master,) = of_role(groups(front)[0], "master")
        assert master["node_id"] != replica["node_id"]
    prioritize(replica, 100)


def test_a_master_is_stopped_and_comes_back_as_a_replica(front: Cache, traffic: Traffic) -> None:
    master = of_role(groups(front)[0], "master")[0]["node_id"]
    assert status(front, "stop", master) == "SUCCESS"
    assert states(front).pop(master) == "Inactive"
    until(
        lambda: {one["status"] for one in proxies(front)} == {"Active"},
        seconds=20,
        what="the proxies to know the new master",
    )
    assert master in {one["node_id"] for one in of_role(groups(front)[0], "slave")}
    traffic.flows(20)
    assert status(front, "start", master) == "SUCCESS"
    assert set(states(front).values()) == {"Active"}
    nothing_lost(front, traffic)


def test_proxies_stop_with_the_last_node_and_start_with_the_first(front: Cache) -> None:
    with front.client() as link:
        assert link.set("key", "kept")
        assert status(front, "stop") == "SUCCESS"
        assert front.show()["status"] == "CLOSED"
        assert set(states(front).values()) == {"Inactive"}
        with pytest.raises(redis.RedisError):
            link.ping()
    with front.client(host=front.show()["ip"], port=6379) as link, pytest.raises(redis.RedisError):
        link.ping()
    assert status(front, "start") == "SUCCESS"
    assert set(states(front).values()) == {"Active"}
    with front.client() as link:
        assert link.get("key") == "kept"


@pytest.mark.parametrize("action", ["restart", "soft_restart"])
def test_it_restarts_with_its_data(front: Cache, action: str) -> None:
    with front.client() as link:
        assert link.set(action, "kept")
    assert front.act(action).status_code == 200
    front.until_running()
    with front.client() as link:
        assert link.get(action) == "kept"


def test_it_is_closed_and_started_by_the_batch_actions(front: Cache) -> None:
    assert front.act("stop").status_code == 200
    front.until_running("CLOSED")
    assert set(states(front).values()) == {"Inactive"}
    assert front.act("start").status_code == 200
    front.until_running()
    with front.client() as link:
        assert link.set("key", "value")


def test_it_is_flushed(front: Cache) -> None:
    with front.client() as link:
        for number in range(50):
            link.set(f"flush:{number}", number)
        assert link.dbsize() >= 50
        assert front.act("flush").status_code == 200
        front.until_running()
        until(lambda: link.dbsize() == 0, seconds=10, what="no key to be left")


def test_another_port_is_the_proxies_too(front: Cache) -> None:
    assert front.http("PUT", json={"port": 6400}).status_code == 204
    assert front.until_running()["port"] == 6400
    assert {one["node_port"] for one in proxies(front)} == {"6400"}
    with front.client() as link:
        assert link.set("key", "value")
    with front.client(port=6379, host=front.show()["ip"]) as link, pytest.raises(redis.RedisError):
        link.ping()
    assert front.http("PUT", json={"port": 6379}).status_code == 204
    front.until_running()


def test_commands_have_other_names_through_proxies(front: Cache) -> None:
    assert front.http("PUT", json={"rename_commands": {"dbsize": "howmany"}}).status_code == 204
    front.until_running()
    with front.client() as link:
        link.set("key", "value")
        until(lambda: link.execute_command("HOWMANY") >= 1, seconds=10, what="the new name to be known")
        with pytest.raises(redis.ResponseError, match="unknown command"):
            link.execute_command("DBSIZE")
    assert front.http("PUT", json={"rename_commands": {"dbsize": "dbsize"}}).status_code == 204
    front.until_running()
    with front.client() as link:
        assert link.dbsize() >= 1


# --- Zones ----------------------------------------------------------------------------------------


def migrate(front: Cache, *zones: str) -> None:
    body = dcs.MigrateAZRequestBody(new_available_zones=list(zones))
    front.service.sdk_token().migrate_az(dcs.MigrateAzRequest(instance_id=front.id, body=body))


def test_nodes_and_proxies_move_to_other_zones(front: Cache, traffic: Traffic) -> None:
    (a, b, c), before = front.service.facts.az_codes, logical_nodes(front)
    ip = front.show()["ip"]
    began = time.monotonic()
    migrate(front, c)
    ended(front)
    traffic.flows(20)
    over = time.monotonic()
    after = logical_nodes(front)
    assert {one["az_code"] for one in after} == {c}
    assert {one["logical_node_id"] for one in after} == {one["logical_node_id"] for one in before}
    assert {one["node_id"] for one in after}.isdisjoint({one["node_id"] for one in before})
    assert set(states(front).values()) == {"Active"}
    shown = front.show()
    assert (shown["ip"], shown["az_codes"]) == (ip, [c])
    nothing_lost(front, traffic)
    assert traffic.gap(began, over) < GAP, traffic.errors
    only_these_proxies(front)
    migrate(front, a, b)
    ended(front)
    assert {one["az_code"] for one in proxies(front)} == {a, b}


def only_these_proxies(front: Cache) -> None:
    """No process and no directory is left of others."""
    root = front.service.data / "proxies"

    def gone() -> bool:
        return {path.name for path in root.iterdir()} == {one["node_id"] for one in proxies(front)}

    until(gone, seconds=20, what="the old proxies to be gone")


def test_who_is_in_the_zones_already_does_not_move(front: Cache) -> None:
    before, tasks = logical_nodes(front), len(front.tasks())
    migrate(front, *front.show()["az_codes"])
    assert logical_nodes(front) == before
    assert len(front.tasks()) == tasks


def test_a_service_that_is_killed_while_they_move_ends_it(front: Cache, traffic: Traffic) -> None:
    c, before = front.service.facts.az_codes[2], logical_nodes(front)
    migrate(front, c)
    for _ in range(2):
        time.sleep(0.6)
        front.service.kill()
        front.service.start()
    ended(front)
    after = logical_nodes(front)
    assert {one["az_code"] for one in after} == {c}
    assert {one["logical_node_id"] for one in after} == {one["logical_node_id"] for one in before}
    nothing_lost(front, traffic)
    only_these_proxies(front)


# --- Versions -------------------------------------------------------------------------------------


INSTALLED = find.proxy()


def program(directory: Path, version: str, *, works: bool = True) -> str:
    """A program that says it is a proxy of that version: it becomes the installed one then, or ends."""
    place = directory / f"cacheyard-proxy-{version}"
    place.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec echo cacheyard-proxy {version}\n'
        f'{f"exec {INSTALLED}" if works else "exit 1"} "$@"\n'
    )
    place.chmod(0o755)
    return str(place)


@pytest.fixture
def installs(front: Cache) -> Iterator[Callable[[str], None]]:
    """Installs a program as an administrator does, who starts the service again; in the end the old one."""
    service = front.service
    yield lambda path: service.restart(CACHEYARD_PROXY=path)
    service.restart(CACHEYARD_PROXY=str(INSTALLED))


def upgrade(front: Cache, **wanted: str) -> str:
    """Ask by the SDK; how the job ended."""
    body = dcs.UpgradeMinorVersionRequestBody(**wanted)
    request = dcs.UpgradeInstanceMinorVersionRequest(instance_id=front.id, body=body)
    return job(front, front.service.sdk_token().upgrade_instance_minor_version(request).task_id)


def versions(front: Cache) -> tuple[str | None, str, bool]:
    """Of proxies: what runs (None: not seen yet), what could, and whether that is another."""
    shown = front.http("GET", "/version").json()
    return (
        shown.get("proxy_minor_version"),
        shown["latest_proxy_minor_version"],
        shown["proxy_minor_version_upgradable"],
    )


def test_proxies_become_the_installed_version_one_after_another(
    front: Cache, traffic: Traffic, installs: Callable[[str], None], tmp_path: Path
) -> None:
    now, before = versions(front)[0], logical_nodes(front)
    installs(program(tmp_path, "9.8.7"))
    assert versions(front) == (now, "9.8.7", True)
    began = time.monotonic()
    assert upgrade(front, engine_minor_version="latest", proxy_minor_version="latest") == "SUCCESS"
    traffic.flows(20)
    over = time.monotonic()
    until(lambda: versions(front) == ("9.8.7", "9.8.7", False), seconds=20, what="the versions to be seen")
    after = logical_nodes(front)
    assert {one["logical_node_id"] for one in after} == {one["logical_node_id"] for one in before}
    assert [one for one in after if one["node_role"] == "redis-server"] == [
        one for one in before if one["node_role"] == "redis-server"
    ]
    assert {one["node_id"] for one in proxies(front)}.isdisjoint({one["node_id"] for one in before})
    nothing_lost(front, traffic)
    assert traffic.gap(began, over) < GAP, traffic.errors
    only_these_proxies(front)


def test_an_agent_that_dies_before_it_reports_a_proxy_does_not_lose_its_version(
    front: Cache, installs: Callable[[str], None], tmp_path: Path
) -> None:
    now, before = versions(front)[0], {one["node_id"] for one in proxies(front)}
    installs(program(tmp_path, "9.9.0"))
    front.service.kill()
    with closing(Store(front.service.data / "cacheyard.sqlite")) as store, store.write() as tx:
        for proxy in proxy_rows.of_instance(tx, front.id):
            unseen = ProxyReport(
                proxy_id=proxy.id, state=NodeState.CREATING, since=0, digest="", pid=None, error=None
            )
            proxy_rows.report_all(tx, [unseen])
    front.service.start()
    until(lambda: versions(front) == (now, "9.9.0", True), seconds=20, what="the versions to be seen")
    until(lambda: set(states(front).values()) == {"Active"}, seconds=20, what="all to be seen")
    assert upgrade(front, proxy_minor_version="9.9.0") == "SUCCESS"
    assert {one["node_id"] for one in proxies(front)}.isdisjoint(before)


def test_a_proxy_that_does_not_start_leaves_the_old_ones(
    front: Cache, traffic: Traffic, installs: Callable[[str], None], tmp_path: Path
) -> None:
    before = logical_nodes(front)
    installs(program(tmp_path, "9.9.9", works=False))
    with inside(front) as known:
        with known.store.read() as tx:
            (host,) = hosts.every(tx)
            going = proxy_rows.of_instance(tx, front.id)
        arguments = {
            "binary": "",
            "version": known.instance.internal_version,
            "incarnations": {},
            "undo": {},
            "proxies": replacements([host], [(one, one.az_code) for one in going]),
        }
        work = known.begun(Change.UPGRADE, arguments)

        async def upgraded() -> None:
            with pytest.raises(StepFailed, match="proxy 0"):
                await upgrade_proxies(work)
            await UPGRADE.undo(work)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("cacheyard.tasks.steps.SETTLE_SECONDS", 2.0)
            asyncio.run(upgraded())
    front.until_running()
    assert logical_nodes(front) == before
    nothing_lost(front, traffic)
    only_these_proxies(front)


def test_a_service_that_is_killed_while_proxies_are_upgraded_ends_it(
    front: Cache, traffic: Traffic, installs: Callable[[str], None], tmp_path: Path
) -> None:
    before = proxies(front)
    installs(program(tmp_path, "9.9.1"))
    body = dcs.UpgradeMinorVersionRequestBody(proxy_minor_version="9.9.1")
    request = dcs.UpgradeInstanceMinorVersionRequest(instance_id=front.id, body=body)
    task_id = front.service.sdk_token().upgrade_instance_minor_version(request).task_id
    for _ in range(2):
        time.sleep(0.3)
        front.service.kill()
        front.service.start()
    assert job(front, task_id) == "SUCCESS"
    until(lambda: versions(front)[0] == "9.9.1", seconds=20, what="the version to be seen")
    assert [one["logical_node_id"] for one in proxies(front)] == [one["logical_node_id"] for one in before]
    nothing_lost(front, traffic)
    only_these_proxies(front)
