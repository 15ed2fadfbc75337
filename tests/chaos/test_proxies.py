"""Clients behind proxies go on, whatever dies: a master, a proxy, all of them, the service.

Clients write through the instance's one address all the time. CACHEYARD_SOAK=1 is the full count, with the
limits that a quiet machine must keep. Planned switchovers are in `test_switchover_loss`, changes of size
in `test_resize_under_load`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest
from chaos.crowd import Counting, Crowd, Reader
from chaos.rounds import (
    PROXIED,
    SHAPES,
    SOAK,
    Cost,
    await_nodes,
    masters,
    new_master,
    quantile,
    replicas,
    strike,
    summary,
    swap,
    under_load,
)
from chaos.service import Service, alive, nothing_left, spec
from chaos.whole import await_whole

KILLS = 50 if SOAK else 2
HANGS = 10 if SOAK else 1
ENDS = 10 if SOAK else 1  # of proxies
APART = 12.0 if SOAK else 0.0  # between two faults, see `test_failover`
# Seconds without a write.
KILLED = 1.0 if SOAK else 6.0
HUNG = 5.0 if SOAK else 12.0
PROXY_KILLED = 0.5 if SOAK else 5.0  # clients of the others go on
PROXIES_KILLED = 1.0 if SOAK else 10.0  # there are no others
PROXY_STOPPED = 3.0 if SOAK else 12.0  # until somebody sees it, new clients may come to it
UNTOUCHED = 0.2 if SOAK else 2.0
WAITED = 2.5  # proxies keep clients waiting a little longer than that

STALE = 5.0  # seconds: what was written so long before is read
BACK = 20.0  # until a proxy has another process
GUESTS = 12
COUNTING = 32 if SOAK else 12  # clients
ROUND_SECONDS = 90


def instance(service: Service, shape: str) -> str:
    """A new instance's id."""
    made = service.running_instance("cache", SHAPES[shape])
    return str(await_whole(service, made["instance_id"])["instance_id"])


def pids(service: Service, instance_id: str) -> list[int]:
    """Of the instance's proxies."""
    return [row["seen_pid"] for row in service.proxies(instance_id)]


def await_others(service: Service, instance_id: str, dead: Sequence[int]) -> None:
    """Wait until other processes are there instead of these."""
    nothing_left(
        lambda: [
            f"proxy {row['number']} is {row['seen_state']}: {row['seen_error']}"
            for row in service.proxies(instance_id)
            if row["seen_state"] != "Active" or row["seen_pid"] in dead or not alive(row["seen_pid"])
        ],
        seconds=BACK,
        what="other proxies",
    )


def end(processes: Iterable[int], number: signal.Signals = signal.SIGKILL) -> list[float]:
    """Send proxies a signal. No master was struck."""
    for pid in processes:
        os.kill(pid, number)
    return []


# --- The master -----------------------------------------------------------------------------------


@pytest.mark.timeout(60 + ROUND_SECONDS * KILLS)
@pytest.mark.parametrize("shape", PROXIED)
def test_a_killed_master_behind_proxies_is_replaced_within_a_second(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id, costs = instance(service, shape), list[Cost]()
    for number in range(KILLS):
        time.sleep(APART if number else 0)
        before = masters(service, instance_id)
        struck = number % len(before)
        cost = under_load(service, instance_id, partial(strike, service, [before[struck]]))
        assert all(gap < KILLED / 2 for at, gap in enumerate(cost.gaps) if at != struck), "the others go on"
        # Who waited is told that nobody knows; who comes then waits for the next master.
        assert cost.gap > WAITED or cost.errors["ResponseError"] <= 3 * len(cost.gaps), cost
        costs.append(cost)
    tell(summary(f"{shape}, master killed", costs))
    assert quantile([cost.gap for cost in costs], 0.99) <= KILLED, [cost.gap for cost in costs]


@pytest.mark.timeout(60 + ROUND_SECONDS * HANGS)
@pytest.mark.parametrize("shape", PROXIED)
def test_a_master_behind_proxies_that_hangs_is_replaced(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id, costs = instance(service, shape), list[Cost]()
    for number in range(HANGS):
        time.sleep(APART if number else 0)
        before = masters(service, instance_id)
        fault = partial(strike, service, [before[number % len(before)]], signal.SIGSTOP)
        costs.append(under_load(service, instance_id, fault, seconds=30))
    tell(summary(f"{shape}, master hung", costs))
    assert max(cost.gap for cost in costs) <= HUNG


@pytest.mark.timeout(60 + ROUND_SECONDS * HANGS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP] if SOAK else [signal.SIGSTOP])
def test_reads_are_answered_by_who_is_left_and_are_not_old(
    service: Service, number: signal.Signals, tell: Callable[[object], None]
) -> None:
    """The master dies or hangs. What replicas answer lags behind as replication does, and no more."""
    instance_id = instance(service, "ha_rw_split-r3")
    for turn in range(HANGS):
        time.sleep(APART if turn else 0)
        before = masters(service, instance_id)
        with Reader(service.now_running(instance_id)) as reader:
            reader.flows(20)
            strike(service, before, number)
            new_master(service, before[0], seconds=30)
            await_nodes(service, instance_id, seconds=30)
            time.sleep(STALE)  # whoever reads what is no longer written to would by now
        tell(f"ha_rw_split, master gets {number.name}: {reader}")
        assert reader.stale <= STALE
        await_whole(service, instance_id)


# --- Replicas -------------------------------------------------------------------------------------


def test_the_master_serves_reads_when_all_replicas_are_dead(service: Service) -> None:
    instance_id = instance(service, "ha_rw_split-r3")
    shown = service.now_running(instance_id)
    with Reader(shown) as before:
        before.flows(20)
        service.kill()  # it would start them again
        strike(service, replicas(service, instance_id))
        before.flows(20)
    assert before.gap <= KILLED
    with Reader(shown) as after:
        after.flows(20, 200)
    assert after.stale == 0, "what the master answers is never old"
    assert not after.errors
    service.start()
    await_whole(service, instance_id)


# --- The proxies ----------------------------------------------------------------------------------


@pytest.mark.timeout(60 + ROUND_SECONDS * ENDS)
def test_clients_of_a_killed_proxy_go_on_with_its_siblings(
    service: Service, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, "proxy")
    shown = service.now_running(instance_id)
    gaps, calm = list[float](), list[float]()
    for _ in range(ENDS):
        there = pids(service, instance_id)
        with Crowd(shown, GUESTS) as crowd:
            crowd.flows(20)
            dead = crowd.guests[0].proxy
            assert dead is not None
            its = crowd.at([dead])
            others = [guest for guest in crowd.guests if guest not in its]
            began = time.monotonic()
            end([dead])
            crowd.flows(20, 50)
            await_others(service, instance_id, [dead])
            crowd.flows(20)
            over = time.monotonic()
        assert set(pids(service, instance_id)) & set(there) == set(there) - {dead}, "the others stay"
        assert all(guest.errors for guest in its), "a connection breaks, and the client learns of it"
        assert not any(guest.errors for guest in others), "clients of the others notice nothing"
        gaps += [guest.gap(began, over) for guest in its]
        calm += [guest.gap(began, over) for guest in others]
    await_whole(service, instance_id)
    tell(
        f"{ENDS} proxies killed: {len(gaps)} clients without a write for {1000 * max(gaps):.0f} ms at most, "
        f"{len(calm)} of others for {1000 * max(calm, default=0):.0f} ms"
    )
    assert max(gaps) <= PROXY_KILLED
    assert max(calm, default=0) <= UNTOUCHED


@pytest.mark.timeout(60 + ROUND_SECONDS * ENDS)
@pytest.mark.parametrize("shape", PROXIED if SOAK else ["proxy"])
def test_all_proxies_killed_at_once_are_back_and_nothing_is_lost(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id, costs = instance(service, shape), list[Cost]()
    before = masters(service, instance_id)
    for number in range(ENDS):
        time.sleep(APART if number else 0)
        dead = pids(service, instance_id)
        costs.append(under_load(service, instance_id, partial(end, dead)))
        assert not set(dead) & set(pids(service, instance_id))
    tell(summary(f"{shape}, all proxies killed", costs))
    assert max(cost.gap for cost in costs) <= PROXIES_KILLED
    assert [row["id"] for row in masters(service, instance_id)] == [row["id"] for row in before]


@pytest.mark.timeout(60 + ROUND_SECONDS * ENDS)
def test_a_proxy_that_hangs_is_replaced(service: Service, tell: Callable[[object], None]) -> None:
    instance_id = instance(service, "ha_rw_split")
    shown, gaps = service.now_running(instance_id), list[float]()
    for _ in range(ENDS):
        with Crowd(shown, GUESTS) as crowd:
            crowd.flows(20)
            hung = crowd.guests[0].proxy
            assert hung is not None
            others = [guest for guest in crowd.guests if guest not in crowd.at([hung])]
            began = time.monotonic()
            end([hung], signal.SIGSTOP)
            await_others(service, instance_id, [hung])
            crowd.flows(20)
            over = time.monotonic()
        assert not any(guest.errors for guest in others), "clients of the others notice nothing"
        gaps += [guest.gap(began, over) for guest in crowd.guests]
    await_whole(service, instance_id)
    tell(f"{ENDS} proxies hung: no client without a write for more than {1000 * max(gaps):.0f} ms")
    assert max(gaps) <= PROXY_STOPPED


@pytest.mark.parametrize("shape", PROXIED if SOAK else ["ha_rw_split"])
def test_proxies_go_on_while_the_service_is_dead_and_are_replaced_when_it_is_back(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id = instance(service, shape)
    shown, nodes = service.now_running(instance_id), service.nodes(instance_id)
    first, *others = pids(service, instance_id)

    def die_and_come_back() -> list[float]:
        service.kill()
        end([first])
        with Crowd(shown, GUESTS) as crowd:
            crowd.flows(20)
            assert len(crowd.at(others)) == GUESTS, "the others take all clients"
        service.start()
        await_others(service, instance_id, [first])
        return []

    cost = under_load(service, instance_id, die_and_come_back)
    tell(f"{shape}, a proxy killed while the service was away: {cost}")
    assert cost.gap <= PROXY_KILLED
    assert set(others) < set(pids(service, instance_id)), "the others were adopted"
    assert [node["seen_pid"] for node in service.nodes(instance_id)] == [node["seen_pid"] for node in nodes]

    def all_die_and_come_back() -> list[float]:
        service.kill()
        end(pids(service, instance_id))
        service.start()
        return []

    cost = under_load(service, instance_id, all_die_and_come_back)
    tell(f"{shape}, all proxies killed while the service was away for a moment: {cost}")


# --- Lost updates ---------------------------------------------------------------------------------

ROUNDS = 10 if SOAK else 1  # of each kind
COUNTED = 200 if SOAK else 20  # numbers of each counter, after each


def kill_master(service: Service, instance_id: str, number: int) -> list[float]:
    there = masters(service, instance_id)
    struck = strike(service, [there[number % len(there)]])
    new_master(service, there[number % len(there)])
    await_nodes(service, instance_id, seconds=30)
    return struck


def hand_over(service: Service, instance_id: str, number: int) -> list[float]:
    swap(service, instance_id, number)
    service.now_running(instance_id, 60)
    return []


def resize(service: Service, instance_id: str, number: int) -> list[float]:
    """To twice as many shards, and the next time back: half of all slots move."""
    service.resize(instance_id, SHAPES["proxy"] if number % 2 else spec("proxy", 49152))
    service.now_running(instance_id, 120)
    return []


@pytest.mark.timeout(60 + 150 * ROUNDS)
@pytest.mark.parametrize(
    ("shape", "change"),
    [(shape, change) for shape in PROXIED for change in (kill_master, hand_over)] + [("proxy", resize)],
)
def test_no_update_is_lost_between_clients_that_count_together(
    service: Service,
    shape: str,
    change: Callable[[Service, str, int], list[float]],
    tell: Callable[[object], None],
) -> None:
    """Each takes a number, adds one, and puts it back if nobody did meanwhile (WATCH, GET, MULTI, SET, EXEC).
    In the end each number was put once. A master that dies may forget the last ones, as ever."""
    instance_id, struck = instance(service, shape), list[float]()
    with Counting(service.now_running(instance_id), COUNTING) as counting:
        counting.flows(30, COUNTED)
        for number in range(ROUNDS):
            struck += change(service, instance_id, number)
            counting.flows(30, COUNTED)
    await_whole(service, instance_id)
    forgotten = counting.forgive(struck)
    tell(f"{shape}, {change.__name__} {ROUNDS} times: {counting}; {forgotten} forgotten")
    assert counting.wrong() == []
    assert counting.conflicts, "or it proves nothing"
