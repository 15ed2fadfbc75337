"""Requests per second, against servers that were started by hand with the same configuration."""

import statistics
import subprocess
from typing import Any

from bench.bare import bare_nodes, form_cluster, options_like, start_bare
from bench.yard import CLUSTER, Yard, ready


def throughput(yard: Yard, rounds: int) -> dict[str, Any]:
    """Requests per second of a single instance against a server started by hand with its configuration."""
    shown = ready(yard, yard.create("throughput")[0])
    options = options_like(yard, shown["ip"])
    by_hand = start_bare("127.200.3.2", *options, "--protected-mode", "no")
    try:
        ratios: dict[str, list[float]] = {}
        pair = (shown["ip"], "127.200.3.2")
        for turn in range(rounds):
            for pipeline in (1, 16):
                rates = {ip: benchmark(ip, pipeline) for ip in (pair if turn % 2 else reversed(pair))}
                for command, rate in rates[pair[0]].items():
                    ratios.setdefault(f"{command} P{pipeline}", []).append(rate / rates[pair[1]][command])
    finally:
        by_hand.kill()
        by_hand.wait()
    yard.delete_all()
    return {f"{name}, ratio (aim 0.97)": round(statistics.median(rates), 3) for name, rates in ratios.items()}


def cluster_throughput(yard: Yard, rounds: int) -> dict[str, Any]:
    """Of a cluster of three masters and three replicas against one made by hand, in turn."""
    ours = ready(yard, yard.create("throughput", CLUSTER)[0])["ip"].split(",")[0]
    theirs = [f"127.202.3.{number + 2}" for number in range(6)]
    ratios: dict[str, list[float]] = {}
    with bare_nodes(theirs, options_like(yard, ours)):
        form_cluster(theirs)
        pair = (ours, theirs[0])
        for turn in range(rounds):
            for pipeline in (1, 16):
                rates = {
                    ip: benchmark(ip, pipeline, "--cluster") for ip in (pair if turn % 2 else reversed(pair))
                }
                for command, rate in rates[pair[0]].items():
                    ratios.setdefault(f"{command} P{pipeline}", []).append(rate / rates[pair[1]][command])
    yard.delete_all()
    return {
        f"cluster, {name}, ratio (aim 0.97)": round(statistics.median(rates), 3)
        for name, rates in ratios.items()
    }


def benchmark(ip: str, pipeline: int, *options: str) -> dict[str, float]:
    """redis-benchmark's requests per second by command."""
    command = [
        "redis-benchmark",
        "-h",
        ip,
        "-t",
        "set,get",
        "-c",
        "50",
        "-P",
        str(pipeline),
        "--csv",
        *options,
    ]
    command += ["-n", str(60_000 * (1 if pipeline == 1 else 8))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.replace('"', "").split(",") for line in out.splitlines() if line.startswith('"')]
    return {row[0]: float(row[1]) for row in rows if row[0] in ("SET", "GET")}
