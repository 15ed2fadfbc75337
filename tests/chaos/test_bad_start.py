"""The service starts on what it finds: half-done work, lost and stale files, strangers, a busy database."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from chaos.service import REDIS, Service, alive, connect, get, put, spec
from support.waiting import until

from cacheyard.contract.types import CreateInstanceBody
from cacheyard.domain.identity import Principal
from cacheyard.services.bootstrap import ROLES
from cacheyard.services.call import Call, House
from cacheyard.services.lifecycle import create_instance
from cacheyard.settings import Settings
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

DONE = 10.0  # seconds until work that was under way is done, after a start
REFUSED = 10.0  # until a second service or agent has ended
GIVEN_UP = 60.0  # until a creation that cannot succeed is given up, after 30


def run(*command: str, service: Service) -> subprocess.CompletedProcess[str]:
    """A `cacheyard` command on the service's directory."""
    return subprocess.run(
        [sys.executable, "-m", "cacheyard", *command, "--data", str(service.data)],
        capture_output=True,
        text=True,
        timeout=REFUSED,
        check=False,
    )


# --- Work that was under way ----------------------------------------------------------------------


def test_an_instance_whose_rows_are_there_but_whose_task_never_began_is_made(service: Service) -> None:
    service.kill()
    instance_id = _write_rows_only(service)
    assert service.unfinished() == [f"create of {instance_id}"]
    service.start()
    service.now_running(instance_id, seconds=DONE)


def _write_rows_only(service: Service) -> str:
    """What the service does up to the point where it would start the task."""
    settings, first = Settings(data=service.data), service.first
    store = Store(settings.database)
    try:
        house = House(settings, first["region"], store, Sealer.of(settings.secret_key), lambda _task_id: None)
        who = Principal(
            user_id=first["user_id"],
            user_name=first["user_name"],
            domain_id=first["domain_id"],
            domain_name=first["domain_name"],
            project_id=first["project_id"],
            project_name=first["region"],
            roles=ROLES,
        )
        body = CreateInstanceBody(**service.body("cache", spec("ha", 128)))
        told = create_instance(Call(house, who, {"project_id": first["project_id"]}, body, ""))
    finally:
        store.close()
    assert told.instances
    return str(told.instances[0].instance_id)


# --- Files that lie -------------------------------------------------------------------------------


def test_what_a_killed_service_said_of_itself_stops_nothing_and_nobody(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    service.kill()
    said = service.data / "run" / "up.json"
    bystander = subprocess.Popen(["/bin/sleep", "60"])
    try:
        said.write_text(json.dumps(json.loads(said.read_bytes()) | {"pid": bystander.pid}))
        assert "Nothing serves" in run("down", service=service).stdout
        assert bystander.poll() is None
        service.start()
        assert json.loads(said.read_bytes())["pid"] == service.running.pid  # type: ignore[union-attr]
        assert get(shown, "key") == "value"
        service.kill()
        said.write_text("{")
        assert run("down", service=service).returncode == 0
        service.start()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_stray_directory_is_removed_and_what_runs_in_it_is_ended(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    node = service.nodes(shown["instance_id"])[0]
    service.kill()
    stray, lost = service.data / "nodes" / "stray", service.data / "nodes" / "lost"
    stray.mkdir()
    (stray / "dump.rdb").write_bytes(b"old")
    lost.mkdir()
    with (lost / "lock").open("w") as lock:  # as a server has it whose row is gone
        fcntl.flock(lock, fcntl.LOCK_EX)
        orphan = subprocess.Popen(
            [REDIS, "--port", "0", "--unixsocket", "s"],
            cwd=lost,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
    try:
        service.start()
        assert orphan.wait(DONE) == -9
        until(lambda: not stray.exists() and not lost.exists(), seconds=DONE, what="both to be removed")
    finally:
        orphan.kill()
        orphan.wait()
    assert service.pid(node) == node["seen_pid"]
    assert get(shown, "key") == "value"


# --- Strangers ------------------------------------------------------------------------------------


def test_an_address_that_a_stranger_has_fails_the_creation_and_says_so(service: Service) -> None:
    wanted = service.running_instance("first", spec("single", 128))["ip"].rsplit(".", 1)[0] + ".77"
    with _stranger(wanted) as stranger:
        instance_id = service.create("cache", spec("single", 128), private_ip=wanted)
        shown = service.at_rest(instance_id, seconds=GIVEN_UP)
        assert shown is not None
        assert shown["status"] == "CREATEFAILED"
        task = service.rows("SELECT * FROM tasks WHERE instance_id = ?", instance_id)[0]
        assert task["status"] == "FAILED"
        assert wanted in task["error"]
        assert "port 6379" in task["error"] or f"{wanted}:6379" in task["error"]
        job = service.call("GET", f"/jobs/{task['id']}")
        assert (job["status"], job["fail_reason"]) == ("FAIL", task["error"])
        assert service.pid(service.nodes(instance_id)[0]) is None
        with closing(connect(wanted, password=None)) as client:
            assert client.info("server")["process_id"] == stranger.pid
        service.delete(instance_id)
        assert service.at_rest(instance_id) is None
    assert service.leftovers() == []
    service.running_instance("cache", spec("single", 128), private_ip=wanted)


def _listens(ip: str) -> bool:
    with socket.create_connection((ip, 6379)):
        return True


@contextmanager
def _stranger(ip: str) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's server, which even answers."""
    process = subprocess.Popen(
        [REDIS, "--bind", ip, "--port", "6379", "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: _listens(ip), seconds=5, what="the stranger")
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_service_on_a_directory_is_refused_and_harms_nothing(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    said = (service.data / "run" / "up.json").read_bytes()

    second = run("up", "--json", "--port", "0", service=service)

    assert second.returncode == 1
    assert second.stdout == ""
    assert "runs on" in second.stderr
    assert str(service.data) in second.stderr
    assert "Traceback" not in second.stderr
    assert (service.data / "run" / "up.json").read_bytes() == said
    assert (service.show(shown["instance_id"]) or {})["status"] == "RUNNING"
    assert get(shown, "key") == "value"


def test_a_second_agent_is_refused_and_harms_nothing(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    node = service.nodes(shown["instance_id"])[0]

    second = run("agent", service=service)

    assert second.returncode == 1
    assert "agent" in second.stderr.splitlines()[-1]
    assert str(service.data) in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr
    assert service.pid(node) == node["seen_pid"]
    assert get(shown, "key") == "value"


# --- A busy database ------------------------------------------------------------------------------

LOCKED = 2.0  # seconds


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Another process writes, and takes its time; over when the block ends, not before `LOCKED`."""
    script = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN IMMEDIATE'); print(flush=True); time.sleep(float(sys.argv[2])); c.execute('COMMIT')"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(database), str(LOCKED)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        yield
        assert writer.wait(30) == 0
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


def test_a_locked_database_delays_changes_and_fails_none(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    answers: dict[str, Any] = {}

    def create() -> None:
        answers["made"] = service.create("late", spec("ha", 128))

    with _locked(service.data / "cacheyard.sqlite"):
        began = time.monotonic()
        creating = threading.Thread(target=create)
        creating.start()
        assert service.show(shown["instance_id"]) is not None
        assert time.monotonic() - began < LOCKED, "reading does not wait"
        creating.join(30)
    assert time.monotonic() - began > LOCKED / 2
    service.now_running(answers["made"], seconds=DONE)


def test_a_server_is_restarted_while_the_database_is_locked(service: Service) -> None:
    shown = service.running_instance("cache", spec("ha", 128))
    put(shown, "key", "value")
    master = service.nodes(shown["instance_id"])[0]
    with _locked(service.data / "cacheyard.sqlite"):
        began = time.monotonic()
        os.kill(master["seen_pid"], 9)
        until(lambda: get(shown, "key") == "value", seconds=LOCKED, what="the master to be back")
        assert time.monotonic() - began < LOCKED
    until(
        lambda: service.node(master["id"])["seen_pid"] == service.pid(master),
        seconds=DONE,
        what="its new process to be written down",
    )
    assert not alive(master["seen_pid"])


def test_the_service_starts_while_the_database_is_locked(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    service.kill()
    with _locked(service.data / "cacheyard.sqlite"):
        service.start()
        assert get(shown, "key") == "value"
    assert service.pid(service.nodes(shown["instance_id"])[0]) is not None


def test_a_lost_database_does_not_cost_the_caches(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    service.kill()
    database = service.data / "cacheyard.sqlite"
    kept = [(path, path.read_bytes()) for path in service.data.glob("cacheyard.sqlite*")]
    for path, _ in kept:
        path.unlink()
    refused = run("up", service=service)
    assert refused.returncode == 1
    assert f"{database} is gone" in refused.stderr
    assert get(shown, "key") == "value"
    for path, content in kept:
        path.write_bytes(content)
    service.start()
    service.now_running(shown["instance_id"], seconds=DONE)
    assert get(shown, "key") == "value"
