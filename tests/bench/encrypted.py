"""What TLS costs: against a server started by hand that speaks it, with a certificate of the same kind."""

import statistics
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.caches import PASSWORD
from support.service import DISK
from support.waiting import until

from bench.bare import REDIS, options_like, spawn
from bench.throughput import benchmark
from bench.yard import Yard, ready
from cacheyard.clock import now_ms
from cacheyard.domain.certificates import issue, new_authority

BY_HAND = "127.200.3.3"


def _switch_on(yard: Yard, instance_id: str) -> None:
    """With a password, without which there is no TLS."""
    instance = f"{yard.project}/instances/{instance_id}"
    yard.http.post(f"{instance}/password/reset", json={"new_password": PASSWORD}).raise_for_status()
    path = f"{instance}/ssl"
    yard.http.put(path, json={"enabled": True}).raise_for_status()
    until(lambda: yard.http.get(path).json()["enabled"], seconds=60, what="TLS", pause=0.05)


def _said(place: Path) -> str:
    """What the server by hand answers to PING."""
    command = ["redis-cli", "-h", BY_HAND, "--tls", "--cacert", str(place / "ca"), "-a", PASSWORD]
    command += ["--no-auth-warning", "PING"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def encrypted_throughput(yard: Yard, rounds: int) -> dict[str, Any]:
    """Requests per second of a single instance with TLS, in turn with the server by hand."""
    shown = ready(yard, yard.create("encrypted")[0])
    ours, options = shown["ip"], options_like(yard, shown["ip"])
    _switch_on(yard, shown["instance_id"])
    with tempfile.TemporaryDirectory(prefix="cacheyard-bench-", dir=DISK) as home:
        place, authority = Path(home), new_authority("by hand", now_ms())
        pair = issue(authority, [BY_HAND], now_ms(), timedelta(days=1))
        for name, text in (("ca", authority.certificate), ("crt", pair.certificate), ("key", pair.key)):
            (place / name).write_text(text)
        files = ("--tls-ca-cert-file", "ca", "--tls-cert-file", "crt", "--tls-key-file", "key")
        command = [REDIS, "--bind", BY_HAND, "--port", "0", "--tls-port", "6379", "--save", "", *options]
        command += ["--requirepass", PASSWORD]
        server = spawn([*command, *files, "--tls-auth-clients", "no", "--protected-mode", "no"], place)
        trusted = {ours: yard.service.data / "ca.crt", BY_HAND: place / "ca"}
        ratios: dict[str, list[float]] = {}
        try:
            until(lambda: "PONG" in _said(place), seconds=10, what="the server by hand to answer")
            for turn in range(rounds):
                for pipeline in (1, 16):
                    pair_of = (ours, BY_HAND) if turn % 2 else (BY_HAND, ours)
                    rates = {
                        ip: benchmark(ip, pipeline, "--tls", "--cacert", str(trusted[ip]), "-a", PASSWORD)
                        for ip in pair_of
                    }
                    for name, rate in rates[ours].items():
                        ratios.setdefault(f"{name} P{pipeline}", []).append(rate / rates[BY_HAND][name])
        finally:
            server.kill()
            server.wait()
    yard.delete_all()
    return {
        f"TLS, {name}, ratio (aim 0.95)": round(statistics.median(rates), 3) for name, rates in ratios.items()
    }
