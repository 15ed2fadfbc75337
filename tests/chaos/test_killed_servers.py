"""Servers die or hang, one or all, at rest and in the middle of a change; each is back in its role."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Any

import pytest
import redis
from chaos.service import AT_REST, Refused, Service, alive, connect, get, nothing_left, put, spec
from support.waiting import until

BACK = 3.0  # seconds until a killed server answers again; 25 ms on an idle machine
ASKED = 3.0  # more, when Sentinels are asked for another master first and find none that is good enough
SYNCED = 5.0  # until a replica has caught up; it tries once a second
NOTICED = 5.0  # until a server that hangs is reported: asked once a second, a second to answer
FAULTY = 20.0  # until its instance is shown as faulty, which is after 10
ENDED = 30.0  # until a task whose servers were killed has ended


def kill(service: Service, *nodes: sqlite3.Row) -> list[int]:
    """`kill -9` of the servers of nodes, all at once; their pids."""
    pids = [pid for node in nodes if (pid := service.pid(node)) is not None]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    nothing_left(lambda: [str(pid) for pid in pids if alive(pid)], seconds=2, what="killed servers to end")
    return pids


def role_of(node: sqlite3.Row) -> str:
    """What the server itself says: master, or a replica that is in sync."""
    try:
        with closing(connect(node["ip"], node["port"])) as client:
            told = client.role()
    except redis.RedisError as error:
        raise OSError(str(error)) from error
    return "master" if told[0] == "master" else f"replica, {told[3]}"


def await_back(service: Service, node: sqlite3.Row, *, but: list[int], seconds: float = BACK) -> None:
    """Wait until a node's new server is seen and has the role of its row: a master may have been replaced."""

    def seen() -> bool:
        row = service.node(node["id"])
        return row["seen_state"] == "Active" and row["seen_pid"] not in but and alive(row["seen_pid"])

    until(seen, seconds=seconds, what=f"{node['ip']} to be back")
    wanted = {"master": "master", "replica": "replica, connected"}
    until(
        lambda: role_of(node) == wanted[service.node(node["id"])["role"]],
        seconds=SYNCED,
        what=f"{node['ip']} to have its role",
    )


@pytest.mark.parametrize(("mode", "which"), [("single", 0), ("ha", 0), ("ha", 1)])
def test_a_killed_server_is_back_in_its_role(service: Service, mode: str, which: int) -> None:
    shown = service.running_instance("cache", spec(mode, 128))
    put(shown, "key", "value")
    node = service.nodes(shown["instance_id"])[which]

    killed = kill(service, node)

    await_back(service, node, but=killed)
    until(lambda: get(shown, "key") == ("value" if mode == "ha" else None) or None, seconds=BACK, what="data")
    assert "signal 9" in service.log()


def test_master_and_replica_killed_at_once_are_back_with_their_data(service: Service) -> None:
    shown = service.running_instance("cache", spec("ha", 128))
    put(shown, "key", "value")
    nodes = service.nodes(shown["instance_id"])

    killed = kill(service, *nodes)

    for node in nodes:
        await_back(service, node, but=killed)
    assert get(shown, "key") == "value"


def test_servers_that_die_while_the_service_is_dead_are_back_when_it_is(service: Service) -> None:
    caches = [service.running_instance(f"cache-{mode}", spec(mode, 128)) for mode in ("single", "ha")]
    put(caches[1], "key", "value")
    nodes = [node for shown in caches for node in service.nodes(shown["instance_id"])]

    service.kill()
    killed = kill(service, *nodes)
    assert [service.pid(node) for node in nodes] == [None] * 3
    service.start()

    for node in nodes:
        await_back(service, node, but=killed)
    assert get(caches[1], "key") == "value"


def test_a_server_that_is_killed_again_and_again_is_started_less_and_less_often(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    node = service.nodes(shown["instance_id"])[0]
    for most in (0.0, 0.25, 0.5, 1.0, 2.0):  # seconds of pause, as far as it goes
        began = time.monotonic()
        killed = kill(service, node)
        await_back(service, node, but=killed, seconds=most + BACK)
        took = time.monotonic() - began
    assert took > 0.4, "after five deaths in a row there is a pause"
    until(
        lambda: service.node(node["id"])["seen_error"] is None, seconds=BACK, what="the error to be cleared"
    )


def answers(shown: dict[str, Any]) -> bool:
    """Whether a tenant's question is answered."""
    get(shown, "key")
    return True


# --- In the middle of a change --------------------------------------------------------------------


def _password(service: Service, instance_id: str) -> None:
    service.call("POST", f"/instances/{instance_id}/password/reset", {"new_password": "Cache-yard-1"})


CHANGES: dict[str, Callable[[Service, str], Any]] = {
    "resize": lambda service, instance_id: service.resize(instance_id, spec("ha", 256)),
    "restart": lambda service, instance_id: service.act("restart", instance_id),
    "flush": lambda service, instance_id: service.act("flush", instance_id),
    "stop": lambda service, instance_id: service.act("stop", instance_id),
    "password": _password,
    "port": lambda service, id_: service.call("PUT", f"/instances/{id_}", {"port": 6400}),
}
# Seconds after the request was sent. Nothing is waited for: whatever step a kill meets, the change is done.
MOMENTS = (0.0, 0.02, 0.06, 0.15)


def kill_during(service: Service, change: Callable[[], Any], instance_id: str, after: float) -> None:
    """Send a request in a thread of its own, and kill what runs of the instance a little later."""
    refusals: list[BaseException] = []

    def ask() -> None:
        try:
            change()
        except (Refused, AssertionError) as refused:
            refusals.append(refused)

    asking = threading.Thread(target=ask)
    nodes = service.nodes(instance_id)
    asking.start()
    time.sleep(after)
    for node in nodes:
        with suppress(ProcessLookupError):
            pid = service.pid(node)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
    asking.join(60)
    assert not refusals, refusals


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_whose_servers_are_killed_is_done_all_the_same(service: Service, change: str) -> None:
    caches = service.running_instances(len(MOMENTS), spec("ha", 128))
    for shown, moment in zip(caches, MOMENTS, strict=True):
        instance_id = shown["instance_id"]
        kill_during(service, partial(CHANGES[change], service, instance_id), instance_id, moment)
    for shown in caches:
        after = service.at_rest(shown["instance_id"], seconds=ENDED)
        assert after is not None
        assert after["status"] == ("CLOSED" if change == "stop" else "RUNNING"), service.story(
            shown["instance_id"]
        )
        if change != "stop":
            until(partial(answers, after), seconds=ASKED + BACK, what="an answer")
            wanted = 256 if change == "resize" else 128
            assert after["max_memory"] == wanted, service.story(shown["instance_id"])
            assert after["port"] == (6400 if change == "port" else 6379)
    ids = [shown["instance_id"] for shown in caches]
    failed = [
        row
        for row in service.rows("SELECT * FROM tasks WHERE status = 'FAILED'")
        if row["instance_id"] in ids
    ]
    assert [(row["kind"], row["error"]) for row in failed] == []


def test_an_instance_whose_servers_are_killed_while_it_is_made_is_made(service: Service) -> None:
    ids = []
    for number, moment in enumerate(MOMENTS):
        ids.append(service.create(f"cache-{number}", spec("ha", 128)))
        time.sleep(moment)
        for node in service.nodes(ids[-1]):
            if (pid := service.pid(node)) is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    for instance_id in ids:
        service.now_running(instance_id, seconds=ENDED)


def test_an_instance_whose_servers_are_killed_while_it_starts_is_started(service: Service) -> None:
    shown = service.running_instance("cache", spec("ha", 128))
    put(shown, "key", "value")
    instance_id = shown["instance_id"]
    for moment in MOMENTS:
        service.act("stop", instance_id)
        service.at_rest(instance_id)
        kill_during(service, partial(service.act, "start", instance_id), instance_id, moment)
        service.now_running(instance_id, seconds=ENDED)
    until(lambda: get(shown, "key") == "value", seconds=BACK, what="its data")


def test_an_instance_whose_servers_are_killed_while_it_is_deleted_is_gone(service: Service) -> None:
    caches = service.running_instances(len(MOMENTS), spec("ha", 128))
    for shown, moment in zip(caches, MOMENTS, strict=True):
        instance_id = shown["instance_id"]
        kill_during(service, partial(service.delete, instance_id), instance_id, moment)
    for shown in caches:
        assert service.at_rest(shown["instance_id"], seconds=ENDED) is None
    nothing_left(service.leftovers, seconds=BACK, what="all of them to be gone, and the Sentinels")


# --- What they are known by -----------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b'{"pid": 1'])
def test_a_server_whose_pid_file_is_lost_is_found_again(service: Service, content: bytes | None) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    node = service.nodes(shown["instance_id"])[0]
    pid, file = service.pid(node), service.directory(node) / "pid"

    service.kill()
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    service.start()

    until(lambda: service.node(node["id"])["seen_state"] == "Active", seconds=BACK, what="it to be adopted")
    assert service.pid(node) == pid
    assert get(shown, "key") == "value"
    service.act("soft_restart", shown["instance_id"])  # it is ours to restart
    service.now_running(shown["instance_id"])
    assert not alive(pid or 0)
    assert get(shown, "key") == "value"


def test_a_pid_file_of_another_process_harms_nobody(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    node = service.nodes(shown["instance_id"])[0]
    pid, file = service.pid(node), service.directory(node) / "pid"
    service.kill()
    file.write_bytes(file.read_bytes().replace(str(pid).encode(), str(os.getpid()).encode()))
    service.start()
    service.delete(shown["instance_id"])
    assert service.at_rest(shown["instance_id"]) is None
    assert not alive(pid or 0)


# --- Hanging --------------------------------------------------------------------------------------


def test_a_server_that_hangs_is_reported_and_not_replaced(service: Service) -> None:
    shown = service.running_instance("cache", spec("single", 128))
    put(shown, "key", "value")
    node = service.nodes(shown["instance_id"])[0]
    pid = service.pid(node)
    assert pid is not None

    os.kill(pid, signal.SIGSTOP)

    until(
        lambda: service.node(node["id"])["seen_state"] == "Inactive", seconds=NOTICED, what="its hanging seen"
    )
    assert service.node(node["id"])["seen_error"]
    until(
        lambda: (service.show(shown["instance_id"]) or {})["status"] == "ERROR",
        seconds=FAULTY,
        what="its instance to be shown as faulty",
        pause=0.1,
    )
    assert service.pid(node) == pid

    os.kill(pid, signal.SIGCONT)

    until(lambda: service.node(node["id"])["seen_state"] == "Active", seconds=BACK, what="it to go on")
    assert (service.show(shown["instance_id"]) or {})["status"] == "RUNNING"
    assert service.pid(node) == pid
    assert get(shown, "key") == "value"


def test_an_instance_that_hangs_can_be_restarted_and_deleted(service: Service) -> None:
    shown = service.running_instance("cache", spec("ha", 128))
    instance_id = shown["instance_id"]
    for act in ("restart", "delete"):
        for node in service.nodes(instance_id):
            os.kill(service.pid(node) or 0, signal.SIGSTOP)
        if act == "delete":
            service.delete(instance_id)
        else:
            service.act(act, instance_id)
        after = service.at_rest(instance_id, seconds=ENDED)
        assert (after is None) if act == "delete" else (after is not None and after["status"] == "RUNNING")
    assert set(AT_REST) >= {row["status"] for row in service.rows("SELECT status FROM instances")}
