"""Instances behind proxies, as the service makes them: how soon they serve, and how fast."""

import statistics
import time
from typing import Any

from chaos.service import spec

from bench.bare import options_like, start_bare
from bench.throughput import benchmark
from bench.yard import CLUSTER, Yard, median_ratio, ms, ready

SPECS = {"proxy": spec("proxy", 4096), "ha_rw_split": spec("ha_rw_split", 1024)}


def proxied_creation(yard: Yard, rounds: int) -> dict[str, Any]:
    """POST to RUNNING-and-answering, in turn with a Redis Cluster that has no proxies."""
    taken: dict[str, list[float]] = {name: [] for name in ("cluster", *SPECS)}
    for turn in range(rounds):
        for name, spec_code in {"cluster": CLUSTER, **SPECS}.items():
            began = time.perf_counter()
            ready(yard, yard.create(f"created-{turn}", spec_code)[0])
            taken[name].append(time.perf_counter() - began)
            yard.delete_all()
    figures = {
        f"{name}, POST to RUNNING, p50 ms": ms(statistics.median(times)) for name, times in taken.items()
    }
    return figures | {"proxy / cluster, POST to RUNNING": median_ratio(taken["proxy"], taken["cluster"])}


def proxied_throughput(yard: Yard, rounds: int) -> dict[str, Any]:
    """Requests per second at the address of each type, against a server that was started by hand with the
    configuration of ours, in turn. (Benchmark, proxies and servers compete for this machine's processors.)"""
    addresses = {name: ready(yard, yard.create(name, code)[0])["ip"] for name, code in SPECS.items()}
    direct = "127.200.4.2"
    options = options_like(yard, _node(yard, "ha_rw_split"))
    by_hand = start_bare(direct, *options, "--protected-mode", "no")
    ratios: dict[str, list[float]] = {}
    try:
        for turn in range(rounds):
            for pipeline in (1, 16):
                order = list(addresses.values()) if turn % 2 else list(addresses.values())[::-1]
                rates = {ip: benchmark(ip, pipeline) for ip in (direct, *order)}
                for name, ip in addresses.items():
                    for command, rate in rates[ip].items():
                        key = f"{name}, {command} P{pipeline}, ratio to a direct server"
                        ratios.setdefault(key, []).append(rate / rates[direct][command])
    finally:
        by_hand.kill()
        by_hand.wait()
    yard.delete_all()
    return {key: round(statistics.median(found), 3) for key, found in ratios.items()}


def _node(yard: Yard, name: str) -> str:
    """The address of a server of the instance of that name."""
    there = yard.http.get(f"{yard.project}/instances?name={name}").json()["instances"]
    groups = yard.http.get(f"{yard.project}/instance/{there[0]['instance_id']}/groups").json()["group_list"]
    return str(groups[0]["replication_list"][0]["replication_ip"])
