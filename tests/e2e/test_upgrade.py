"""Instances get a newer patch of their version: replicas first, then their masters hand over.

The newer patch is a double: a script that tells another version and then becomes the server that is
installed. What is tested is which program runs in which order, not what Redis changed in it.
"""

import asyncio
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chaos.traffic import Traffic
from huaweicloudsdkdcs import v2 as dcs
from support import servers
from support.caches import HA, PASSWORD, Cache, made, refused
from support.clusters import spec
from support.inside import inside
from support.proxied import FORMS, groups, needs_program, of_role
from support.service import Service
from support.waiting import until

from cacheyard.domain.engines import SOLD, choose
from cacheyard.domain.tasks import Change
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.upgrade import UPGRADE, upgrade_replicas

NOW = servers.ENGINES[-1]
LINE = f"{NOW.version[0]}.{NOW.version[1]}"
NEWER, BROKEN = f"{LINE}.98", f"{LINE}.99"
SHAPES: dict[str, dict[str, Any]] = {
    "single": {},
    "ha": {"spec_code": "redis.ha.xu1.tiny.r3.128"},
    "cluster": spec("r2.4"),
    **FORMS,
}
VERSION = max(version for version in SOLD if tuple(map(int, version.split("."))) <= NOW.version[:2])


def double(directory: Path, version: str, *, works: bool) -> Path:
    """A program that says that it is that version; it then becomes a copy of the server, or ends."""
    place = directory / version
    place.mkdir()
    program, copy = place / "redis-server", place / "server"
    shutil.copy(Path(NOW.binary).resolve(), copy)
    told = subprocess.run([NOW.binary, "--version"], capture_output=True, text=True, check=True).stdout
    program.write_text(
        "#!/bin/sh\n"
        f"[ \"$1\" = --version ] && exec echo '{told.replace(NOW.version_text, version).strip()}'\n"
        f'{f"exec {copy}" if works else "exit 1"} "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Servers to be installed, by version."""
    place = Path(tmp_path_factory.mktemp("programs"))
    return {
        NEWER: double(place, NEWER, works=True),
        BROKEN: double(place, BROKEN, works=False),
    }


@pytest.fixture
def yard() -> Iterator[Service]:
    """A service on which nothing is newer yet."""
    with Service(CACHEYARD_OVERCOMMIT="100") as running:
        yield running


def install(yard: Service, program: Path) -> None:
    """As an administrator does: the program is there, and the service is started again."""
    yard.restart(CACHEYARD_ENGINES=str(program))


def upgrade(sdk: Any, cache: Cache, version: str = "latest") -> str:
    """Ask for it as the provider does; the task's id."""
    body = dcs.UpgradeMinorVersionRequestBody(engine_minor_version=version, proxy_minor_version="latest")
    request = dcs.UpgradeInstanceMinorVersionRequest(instance_id=cache.id, body=body)
    return str(sdk.upgrade_instance_minor_version(request).task_id)


def ended(cache: Cache, task_id: str) -> str:
    """How a task ended."""

    def status() -> str | None:
        found = cache.service.http("GET", f"/v2/{{p}}/jobs/{task_id}").json()
        return found["status"] if found["status"] in ("SUCCESS", "FAIL") else None

    return until(status, seconds=120, what="the upgrade to end", pause=0.02)


def running(cache: Cache) -> set[Path]:
    """The programs that run as its nodes."""
    with closing(sqlite3.connect(cache.service.data / "cacheyard.sqlite", timeout=10)) as connection:
        query = "SELECT seen_pid FROM nodes WHERE instance_id = ?"
        pids = [row[0] for row in connection.execute(query, (cache.id,))]
    return {Path(f"/proc/{pid}/exe").readlink() for pid in pids}


def shown(cache: Cache) -> dict[str, Any]:
    """What the API says of versions."""
    found: dict[str, Any] = cache.http("GET", "/version").json()
    return found


BEHIND = [
    needs_program,
    pytest.mark.skipif(choose(servers.ENGINES, "6.0") != NOW, reason="6.0 is served by an older line"),
]


def lost(cache: Cache, traffic: Traffic) -> list[Any]:
    """What was acknowledged and is not there, asked at the master where proxies would ask replicas."""
    if cache.show()["cache_mode"] != "ha_rw_split":
        return list(traffic.lost())
    (master,) = of_role(groups(cache)[0], "master")
    return list(traffic.lost(master["replication_ip"]))


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=BEHIND if shape in FORMS else []) for shape in SHAPES]
)
def test_all_nodes_of_an_instance_get_the_newest_patch_and_nothing_is_lost(
    yard: Service, programs: dict[str, Path], shape: str
) -> None:
    sdk = yard.sdk()
    with made(yard, **{"engine_version": VERSION} | SHAPES[shape]) as cache:
        install(yard, programs[NEWER])
        assert cache.show()["internal_version"] == NOW.version_text
        assert shown(cache)["latest_engine_minor_version"] == NEWER
        assert running(cache) == {Path(NOW.binary).resolve()}
        with Traffic(cache.show(), PASSWORD) as traffic:
            began = time.monotonic()
            assert ended(cache, upgrade(sdk, cache)) == "SUCCESS"
            traffic.flows(20)
            over = time.monotonic()
            traffic.stop()
            assert lost(cache, traffic) == []
            if shape != "single":  # which is restarted, and cannot be written to meanwhile
                assert traffic.gap(began, over) < 3, traffic.errors
        assert running(cache) == {programs[NEWER].with_name("server")}
        assert cache.until_running()["internal_version"] == NEWER
        assert shown(cache)["engine_minor_version_upgradable"] is False


def test_what_is_the_latest_already_is_left_alone(yard: Service) -> None:
    sdk = yard.sdk()
    with made(yard, engine_version=VERSION, spec_code=HA) as cache, inside(cache) as known:
        before = [(node.seen_pid, node.role) for node in known.nodes]
        assert ended(cache, upgrade(sdk, cache)) == "SUCCESS"
        assert [(node.seen_pid, node.role) for node in known.nodes] == before
        assert cache.show()["internal_version"] == NOW.version_text


def test_a_version_that_cannot_be_had_is_refused(yard: Service, programs: dict[str, Path]) -> None:
    sdk = yard.sdk()
    with made(yard, engine_version=VERSION) as cache:
        install(yard, programs[NEWER])
        with refused(400, "DCS.4053", NOW.version_text):
            upgrade(sdk, cache, NOW.version_text)
        for version in (f"{LINE}.0", f"{LINE}.97", "5.0.14", "newest"):
            with refused(400, "DCS.4800", "engine_minor_version"):
                upgrade(sdk, cache, version)
        with refused(400, "DCS.4800", "engine_minor_version"):
            upgrade(sdk, cache, "")
        with refused(404, "DCS.3022"):
            upgrade(sdk, Cache(yard, "none"))
        assert [task["name"] for task in cache.tasks()] == ["create"]
        assert ended(cache, upgrade(sdk, cache, NEWER)) == "SUCCESS"


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_service_that_is_killed_in_an_upgrade_ends_it(
    yard: Service, programs: dict[str, Path], shape: str
) -> None:
    sdk = yard.sdk()
    with made(yard, engine_version=VERSION, **SHAPES[shape]) as cache:
        install(yard, programs[NEWER])
        with Traffic(cache.show(), PASSWORD) as traffic:
            task_id = upgrade(sdk, cache)
            for _ in range(3):
                time.sleep(0.4)
                yard.kill()
                yard.start()
            assert ended(cache, task_id) == "SUCCESS"
            traffic.flows(20)
            traffic.stop()
            assert traffic.lost() == []
        assert running(cache) == {programs[NEWER].with_name("server")}
        assert cache.until_running()["internal_version"] == NEWER


def test_a_program_that_does_not_start_is_taken_back(
    yard: Service, programs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheyard.tasks.nodes.SETTLE_SECONDS", 2.0)
    with made(yard, engine_version=VERSION, spec_code=HA) as cache, inside(cache) as known:
        install(yard, programs[BROKEN])
        with cache.client() as link:
            link.set("key", "value")
        arguments = {
            "binary": str(programs[BROKEN]),
            "version": BROKEN,
            "incarnations": {node.id: node.incarnation + 1 for node in known.nodes},
            "undo": {node.id: node.binary for node in known.nodes},
            "proxies": {},
        }
        masters, work = known.masters, known.begun(Change.UPGRADE, arguments)

        async def upgraded() -> None:
            with pytest.raises(StepFailed):
                await upgrade_replicas(work)
            await UPGRADE.undo(work)

        asyncio.run(upgraded())
        assert cache.until_running()["internal_version"] == NOW.version_text
        until(lambda: all(node.settled for node in known.nodes), seconds=20, what="the replicas as well")
        assert known.masters == known.masters_in_fact() == masters
        with cache.client() as link:
            assert link.get("key") == "value"
            link.set("key", "again")
            assert link.wait(1, 5000) == 1
