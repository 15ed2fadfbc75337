"""What all benchmarks use: a running service and its client, and figures of processes."""

import re
import socket
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from chaos.service import size_of, spec
from support.service import Service
from support.waiting import until

from cacheyard.domain import flavors

SINGLE, HA, CLUSTER = spec("single", 128), spec("ha", 128), spec("cluster", 4096)


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
        facts, flavor = self.service.facts, flavors.find(spec_code)
        assert flavor is not None, spec_code
        body = {
            "name": name,
            "engine": "Redis",
            "engine_version": max(flavor.engine_versions),
            "capacity": size_of(spec_code) / 1024,
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
    assert answers(shown["ip"].split(",")[0], shown["port"])
    return shown


def answers(ip: str, port: int) -> bool:
    """Whether a server answers PING there."""
    with socket.create_connection((ip, port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")


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


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the medians, to three places."""
    return round(statistics.median(ours) / statistics.median(theirs), 3)


def ms(seconds: float) -> float:
    """Milliseconds for people."""
    return round(seconds * 1000, 1)
