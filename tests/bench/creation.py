"""How long it takes until an instance can be used."""

import statistics
import time
from typing import Any

from bench.bare import bare, bare_nodes, form_cluster, options_like
from bench.yard import CLUSTER, HA, SINGLE, Yard, median_ratio, ms, quantile, ready


def creation(yard: Yard, runs: int) -> dict[str, Any]:
    """POST to RUNNING-and-answering against exec-to-PONG, in turn."""

    def one(spec_code: str, name: str) -> float:
        began = time.perf_counter()
        ready(yard, yard.create(name, spec_code)[0])
        return time.perf_counter() - began

    taken: dict[str, list[float]] = {"exec to PONG": [], "single": [], "ha": []}
    for run in range(runs):
        taken["exec to PONG"].append(bare(f"127.200.1.{run % 200 + 2}"))
        taken["single"].append(one(SINGLE, f"single-{run}"))
        taken["ha"].append(one(HA, f"master-standby-{run}"))
    yard.delete_all()
    base = quantile(taken["exec to PONG"], 0.95)
    figures: dict[str, Any] = {}
    for name, times in taken.items():
        figures[f"{name}, p50 ms"] = ms(statistics.median(times))
        figures[f"{name}, p95 ms"] = ms(quantile(times, 0.95))
    figures["single / exec to PONG at p95 (aim 10)"] = round(quantile(taken["single"], 0.95) / base, 1)
    figures["ha / exec to PONG at p95 (aim 30)"] = round(quantile(taken["ha"], 0.95) / base, 1)
    return figures


def clusters(yard: Yard, rounds: int) -> dict[str, Any]:
    """A cluster of three masters and three replicas: POST to RUNNING against `redis-cli --cluster create` of
    six servers that run already, in turn."""
    first = yard.create("like-this", CLUSTER)[0]
    options = options_like(yard, ready(yard, first)["ip"].split(",")[0])
    yard.delete_all()
    ours, theirs = [], []
    for turn in range(rounds):
        began = time.perf_counter()
        instance_id = yard.create(f"cluster-{turn}", CLUSTER)[0]
        ready(yard, instance_id)
        ours.append(time.perf_counter() - began)
        yard.delete_all()
        addresses = [f"127.201.{turn % 200}.{number + 2}" for number in range(6)]
        with bare_nodes(addresses, options):
            theirs.append(form_cluster(addresses))
    return {
        "cluster 3x2, POST to RUNNING, p50 ms": ms(statistics.median(ours)),
        "redis-cli --cluster create of servers that run, p50 ms": ms(statistics.median(theirs)),
        "ours / redis-cli (aim 0.7)": median_ratio(ours, theirs),
    }
