"""Masters die and hang under load: a replica takes over, clients go on, and everything is whole again.

Each test lets clients write all the time, does its worst, and says what it cost. The limits are
generous: machines that test are shared and busy. CACHEYARD_SOAK=1 is the full count, with the
limits that a quiet machine must keep: half a minute for each of hundreds of rounds.
"""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import redis
from chaos.contents import fill, missing
from chaos.rounds import (
    SHAPES,
    SOAK,
    USUAL,
    Cost,
    await_nodes,
    masters,
    new_master,
    quantile,
    replicas,
    sentinels,
    strike,
    summary,
    under_load,
)
from chaos.service import REDIS, Service, connect, nothing_left
from chaos.traffic import Load
from chaos.whole import await_whole
from support.waiting import until

KEYS = 1000
KILLS = 50 if SOAK else 2
HANGS = 10 if SOAK else 1
YOUNG = 10 if SOAK else 2
# Seconds between two faults. Sentinels ask servers anew every ten; of a master that dies sooner after the
# last failover they may find no replica good enough, and it is started again.
APART = 12.0 if SOAK else 0.0
# Seconds without a write.
KILLED = 1.0 if SOAK else 6.0
HUNG = 5.0 if SOAK else 12.0
UNTOUCHED = 0.2 if SOAK else 2.0  # where no master was hurt
BUSY = 10.0 if SOAK else 20.0  # with a master that is there and does not answer
REPLACED = 60.0  # until a replica that cannot be started is replaced
BY_ITSELF = 30.0  # Sentinel or the cluster alone: five seconds until they believe it, and a vote

ROUND_SECONDS = 90


def instance(service: Service, shape: str) -> str:
    """A new instance's id; its masters are watched already."""
    made = service.running_instance("cache", SHAPES[shape])
    return str(await_whole(service, made["instance_id"])["instance_id"])


def assert_replaced(service: Service, instance_id: str, before: list[sqlite3.Row], *replaced: int) -> None:
    """Exactly these shards have another master than before."""
    was = {node["shard_id"]: node["id"] for node in before}
    now = masters(service, instance_id)
    changed = [number for number, node in enumerate(now) if was[node["shard_id"]] != node["id"]]
    assert changed == list(replaced), f"shards {changed} have another master\n{service.log()}"


# --- The master -----------------------------------------------------------------------------------


@pytest.mark.timeout(60 + ROUND_SECONDS * KILLS)
@pytest.mark.parametrize("shape", USUAL)
def test_a_killed_master_is_replaced_within_a_second(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id, costs = instance(service, shape), list[Cost]()
    for number in range(KILLS):
        time.sleep(APART if number else 0)
        before = masters(service, instance_id)
        struck = before[number % len(before)]
        cost = under_load(service, instance_id, partial(strike, service, [struck]))
        if SOAK or number == 0:
            assert_replaced(service, instance_id, before, number % len(before))
        costs.append(cost)
        others = [gap for at, gap in enumerate(cost.gaps) if at != number % len(before)]
        assert all(gap < KILLED / 2 for gap in others), "the other shards go on"
    tell(summary(f"{shape}, master killed", costs))
    gaps = [cost.gap for cost in costs]
    assert quantile(gaps, 0.99) <= KILLED, gaps


@pytest.mark.parametrize("shape", USUAL)
def test_a_master_that_is_killed_as_soon_as_its_instance_runs(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    """Its replicas have just met it, and hardly anybody watches yet."""
    costs = []
    for number in range(YOUNG):
        made = service.running_instance(f"cache-{number}", SHAPES[shape])
        struck = masters(service, made["instance_id"])[:1]
        costs.append(under_load(service, made["instance_id"], partial(strike, service, struck), writes=1))
    tell(summary(f"{shape}, master killed at once", costs))
    assert max(cost.gap for cost in costs) <= HUNG


@pytest.mark.timeout(60 + ROUND_SECONDS * HANGS)
@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_master_that_hangs_is_replaced(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id, costs = instance(service, shape), list[Cost]()
    for number in range(HANGS):
        time.sleep(APART if number else 0)
        before = masters(service, instance_id)
        struck = before[number % len(before)]
        costs.append(
            under_load(
                service,
                instance_id,
                partial(strike, service, [struck], signal.SIGSTOP),
                seconds=BY_ITSELF,
            )
        )
        assert_replaced(service, instance_id, before, number % len(before))
    tell(summary(f"{shape}, master hung", costs))
    assert max(cost.gap for cost in costs) <= HUNG


@pytest.mark.parametrize("first", ["redis.call('SET', 'of-the-script', '1')", ""], ids=["writes", "reads"])
def test_a_master_with_a_script_that_never_ends_is_replaced(
    service: Service, tell: Callable[[object], None], first: str
) -> None:
    """Its process runs; after five seconds Sentinel believes that it is dead. A cluster does not: Redis goes
    on talking to the other nodes while such a script runs. One that has written nothing may be ended by a
    Sentinel (SCRIPT KILL) before the others believe it too."""
    instance_id = instance(service, "ha")
    before = masters(service, instance_id)

    def run_script() -> list[float]:
        never_end(before[0]["ip"], first)
        return [time.monotonic() - 0.2]

    cost = under_load(service, instance_id, run_script, seconds=BY_ITSELF)
    tell(f"ha, a script that never ends: {cost}")
    assert cost.gap <= BUSY
    if first:
        assert_replaced(service, instance_id, before, 0)


def never_end(ip: str, first: str) -> None:
    """Have the server at an address run a script that never ends, after this."""
    with connect(ip, seconds=0.2) as tenant, pytest.raises(redis.TimeoutError):
        tenant.eval(f"{first} while true do end", 0)


def test_a_master_that_hangs_as_soon_as_it_is_one_does_not_hang_for_ever(service: Service) -> None:
    """The Sentinels, which begin with the first instance, know neither each other nor the replica then."""
    address = service.running_instance("cache", SHAPES["ha"])["ip"]
    never_end(address, "redis.call('SET', 'of-the-script', '1')")

    def takes_writes() -> bool:
        with connect(address, seconds=0.2) as tenant, suppress(redis.RedisError):
            return bool(tenant.set("key", "value"))
        return False

    until(takes_writes, seconds=BUSY, what="a master that takes writes", pause=0.02)


@pytest.mark.parametrize("shape", USUAL)
def test_a_new_master_that_is_killed_as_soon_as_it_is_one(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    """With one replica, nobody is left who is in sync: the last master comes back with its data."""
    instance_id = instance(service, shape)
    first = masters(service, instance_id)[0]

    def twice() -> list[float]:
        once = strike(service, [first])
        return once + strike(service, [new_master(service, first)])

    cost = under_load(service, instance_id, twice, seconds=BY_ITSELF)
    tell(f"{shape}, two masters killed in a row: {cost}")
    assert cost.gap <= 2 * KILLED


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_all_servers_of_a_shard_killed_at_once_are_back_with_its_data(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, shape)
    master = masters(service, instance_id)[0]
    all_of_it = [master, *replicas(service, instance_id, master["shard_id"])]
    cost = under_load(service, instance_id, partial(strike, service, all_of_it), seconds=BY_ITSELF)
    tell(f"{shape}, a whole shard killed: {cost}")


def test_a_write_that_a_replica_has_survives_its_master(
    service: Service, tell: Callable[[object], None]
) -> None:
    """WAIT: what clients can do that must not lose a write."""
    instance_id, costs = instance(service, "ha"), list[Cost]()
    for _ in range(KILLS):
        before = masters(service, instance_id)
        fault = partial(strike, service, before)
        costs.append(under_load(service, instance_id, fault, load=Load(clients=4, pause=0, batch=20, wait=1)))
    tell(summary("ha, master killed, with WAIT 1", costs))
    assert sum(cost.lost for cost in costs) == 0


# --- A replica ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_replica_that_dies_or_hangs_costs_no_write(
    service: Service, shape: str, number: signal.Signals, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, shape)
    before, replica = masters(service, instance_id), replicas(service, instance_id)[0]

    def strike_it() -> list[float]:
        strike(service, [replica], number)
        return []

    cost = under_load(service, instance_id, strike_it, whole_seconds=BY_ITSELF)
    tell(f"{shape}, replica gets {number.name}: {cost}")
    assert cost.gap <= UNTOUCHED
    assert_replaced(service, instance_id, before)
    assert not cost.errors


# --- The Sentinels --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_sentinels_that_die_or_hang_are_back_and_nothing_else_happens(
    service: Service, count: int, number: signal.Signals
) -> None:
    instance_id = instance(service, "ha")
    until(lambda: len(sentinels(service)) == 3, seconds=5, what="three Sentinels")
    before, struck = masters(service, instance_id), sentinels(service)[:count]

    def strike_them() -> list[float]:
        for pid in struck:
            os.kill(pid, number)
        until(
            lambda: len(sentinels(service)) == 3 and not set(struck) & set(sentinels(service)),
            seconds=10,
            what="new Sentinels",
        )
        return []

    cost = under_load(service, instance_id, strike_them)
    assert cost.gap <= UNTOUCHED
    assert_replaced(service, instance_id, before)


@pytest.mark.parametrize("count", [1, 3])
def test_a_master_that_is_killed_together_with_sentinels_is_replaced(
    service: Service, count: int, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, "ha")
    until(lambda: len(sentinels(service)) == 3, seconds=5, what="three Sentinels")
    before = masters(service, instance_id)

    def strike_all() -> list[float]:
        for pid in sentinels(service)[:count]:
            os.kill(pid, signal.SIGKILL)
        return strike(service, before)

    cost = under_load(service, instance_id, strike_all, seconds=BY_ITSELF)
    tell(f"ha, master and {count} of three Sentinels killed: {cost}")
    assert cost.gap <= HUNG
    if count == 1:
        assert_replaced(service, instance_id, before, 0)


# --- While the service is dead --------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_master_that_dies_while_the_service_is_dead_is_replaced_when_it_is_back(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, shape)
    before = masters(service, instance_id)

    def die_and_come_back() -> list[float]:
        service.kill()
        struck = strike(service, before[:1])
        service.start()
        return struck

    cost = under_load(service, instance_id, die_and_come_back, seconds=BY_ITSELF)
    tell(f"{shape}, master killed while the service was away for a moment: {cost}")
    assert cost.gap <= HUNG


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_master_is_replaced_without_the_service(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    """Sentinel or the cluster does it. A cluster's clients go on then; the address of a master/standby
    instance follows as soon as the service is back."""
    instance_id = instance(service, shape)
    before = masters(service, instance_id)
    took: list[float] = []

    def die() -> list[float]:
        service.kill()
        struck = strike(service, before[:1])
        new_master(service, before[0], seconds=BY_ITSELF)
        took.append(time.monotonic() - struck[0])
        service.start()
        return struck

    cost = under_load(service, instance_id, die)
    tell(f"{shape}, master replaced after {took[0]:.1f} s without the service: {cost}")
    assert_replaced(service, instance_id, before, 0)


def test_a_replica_that_was_promoted_stays_master_though_nobody_says_so(
    service: Service, tell: Callable[[object], None]
) -> None:
    """The Sentinels hang in the moment in which they have promoted one of two replicas. If the old master
    were started as one, as the other replica was not, there would be two."""
    instance_id, promoted = instance(service, "ha-r3"), list[str]()
    before = masters(service, instance_id)

    def die() -> list[float]:
        service.kill()
        struck = strike(service, before)
        promoted.append(new_master(service, before[0], seconds=BY_ITSELF)["id"])
        for pid in sentinels(service):
            os.kill(pid, signal.SIGSTOP)
        service.start()
        return struck

    cost = under_load(service, instance_id, die)
    tell(f"ha, master replaced without the service by Sentinels that hang then: {cost}")
    assert [master["id"] for master in masters(service, instance_id)] == promoted


# --- Lost files -----------------------------------------------------------------------------------


def lose_directory(service: Service, node: sqlite3.Row) -> list[float]:
    """Kill a server and remove its directory, before anybody can start another in it. Answers when."""
    directory = service.directory(node)
    away = directory.parent.parent / f"lost-{node['id']}"
    pid = service.pid(node)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it must not find its directory gone
    directory.rename(away)
    os.kill(pid, signal.SIGKILL)
    struck = time.monotonic()
    shutil.rmtree(away)
    return [struck]


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_replica_whose_data_is_lost_gets_it_from_its_master(service: Service, shape: str) -> None:
    instance_id = instance(service, shape)
    before, replica = masters(service, instance_id), replicas(service, instance_id)[0]

    def lose() -> list[float]:
        service.kill()
        lose_directory(service, replica)
        service.start()
        return []

    cost = under_load(service, instance_id, lose)
    assert cost.gap <= UNTOUCHED
    assert_replaced(service, instance_id, before)


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_master_whose_data_is_lost_is_replaced_and_never_followed(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    """An empty server that came back as master would have its replicas throw away all they have."""
    instance_id = instance(service, shape)
    before = masters(service, instance_id)
    cost = under_load(service, instance_id, partial(lose_directory, service, before[0]))
    tell(f"{shape}, master killed and its data removed: {cost}")
    assert_replaced(service, instance_id, before, 0)


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_master_whose_data_is_lost_while_the_service_is_dead_is_replaced_and_never_followed(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, shape)
    before = masters(service, instance_id)

    def lose() -> list[float]:
        service.kill()
        struck = lose_directory(service, before[0])
        service.start()
        return struck

    cost = under_load(service, instance_id, lose, seconds=BY_ITSELF)
    tell(f"{shape}, master killed and its data removed while the service was away: {cost}")
    assert_replaced(service, instance_id, before, 0)


def tear(service: Service, node: sqlite3.Row) -> None:
    """Leave of a dead server's nodes.conf what a kill leaves that comes while it writes a shorter one: that,
    the empty lines that fill it up, as far as a page goes, and the end of the old one."""
    path = service.directory(node) / "nodes.conf"
    written = path.read_text()
    path.write_text(written + "\n" * 37 + written[-100:])


def garble(service: Service, node: sqlite3.Row) -> None:
    """Leave nothing in it that can be read."""
    (service.directory(node) / "nodes.conf").write_text("vars")


@pytest.mark.parametrize("spoil", [tear, garble])
@pytest.mark.parametrize("who", ["replica", "master", "all"])
def test_a_server_that_was_killed_while_it_wrote_down_its_cluster_is_back(
    service: Service, who: str, spoil: Callable[[Service, sqlite3.Row], None]
) -> None:
    instance_id = instance(service, "cluster")
    before = masters(service, instance_id)
    fill(service.now_running(instance_id), KEYS)
    torn = replicas(service, instance_id)[0] if who == "replica" else before[0]
    service.kill()
    strike(service, service.nodes(instance_id) if who == "all" else [torn])
    spoil(service, torn)
    service.start()
    await_nodes(service, instance_id, seconds=BY_ITSELF)
    shown = await_whole(service, instance_id)
    assert missing(shown, KEYS) == []
    if who != "all":
        assert_replaced(service, instance_id, before, *([0] if who == "master" else []))


# --- A replica that cannot be started -------------------------------------------------------------


def _listens(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ip, port)) == 0


@contextmanager
def stranger(ip: str, port: int, home: Path) -> Iterator[None]:
    """Somebody else's server at a node's address, from which that has just gone."""
    until(lambda: not _listens(ip, port), seconds=5, what="the address to be free", pause=0.005)
    process = subprocess.Popen(
        [REDIS, "--bind", ip, "--port", str(port), "--save", "", "--dir", str(home)],
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: _listens(ip, port), seconds=5, what="the stranger", pause=0.005)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def hasty(service: Service) -> Iterator[Service]:
    """It replaces a replica that has been away for two seconds."""
    service.environment["CACHEYARD_REPLACE_SECONDS"] = "2"
    yield service
    del service.environment["CACHEYARD_REPLACE_SECONDS"]
    service.kill()
    service.start()


@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_replica_whose_address_is_taken_is_replaced(hasty: Service, shape: str, tmp_path: Path) -> None:
    instance_id = instance(hasty, shape)
    before, replica = masters(hasty, instance_id), replicas(hasty, instance_id)[0]
    hasty.kill()
    strike(hasty, [replica])
    with stranger(replica["ip"], replica["port"], tmp_path):
        hasty.start()

        def strike_nobody() -> list[float]:
            nothing_left(
                lambda: [row["ip"] for row in replicas(hasty, instance_id) if row["ip"] == replica["ip"]],
                seconds=REPLACED,
                what="the replica to be replaced",
            )
            return []

        cost = under_load(hasty, instance_id, strike_nobody, whole_seconds=REPLACED)
    assert cost.gap <= UNTOUCHED
    assert_replaced(hasty, instance_id, before)
    places = [row["replication_id"] for row in replicas(hasty, instance_id)]
    assert places.count(replica["replication_id"]) == 1
