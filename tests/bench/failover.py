"""How long nobody can write when a master fails, and how many acknowledged writes are lost.

`kills` is part of `make bench`. `python -m bench.failover` measures losses: under light and heavy load,
with a master that is killed or hangs, and with replicas that are behind. Each round waits until
the instance is whole again, with the checks of the tests in `chaos`.
"""

import argparse
import os
import signal
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from chaos.rounds import SHAPES, Cost, masters, replicas, strike, summary, under_load
from chaos.service import Service, connect, delete_all, service_in, spec
from chaos.traffic import Load
from chaos.whole import await_whole
from support.service import DISK
from support.waiting import until

from bench.yard import ms, quantile

# Seconds that each server has run before the next fault: one that ran ten is started again at once when it
# ends, and Sentinels, which ask every ten what servers say of themselves, have read it.
STEADY = 12
BEHIND = 0.3  # seconds that replicas are stopped before their master is killed

LOADS = {
    "a client, 1 ms between writes": Load(),
    "4 clients without pause": Load(clients=4, pause=0),
    "4 clients, 50 writes at once": Load(clients=4, pause=0, batch=50, size=100),
    "4 clients, 50 at once, WAIT 1": Load(clients=4, pause=0, batch=50, size=100, wait=1),
}
CODES = {"ha": spec("ha", 1024), "cluster": SHAPES["cluster"]}

Fault = Callable[[Service, str, sqlite3.Row], list[float]]


def killed(service: Service, instance_id: str, master: sqlite3.Row) -> list[float]:
    """kill -9."""
    return strike(service, [master])


def hung(service: Service, instance_id: str, master: sqlite3.Row) -> list[float]:
    """SIGSTOP."""
    return strike(service, [master], signal.SIGSTOP)


def killed_ahead(service: Service, instance_id: str, master: sqlite3.Row) -> list[float]:
    """kill -9 while the replicas have been stopped for a moment."""
    pids = [service.pid(node) for node in replicas(service, instance_id, master["shard_id"])]
    for pid in pids:
        os.kill(pid or 0, signal.SIGSTOP)
    time.sleep(BEHIND)  # this is the fault: so long is what the replicas have not read
    struck = strike(service, [master])
    for pid in pids:
        os.kill(pid or 0, signal.SIGCONT)
    return struck


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "hung": hung,
    f"killed, replicas {BEHIND:g} s behind": killed_ahead,
}


@contextmanager
def yard() -> Iterator[Service]:
    """A service that may promise more memory than there is."""
    with tempfile.TemporaryDirectory(prefix="cacheyard-bench-", dir=DISK) as home:  # noqa: SIM117
        with service_in(Path(home), CACHEYARD_OVERCOMMIT="20") as service:
            yield service


def rounds(service: Service, shape: str, fault: Fault, load: Load, count: int) -> list[Cost]:
    """So many faults of an instance of its own."""
    instance_id = str(service.running_instance("cache", CODES[shape])["instance_id"])
    costs = []
    for number in range(count):
        await_whole(service, instance_id)
        until(partial(steady, service, instance_id), seconds=5 * STEADY, what="steady servers", pause=0.1)
        there = masters(service, instance_id)
        master = there[number % len(there)]
        costs.append(
            under_load(
                service, instance_id, partial(fault, service, instance_id, master), load=load, writes=1000
            )
        )
        service.act("flush", instance_id)
        service.now_running(instance_id)
    delete_all(service)
    return costs


def steady(service: Service, instance_id: str) -> bool:
    """Whether all servers of an instance have run for a while."""
    for node in service.nodes(instance_id):
        with connect(node["ip"], node["port"]) as link:
            if link.info("server")["uptime_in_seconds"] < STEADY:
                return False
    return True


def kills(count: int) -> dict[str, Any]:
    """From `kill -9` of a master to the next write, of clients that try again all the time."""
    figures: dict[str, Any] = {}
    with yard() as service:
        for shape in CODES:
            gaps = [cost.gap for cost in rounds(service, shape, killed, Load(), count)]
            figures[f"{shape}, master killed, to the first write, p50 ms"] = ms(statistics.median(gaps))
            figures[f"{shape}, the same, longest ms (aim 1000)"] = ms(quantile(gaps, 1))
    return figures


def main() -> None:
    """Measure losses and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shape", choices=CODES, action="append")
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--load", choices=LOADS, action="append")
    given = parser.parse_args()
    with yard() as service:
        for shape in given.shape or CODES:
            for fault in given.fault or FAULTS:
                for load in given.load or LOADS:
                    if shape == "cluster" and LOADS[load].wait:
                        continue  # redis-py has no WAIT for the node that was written to
                    costs = rounds(service, shape, FAULTS[fault], LOADS[load], given.rounds)
                    print(summary(f"{shape}, master {fault}; {load}", costs), flush=True)


if __name__ == "__main__":
    main()
