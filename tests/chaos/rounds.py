"""A fault under load, and what it cost: how long nobody could write, and which writes were lost."""

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import redis
from chaos.service import PASSWORD, Service, alive, connect, nothing_left, processes, spec
from chaos.traffic import GENTLE, Load, Traffic, may_be_lost
from chaos.whole import WHOLE_SECONDS, await_whole
from support.waiting import until

from cacheyard.domain.instances import CLUSTERED_MODES

SOAK = bool(os.environ.get("CACHEYARD_SOAK"))

SHAPES = {
    "ha": spec("ha", 128),
    "ha-r3": spec("ha", 128, 3),
    "cluster": spec("cluster", 4096),
    "cluster-r3": spec("cluster", 4096, 3),
    "cluster-s4": spec("cluster", 4096).replace("large.r2.", "large.r2.s1."),  # four shards
    "proxy": spec("proxy", 4096),
    "ha_rw_split": spec("ha_rw_split", 1024),
    "ha_rw_split-r3": spec("ha_rw_split", 1024, 3),
}
USUAL = ("ha", "ha-r3", "cluster")
PROXIED = ("proxy", "ha_rw_split")

WRITES = 200  # of each client before the fault
BACK_SECONDS = 15.0  # until clients can write again, whatever happened; a fault's own limit is less


@dataclass
class Cost:
    """What a fault cost."""

    gap: float  # seconds: the longest time between two acknowledged writes of the clients of one shard
    gaps: list[float]  # the same by shard
    acknowledged: int
    lost: int
    lost_before: float  # seconds: how long before its master was struck the first lost write was acknowledged
    errors: Counter[str]

    def __str__(self) -> str:
        lost = f"lost {self.lost} of {self.acknowledged} acknowledged"
        span = f", from {1000 * self.lost_before:.1f} ms before" if self.lost else ""
        return f"gap {1000 * self.gap:.0f} ms, {lost}{span}; {dict(self.errors)}"


def under_load(
    service: Service,
    instance_id: str,
    fault: Callable[[], Iterable[float]],
    *,
    load: Load = GENTLE,
    writes: int = WRITES,
    seconds: float = BACK_SECONDS,
    whole_seconds: float = WHOLE_SECONDS,
) -> Cost:
    """Let clients write, do something to an instance, and see them write again and the instance whole.

    `fault` answers when it struck a master; a write that was acknowledged long before that, or after it,
    must not be lost. Clients write until everything is back: the return of the others must not cost a
    second gap, nor a write.
    """
    shown = service.now_running(instance_id)
    with Traffic(shown, PASSWORD, load=load) as traffic:
        traffic.flows(seconds, writes)
        began = time.monotonic()
        struck = list(fault())
        traffic.flows(seconds)
        await_nodes(service, instance_id, seconds=whole_seconds)
        traffic.flows(seconds)
        over = time.monotonic()
        traffic.stop()
    await_whole(service, instance_id, seconds=whole_seconds)
    lost = traffic.lost()
    wrong = [f"{one.at - began:.3f}" for one in lost if not may_be_lost(one.at, struck)]
    assert not wrong, (
        f"{len(wrong)} of {traffic.acknowledged} writes were lost that no fault excuses, acknowledged from "
        f"{wrong[0]} to {wrong[-1]} s after it began, masters were struck at "
        f"{[round(at - began, 3) for at in struck]}\n{service.log()}"
    )
    return Cost(
        traffic.gap(began - 0.1, over),
        traffic.gaps(began - 0.1, over),
        traffic.acknowledged,
        len(lost),
        max((min(at - one.at for at in struck) for one in lost), default=0.0),
        traffic.errors,
    )


def await_nodes(service: Service, instance_id: str, *, seconds: float) -> None:
    """Wait until all nodes of an instance are up and as wanted, and no task has it."""

    def away() -> list[str]:
        shown = service.show(instance_id)
        task = [f"task {shown['task']}"] if shown is not None and shown["task"] else []
        return task + [
            f"{row['ip']} is {row['seen_state']}: {row['seen_error']}"
            for row in service.nodes(instance_id)
            if row["seen_state"] != "Active"
            or row["seen_generation"] != row["generation"]
            or row["seen_incarnation"] != row["incarnation"]
            or not alive(row["seen_pid"])
        ]

    nothing_left(away, seconds=seconds, what="all nodes to be there")


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def summary(what: str, costs: Sequence[Cost]) -> str:
    """A line for a table of many rounds."""
    gaps = [1000 * cost.gap for cost in costs]
    lost = [cost.lost for cost in costs]
    return (
        f"{what}: {len(costs)} rounds, gap p50 {quantile(gaps, 0.5):.0f}, p99 {quantile(gaps, 0.99):.0f}, "
        f"longest {max(gaps):.0f} ms; lost {sum(lost)} of {sum(cost.acknowledged for cost in costs)} "
        f"acknowledged, in {sum(map(bool, lost))} rounds, at most {max(lost)} and of the last "
        f"{1000 * max(cost.lost_before for cost in costs):.1f} ms; "
        f"{dict(sum((cost.errors for cost in costs), Counter[str]()))}"
    )


# --- Who is there ---------------------------------------------------------------------------------


def masters(service: Service, instance_id: str) -> list[sqlite3.Row]:
    """Rows of the masters, by shard."""
    return [node for node in in_shards(service, instance_id) if node["role"] == "master"]


def replicas(service: Service, instance_id: str, shard_id: str | None = None) -> list[sqlite3.Row]:
    """Rows of the replicas, by shard; of one shard."""
    return [
        node
        for node in in_shards(service, instance_id)
        if node["role"] == "replica" and shard_id in (None, node["shard_id"])
    ]


def in_shards(service: Service, instance_id: str) -> list[sqlite3.Row]:
    """Rows of all nodes, by shard and number."""
    query = (
        "SELECT n.* FROM nodes n JOIN shards s ON s.id = n.shard_id WHERE n.instance_id = ? "
        "ORDER BY s.number, n.number"
    )
    return service.rows(query, instance_id)


def sentinels(service: Service) -> list[int]:
    """Pids of the Sentinels."""
    root = service.data / "sentinels"
    return [pid for pid, place in processes(service.data).items() if place.parent == root]


def says_master(node: sqlite3.Row, password: str | None = PASSWORD) -> bool:
    """Whether the server itself says that it is a master; `OSError` when it says nothing."""
    try:
        with connect(node["ip"], node["port"], password) as client:
            return bool(client.role()[0] == "master")
    except redis.RedisError as error:
        raise OSError(str(error)) from error


def new_master(service: Service, old: sqlite3.Row, seconds: float = BACK_SECONDS) -> sqlite3.Row:
    """Wait until another server of the shard says that it is master, whatever the rows say; its row."""
    others = [
        node
        for node in service.rows("SELECT * FROM nodes WHERE shard_id = ?", old["shard_id"])
        if node["id"] != old["id"]
    ]

    def find() -> sqlite3.Row | None:
        for node in others:
            try:
                if says_master(node):
                    return node
            except OSError:
                continue
        return None

    return until(find, seconds=seconds, what=f"another master than {old['ip']}")


def strike(
    service: Service, nodes: Iterable[sqlite3.Row], number: signal.Signals = signal.SIGKILL
) -> list[float]:
    """Send a signal to the servers of nodes, as nearly at once as can be. Answers when."""
    pids = [service.pid(node) for node in nodes]
    assert None not in pids, pids
    for pid in pids:
        os.kill(pid or 0, number)
    return [time.monotonic()]


def swap(service: Service, instance_id: str, number: int) -> None:
    """Ask a master to hand over: in one request that waits, as a job, or for one shard of a cluster."""
    if service.now_running(instance_id)["cache_mode"] in CLUSTERED_MODES:
        nodes = replicas(service, instance_id)
        node = nodes[number % len(nodes)]
        path = f"/instance/{instance_id}/groups/{node['shard_id']}/replications/{node['id']}/async-switchover"
        service.call("POST", path)
    elif number % 2:
        service.call("POST", f"/instances/{instance_id}/swap")
    else:
        service.call("PUT", f"/instances/{instance_id}/async-swap")
