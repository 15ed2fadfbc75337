"""`make bench`: how long things take, as ratios to a bare redis-server measured in the same run.

Prints a table and, with `--json`, the same as JSON. Nothing here is a test: machines are noisy.
"""

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from support.service import Service
from support.waiting import until

REDIS = shutil.which("redis-server") or "redis-server"
SINGLE, HA = "redis.single.xu1.tiny.128", "redis.ha.xu1.tiny.r2.128"


class Yard:
    """A running service and a client without the checks of the tests."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.project = f"/v2/{service.facts.project_id}"
        limits = httpx.Limits(max_connections=120)
        headers = {"X-Auth-Token": service.token()}
        self.http = httpx.Client(base_url=service.facts.endpoint, headers=headers, timeout=60, limits=limits)

    def create(self, name: str, spec_code: str = SINGLE, count: int = 1) -> list[str]:
        """Ids of new instances."""
        facts = self.service.facts
        body = {
            "name": name,
            "engine": "Redis",
            "engine_version": "7.0",
            "capacity": 0.125,
            "spec_code": spec_code,
            "az_codes": facts.az_codes[:1],
            "vpc_id": facts.vpc_id,
            "subnet_id": facts.subnet_id,
            "no_password_access": True,
            "instance_num": count,
        }
        answer = self.http.post(f"{self.project}/instances", json=body)
        answer.raise_for_status()
        return [made["instance_id"] for made in answer.json()["instances"]]

    def show(self, instance_id: str) -> dict[str, Any]:
        """One instance."""
        shown: dict[str, Any] = self.http.get(f"{self.project}/instances/{instance_id}").json()
        return shown

    def delete_all(self) -> None:
        """Delete what is there, and wait until it is gone."""

        def gone() -> bool:
            there = self.http.get(f"{self.project}/instances?limit=1000").json()["instances"]
            ids = [instance["instance_id"] for instance in there]
            for start in range(0, len(ids), 50):
                body = {"instances": ids[start : start + 50]}
                self.http.request("DELETE", f"{self.project}/instances", json=body)
            return not ids

        until(gone, seconds=60, what="all instances to be gone", pause=0.1)


def ready(yard: Yard, instance_id: str) -> dict[str, Any]:
    """Wait until the instance is RUNNING and its server answers PING."""

    def running() -> dict[str, Any] | None:
        shown = yard.show(instance_id)
        return shown if shown["status"] == "RUNNING" and shown["task"] is None else None

    shown = until(running, seconds=60, what=f"{instance_id} to run", pause=0.005)
    assert answers(shown["ip"], shown["port"])
    return shown


def answers(ip: str, port: int) -> bool:
    """Whether a server answers PING there."""
    with socket.create_connection((ip, port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")


def bare(address: str) -> float:
    """Seconds from exec to PONG of a redis-server started by hand."""
    began = time.perf_counter()
    server = start_bare(address)
    took = time.perf_counter() - began
    server.kill()
    server.wait()
    return took


def start_bare(address: str, *options: str) -> "subprocess.Popen[bytes]":
    """A redis-server started by hand that answers."""
    command = [REDIS, "--bind", address, "--port", "6379", "--save", "", *options]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/tmp")  # noqa: S108 - writes nothing
    until(lambda: answers(address, 6379), seconds=10, what="the bare server", pause=0.0005)
    return server


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


def throughput(yard: Yard, rounds: int) -> dict[str, Any]:
    """Requests per second of a single instance against a server started by hand with its configuration."""
    shown = ready(yard, yard.create("throughput")[0])
    directory = next(
        path
        for path in (yard.service.data / "nodes").iterdir()
        if (path / "redis.conf").exists() and shown["ip"] in (path / "redis.conf").read_text()
    )
    keep = [
        line.split(maxsplit=1)
        for line in (directory / "redis.conf").read_text().splitlines()
        if line
        and not re.match(r"(#|bind|dir|logfile|aclfile|port|unixsocket|pidfile|replica|user|save|proc)", line)
    ]
    options = [word for name, value in keep for word in (f"--{name}", *value.replace('"', "").split())]
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


def benchmark(ip: str, pipeline: int) -> dict[str, float]:
    """redis-benchmark's requests per second by command."""
    command = ["redis-benchmark", "-h", ip, "-t", "set,get", "-c", "50", "-P", str(pipeline), "--csv"]
    command += ["-n", str(60_000 * (1 if pipeline == 1 else 8))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.replace('"', "").split(",") for line in out.splitlines() if line.startswith('"')]
    return {row[0]: float(row[1]) for row in rows if row[0] in ("SET", "GET")}


def listing(yard: Yard, requests: int) -> dict[str, Any]:
    """100 instances made at once, listed, and what each costs in memory."""
    before = memory_kb(yard)
    began = time.perf_counter()
    with ThreadPoolExecutor(20) as clients:
        ids = list(clients.map(lambda number: yard.create(f"many-{number}")[0], range(100)))

    def running() -> bool:
        counts = yard.http.get(f"{yard.project}/instances/status").json()
        return bool(counts["running_count"] == len(ids))

    until(running, seconds=120, what="100 instances to run", pause=0.05)
    took = time.perf_counter() - began
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        answer = yard.http.get(f"{yard.project}/instances?limit=100")
        times.append(time.perf_counter() - began)
        assert len(answer.json()["instances"]) == 100
    service = memory_kb(yard)
    servers = [
        memory_of(pid) for pid, command in yard.service.processes().items() if "redis-server" in command
    ]
    yard.delete_all()
    return {
        "100 at once until all RUNNING, s (aim 20)": round(took, 2),
        "list of 100, p50 ms": ms(statistics.median(times)),
        "list of 100, p99 ms (aim 20)": ms(quantile(times, 0.99)),
        "service's memory per extra instance, KiB": round((service - before) / 100),
        "server's own memory (PSS), KiB": round(statistics.median(servers)),
    }


def cold_start(rounds: int) -> dict[str, Any]:
    """From exec of `cacheyard up` on an existing directory to the first 200."""
    times, idle = [], []
    with Service() as service:
        for _ in range(rounds):
            service.down()
            began = time.perf_counter()
            service.start()
            httpx.get(f"{service.facts.endpoint}/openapi.json").raise_for_status()
            times.append(time.perf_counter() - began)
            idle.append(memory_kb(Yard(service)))
    return {
        "cold start to the first 200, s (aim 1.5)": round(statistics.median(times), 2),
        "idle memory of API and agent, MiB (aim 120)": round(statistics.median(idle) / 1024, 1),
    }


def memory_kb(yard: Yard) -> int:
    """Resident memory of the service."""
    return field(yard.service.pid, "status", "VmRSS")


def memory_of(pid: int) -> int:
    """A server's share of memory: what it would free."""
    return field(pid, "smaps_rollup", "Pss")


def field(pid: int, file: str, name: str) -> int:
    """A figure of /proc, in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def ms(seconds: float) -> float:
    """Milliseconds for people."""
    return round(seconds * 1000, 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="instances of each type")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of throughput and starts")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures: dict[str, Any] = {}

    def measure(work: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        new = work(*arguments)
        figures.update(new)
        for name, value in new.items():
            print(f"{name:<52} {value:>10}", file=sys.stderr if given.json else sys.stdout, flush=True)

    measure(cold_start, given.rounds)
    with Service() as service:
        yard = Yard(service)
        measure(creation, yard, given.runs)
        measure(throughput, yard, given.rounds)
        measure(listing, yard, 300)
    if given.json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
