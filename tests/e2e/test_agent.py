"""The agent with real servers: what it promises to rows, across its own death and theirs.

Each test has a data directory, addresses and an agent process of its own. Deadlines are for a machine that
runs much else; how fast it all is, is the benchmarks' affair.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from sqlalchemy import select
from support import servers
from support.waiting import until
from support.yard import OPEN, SECRET, Yard
from support.yard import client as client_of

from cacheyard.agent import process
from cacheyard.agent.agent import AgentRuns, stop_all
from cacheyard.domain.nodes import AclUser, Address, Node, NodeState, Run
from cacheyard.engine.redis_conf import INTERNAL_USER, digest, replication
from cacheyard.store.tables import node_figures


@pytest.fixture(params=[servers.NEWEST], ids=servers.name)
def yard(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Yard]:
    made = Yard(tmp_path / "data", request.param)
    try:
        yield made
    finally:
        made.close()


on_each_server = pytest.mark.parametrize("yard", servers.BINARIES, indirect=True, ids=servers.name)


def up(yard: Yard, *wanted: Node) -> list[Node]:
    yard.add(*wanted)
    if yard.agent is None:
        yard.start_agent()
    return yard.settled(*wanted)


def answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def kill(pid: int | None, number: int = signal.SIGKILL) -> None:
    assert pid is not None
    os.kill(pid, number)


def alive(pid: int | None) -> bool:
    assert pid is not None
    return process.start_time(pid) is not None


def new_process(yard: Yard, node: Node) -> None:
    until(lambda: yard.row(node).seen_pid not in (node.seen_pid, None), seconds=20, what="a new process")


# --- Start ----------------------------------------------------------------------------------------


@on_each_server
def test_a_row_becomes_a_server_that_answers(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    assert node.seen_state is NodeState.ACTIVE
    assert (node.seen_incarnation, node.seen_generation) == (1, 1)
    client = yard.redis(node)
    assert client.ping()
    assert client.info("server")["process_id"] == node.seen_pid
    assert client.config_get("maxmemory") == {"maxmemory": str(node.settings.maxmemory)}
    assert yard.directory(node).stat().st_mode & 0o777 == 0o700


def test_no_secret_is_on_disk_in_arguments_or_the_environment(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    secrets = [SECRET.encode(), replication(SECRET)["masterauth"].encode()]
    places = [file for file in yard.directory(node).rglob("*") if file.is_file()]
    places += [Path(f"/proc/{node.seen_pid}/{name}") for name in ("cmdline", "environ")]
    places.append(yard.settings.data / "agent.log")
    for place in places:
        assert not [secret for secret in secrets if secret in place.read_bytes()], place


def test_what_a_tenant_can_read_opens_no_more_than_its_own_data(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    seen = yard.redis(node).config_get("masterauth")["masterauth"]
    with pytest.raises(redis.AuthenticationError):
        yard.redis(node, username=INTERNAL_USER, password=seen).ping()
    replica = yard.redis(node, username=replication(SECRET)["masteruser"], password=seen)
    assert replica.ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        replica.get("key")


def test_a_server_that_cannot_start_is_tried_less_and_less_until_it_can(yard: Yard) -> None:
    node = yard.node(parameters={"maxmemory-policy": "nonsense"})
    yard.add(node)
    yard.start_agent()
    until(lambda: yard.log().count("node died") >= 3, seconds=20, what="three attempts")
    assert "maxmemory-policy" in (yard.row(node).seen_error or "") or "argument" in (
        yard.row(node).seen_error or ""
    )
    began, before = time.monotonic(), yard.log().count("node died")
    until(lambda: yard.log().count("node died") > before, seconds=20, what="one more")
    assert time.monotonic() - began > 0.3
    yard.want(node, settings={"parameters": {}})
    yard.settled(node, seconds=20)


def test_a_server_that_loads_its_data_is_not_active_and_not_disturbed(yard: Yard) -> None:
    if servers.ENGINES[-1].version < (7, 0, 0):
        pytest.skip("key-load-delay came with 7.0")
    [node] = up(yard, yard.node(persistent=True))
    with yard.redis(node).pipeline(transaction=False) as pipe:
        for number in range(5000):
            pipe.set(f"key:{number}", number)
        pipe.execute()
    yard.want(node, restart=True, settings={"parameters": {"key-load-delay": "1000"}})  # microseconds a key

    def loads() -> bool:
        try:
            yard.redis(node).ping()
        except redis.BusyLoadingError:
            return True
        except redis.ConnectionError:
            return False
        return False

    until(loads, seconds=20, what="the server to load")
    assert yard.row(node).seen_state is NodeState.INACTIVE
    [node] = yard.settled(node, seconds=20)
    assert yard.redis(node).dbsize() == 5000
    assert yard.log().count("node died") == 0


# --- The agent's death ----------------------------------------------------------------------------


def test_servers_outlive_a_killed_agent_and_are_adopted(yard: Yard) -> None:
    before = up(yard, *(yard.node() for _ in range(3)))
    yard.kill_agent()
    assert all(yard.redis(node).ping() for node in before)
    yard.start_agent()
    until(lambda: "adopted=3" in yard.log(), seconds=20, what="three servers to be adopted")
    kill(before[0].seen_pid)  # and an adopted one is watched as any other
    until(
        lambda: yard.row(before[0]).seen_pid not in (before[0].seen_pid, None),
        seconds=20,
        what="a new process",
    )
    assert [yard.row(node).seen_pid for node in before[1:]] == [node.seen_pid for node in before[1:]]
    assert [yard.redis(node).info("server")["process_id"] for node in before[1:]] == [
        node.seen_pid for node in before[1:]
    ]


def test_what_was_changed_while_no_agent_was_there_is_done_by_the_next(yard: Yard) -> None:
    changed, dead, gone = up(yard, *(yard.node() for _ in range(3)))
    yard.kill_agent()
    yard.want(changed, settings={"maxmemory": 10_000_000})
    kill(dead.seen_pid)
    yard.want(gone, run=Run.GONE)
    yard.start_agent()
    yard.settled(changed, gone)
    until(lambda: answers(yard.redis(dead)), seconds=20, what="the dead one to be back")
    assert yard.redis(changed).config_get("maxmemory") == {"maxmemory": "10000000"}
    assert yard.row(changed).seen_pid == changed.seen_pid
    assert not yard.directory(gone).exists()


@pytest.mark.parametrize("row_knows", [True, False])
def test_a_lost_pid_file_never_makes_a_second_copy(yard: Yard, row_knows: bool) -> None:
    [node] = up(yard, yard.node())
    yard.redis(node).set("key", "value")
    yard.kill_agent()
    (yard.directory(node) / "pid").unlink()
    if not row_knows:
        with yard.store.write() as tx:
            tx.exec_driver_sql("UPDATE nodes SET seen_pid = NULL")
    yard.start_agent()
    until(lambda: "adopted=1" in yard.log(), seconds=20, what="the server to be adopted")
    [now] = until(
        lambda: [row for row in yard.settled(node) if row.seen_pid], seconds=20, what="the node to be active"
    )
    # without anything to tell its settings by, it is started anew, with its data
    assert (now.seen_pid == node.seen_pid) is row_knows
    assert yard.redis(node).get("key") == "value"
    assert process.holders(yard.directory(node)) == [now.seen_pid]


def test_a_pid_that_belongs_to_somebody_else_is_left_alone(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    yard.kill_agent()
    kill(node.seen_pid)
    file = yard.directory(node) / "pid"
    record = process.read_record(yard.directory(node))
    assert record is not None
    until(lambda: not alive(node.seen_pid), seconds=20, what="the server to die")
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, pid=os.getpid())))
    yard.start_agent()
    until(lambda: answers(yard.redis(node)), seconds=20, what="a new server")


def test_a_server_whose_agent_died_before_writing_it_down_ends_by_itself(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    yard.kill_agent()
    kill(node.seen_pid)
    until(lambda: not alive(node.seen_pid), seconds=20, what="the server to die")
    directory = yard.directory(node)
    # the last threads of a killed server hold its lock a moment longer than its pid is there
    lock = until(lambda: process.take(directory), seconds=20, what="the lock of the dead server")
    record = process.Record(boot="", pid=0, started=0, incarnation=1, generation=1)
    conf = str(directory / "redis.conf")
    started, pidfd = process.spawn(
        directory, (lock,), [yard.binary, conf, "-"], "", record
    )  # the gate's end, unsaid
    os.close(lock)

    def ended() -> bool:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None

    until(ended, seconds=20, what=f"process {started.pid} to end")
    os.close(pidfd)


def test_servers_and_directories_without_a_row_are_removed(yard: Yard) -> None:
    kept, orphan, nameless = up(yard, *(yard.node() for _ in range(3)))
    yard.kill_agent()
    (yard.directory(nameless) / "pid").unlink()
    yard.forget(orphan, nameless)
    (yard.settings.nodes / "empty").mkdir()
    yard.start_agent()
    until(
        lambda: [path.name for path in yard.settings.nodes.iterdir() if path.is_dir()] == [kept.id],
        seconds=20,
        what="only the kept node's directory",
    )
    assert not alive(orphan.seen_pid)
    assert not alive(nameless.seen_pid)
    assert alive(kept.seen_pid)


def test_a_row_that_vanishes_takes_its_server_along(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    yard.forget(node)
    until(lambda: not yard.directory(node).exists(), seconds=20, what="the directory to go")
    assert not alive(node.seen_pid)


def test_there_is_one_agent_to_a_data_directory(yard: Yard) -> None:
    up(yard, yard.node())
    with pytest.raises(AgentRuns):
        asyncio.run(stop_all(yard.settings))


# --- The server's death ---------------------------------------------------------------------------


def test_a_killed_server_is_back_at_once(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    kill(node.seen_pid)
    until(lambda: not alive(node.seen_pid), seconds=20, what="the server to die")
    until(lambda: answers(yard.redis(node)), seconds=20, what="the server to be back")
    until(lambda: yard.row(node).seen_pid != node.seen_pid, seconds=20, what="the row to say so")


@on_each_server
def test_a_replica_that_was_promoted_by_hand_comes_back_as_a_replica(yard: Yard) -> None:
    master = yard.node(persistent=True)
    replica = yard.node(persistent=True, replica_of=master)
    master, replica = up(yard, master, replica)
    until(
        lambda: yard.redis(replica).info("replication").get("master_link_status") == "up",
        seconds=20,
        what="the replica's link",
    )
    slave = yard.redis(master).info("replication")["slave0"]
    assert (slave["ip"], slave["port"]) == (replica.ip, 6379)  # its own address, as others reach it
    yard.redis(replica).replicaof("NO", "ONE")
    kill(replica.seen_pid)
    until(lambda: not alive(replica.seen_pid), seconds=20, what="the server to die")
    until(lambda: answers(yard.redis(replica)), seconds=20, what="the server to be back")
    assert yard.redis(replica).role()[:3] == ["slave", master.ip, 6379]


def test_a_server_that_hangs_is_reported_and_not_killed(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    kill(node.seen_pid, signal.SIGSTOP)
    until(lambda: yard.row(node).seen_state is NodeState.INACTIVE, seconds=20, what="the node to be inactive")
    assert yard.row(node).seen_error
    kill(node.seen_pid, signal.SIGCONT)
    [now] = until(lambda: yard.settled(node), seconds=20, what="the node to be active")
    assert now.seen_pid == node.seen_pid
    assert now.seen_error is None


def test_a_closed_connection_of_ours_alarms_nobody(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    client = yard.redis(node)
    client.execute_command("CLIENT", "KILL", "USER", INTERNAL_USER)  # type: ignore[no-untyped-call]
    until(
        lambda: [one for one in client.client_list() if one["user"] == INTERNAL_USER],
        seconds=20,
        what="the agent to connect again",
    )
    assert yard.row(node).seen_state is NodeState.ACTIVE
    assert "does not answer" not in yard.log()


def test_the_children_of_a_dead_server_do_not_hold_up_the_next(yard: Yard) -> None:
    [node] = up(yard, yard.node(persistent=True))
    client = yard.redis(node)
    client.config_set("rdb-key-save-delay", 1_000_000)  # microseconds a key: the child takes its time
    for number in range(20):
        client.set(f"key:{number}", 1)
    client.bgsave()
    child = next(pid for pid in process.holders(yard.directory(node)) if pid != node.seen_pid)
    kill(node.seen_pid)
    until(lambda: not alive(node.seen_pid), seconds=20, what="the server to die")
    until(lambda: answers(yard.redis(node)), seconds=20, what="the server to be back")
    until(lambda: not alive(child), seconds=20, what="the child to be gone")
    assert yard.redis(node).dbsize() == 20


# --- Changes --------------------------------------------------------------------------------------


@on_each_server
def test_settings_change_in_the_running_server(yard: Yard) -> None:
    first, second = up(yard, yard.node(), yard.node())
    floating = yard.new_ip()
    old = yard.redis(first)
    assert old.ping()
    guest = AclUser(name="guest", password_sha256=digest("guest"), rules=("~*", "&*", "+@read"))
    owner = AclUser(
        name="default", password_sha256=digest("secret"), rules=("~*", "&*", "+@all", "-flushall")
    )
    yard.want(
        first,
        settings={
            "maxmemory": 33_000_000,
            "maxclients": 77,
            "bind": (first.ip, floating),
            "parameters": {"maxmemory-policy": "allkeys-lfu", "hash-max-listpack-entries": "99"},
            "users": (owner, guest),
        },
    )
    [now] = yard.settled(first)
    assert now.seen_pid == first.seen_pid
    with client_of(floating, password="secret") as client:
        assert client.config_get("max*")["maxmemory"] == "33000000"
        assert client.config_get("max*")["maxclients"] == "77"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lfu"}
        assert client.config_get("hash-max-ziplist-entries") == {"hash-max-ziplist-entries": "99"}
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()
    with pytest.raises(redis.AuthenticationError), client_of(first.ip) as stranger:
        stranger.ping()
    assert yard.redis(first, username="guest", password="guest").get("key") is None
    assert old.ping()  # who is logged in stays

    yard.want(first, settings={"users": (OPEN,), "replica_of": Address(ip=second.ip, port=6379)})
    yard.settled(first)
    with (
        pytest.raises(redis.AuthenticationError),
        client_of(first.ip, username="guest", password="guest") as stranger,
    ):
        stranger.ping()
    until(
        lambda: yard.redis(first).info("replication").get("master_link_status") == "up",
        seconds=20,
        what="the link to the new master",
    )
    yard.want(first, settings={"replica_of": None})
    yard.settled(first)
    assert yard.redis(first).role()[0] == "master"
    assert yard.row(first).seen_pid == first.seen_pid


def test_a_change_that_the_server_refuses_is_reported_and_made_good_later(yard: Yard) -> None:
    holder, node = up(yard, yard.node(), yard.node())
    taken = yard.new_ip()
    yard.want(holder, settings={"bind": (holder.ip, taken)})
    yard.settled(holder)
    yard.want(node, settings={"bind": (node.ip, taken)})  # as in a failover, before the old master lets go
    until(lambda: yard.row(node).seen_error, seconds=20, what="the error to be reported")
    assert yard.row(node).seen_state is NodeState.ACTIVE
    assert yard.row(node).seen_generation == 1
    yard.want(holder, settings={"bind": (holder.ip,)})
    yard.settled(holder, node, seconds=20)
    assert yard.row(node).seen_error is None


# --- Restarts -------------------------------------------------------------------------------------


@on_each_server
def test_a_memory_only_server_is_renamed_with_its_data_which_a_crash_then_loses(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    yard.redis(node).set("key", "value")
    yard.want(node, restart=True, settings={"rename_commands": {"flushall": "wipe", "keys": "list-keys"}})
    [now] = yard.settled(node)
    assert now.seen_pid != node.seen_pid
    client = yard.redis(node)
    with pytest.raises(redis.ResponseError):
        client.flushall()
    assert client.execute_command("list-keys", "*") == ["key"]  # type: ignore[no-untyped-call]
    kill(now.seen_pid)
    new_process(yard, now)
    assert client.dbsize() == 0  # the dump was for that one start


def test_a_restart_without_data_is_empty(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    yard.redis(node).set("key", "value")
    yard.want(node, restart=True, keep_data=False)
    [now] = yard.settled(node)
    assert now.seen_pid != node.seen_pid
    assert yard.redis(node).dbsize() == 0


@pytest.mark.parametrize("keep_data", [True, False])
def test_the_append_only_file_stays_whatever_happens(yard: Yard, keep_data: bool) -> None:
    [node] = up(yard, yard.node(persistent=True))
    yard.redis(node).set("key", "value")
    yard.want(node, restart=True, keep_data=keep_data)
    [now] = yard.settled(node)
    assert yard.redis(node).get("key") == "value"
    kill(now.seen_pid)
    new_process(yard, now)
    assert yard.redis(node).get("key") == "value"


@pytest.mark.parametrize("crashed", [False, True])
def test_a_flush_by_its_old_name_does_not_keep_the_file_from_loading(yard: Yard, crashed: bool) -> None:
    [node] = up(yard, yard.node(persistent=True, rename_commands={"flushall": "wipe"}))
    client = yard.redis(node)
    client.set("old", "value")
    client.execute_command("wipe")  # type: ignore[no-untyped-call]
    client.set("key", "value")
    if crashed:
        yard.kill_agent()
        until(
            lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0,
            seconds=20,
            what="the file on disk",
        )
        kill(node.seen_pid)
    yard.want(node, restart=True, settings={"rename_commands": {}})
    if crashed:
        yard.start_agent()
    yard.settled(node, seconds=20)
    assert client.keys() == ["key"]
    client.flushall()


def test_persistence_can_be_turned_on_and_off_with_the_data_in_place(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    client = yard.redis(node)
    client.set("key", "value")
    for persistent in (True, False):
        yard.want(node, restart=True, settings={"persistent": persistent})
        yard.settled(node)
        assert client.get("key") == "value"
        assert client.config_get("appendonly") == {"appendonly": "yes" if persistent else "no"}
    yard.want(node, settings={"persistent": True})  # and live
    [now] = yard.settled(node)
    until(
        lambda: (
            client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
            and not client.info("persistence")["aof_rewrite_in_progress"]
        ),
        seconds=20,
        what="the file to be written",
    )
    kill(now.seen_pid)
    new_process(yard, now)
    assert client.get("key") == "value"


def test_down_and_up_again(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    yard.redis(node).set("key", "value")
    yard.want(node, run=Run.DOWN)
    [now] = yard.settled(node)
    assert now.seen_state is NodeState.STOPPED
    assert not alive(node.seen_pid)
    yard.want(node, run=Run.UP)
    yard.settled(node)
    assert yard.redis(node).get("key") == "value"


def test_a_stopped_yard_comes_back_with_all_its_data(yard: Yard) -> None:
    memory, file, dying = up(yard, yard.node(), yard.node(persistent=True), yard.node(persistent=True))
    for node in (memory, file):
        yard.redis(node).set("key", "value")
    yard.kill_agent()
    kill(dying.seen_pid)
    until(lambda: not alive(dying.seen_pid), seconds=20, what="the server to die")
    assert asyncio.run(stop_all(yard.settings)) == 2
    assert not alive(memory.seen_pid)
    assert not alive(file.seen_pid)
    yard.start_agent()
    for node in (memory, file):
        until(lambda node=node: answers(yard.redis(node)), seconds=20, what="the server to be back")  # type: ignore[misc]
        assert yard.redis(node).get("key") == "value"


def test_a_hung_server_is_stopped_all_the_same(yard: Yard) -> None:
    [node] = up(yard, yard.node())
    kill(node.seen_pid, signal.SIGSTOP)
    yard.want(node, run=Run.DOWN)
    yard.settled(node, seconds=20)
    assert not alive(node.seen_pid)


# --- The end --------------------------------------------------------------------------------------


def test_gone_leaves_nothing(yard: Yard) -> None:
    [node] = up(yard, yard.node(persistent=True))
    yard.redis(node).set("key", "value")
    yard.want(node, run=Run.GONE)
    [now] = yard.settled(node)
    assert now.seen_state is NodeState.GONE
    assert not alive(node.seen_pid)
    assert not yard.directory(node).exists()


def test_a_hundred_at_once(yard: Yard) -> None:
    wanted = [yard.node() for _ in range(100)]
    yard.add(*wanted)
    yard.start_agent()
    yard.settled(*wanted, seconds=30)
    for node in wanted:
        yard.want(node, run=Run.GONE)
    yard.settled(*wanted, seconds=30)
    assert [path for path in yard.settings.nodes.iterdir() if path.is_dir()] == []


def test_figures_are_kept(yard: Yard) -> None:
    yard.start_agent(observe_seconds=0.2)
    [node] = up(yard, yard.node())
    client = yard.redis(node)
    client.set("key", "value")
    client.get("key")
    client.get("none")

    def read() -> dict[str, float] | None:
        with yard.store.read() as tx:
            row = tx.execute(select(node_figures).where(node_figures.c.node_id == node.id)).mappings().first()
        return dict(row) if row is not None and row["misses"] == 1 else None

    figures = until(read, seconds=20, what="the figures")
    assert (figures["keys"], figures["hits"], figures["gets"], figures["sets"]) == (1, 1, 2, 1)
    assert figures["clients"] == 1  # ours; the agent's own is not counted
    assert figures["max_memory"] == node.settings.maxmemory
    assert figures["link_up"]
