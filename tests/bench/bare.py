"""Servers that are started by hand, with the configuration of ours: what ours are compared with.

Each is in a session of its own, like ours and like those of service managers: kernels share busy
processors by session (autogroup), and a benchmark that shares one with its servers runs twice as fast.
"""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.service import DISK
from support.waiting import until

from bench.yard import Yard, answers

REDIS = shutil.which("redis-server") or "redis-server"

# What a server by hand cannot have of ours, or has of its own.
_OWN = re.compile(
    r"(#|bind|dir|logfile|aclfile|port|unixsocket|pidfile|replica-announce|replicaof|user|save|proc|"
    r"cluster-announce|cluster-config-file)"
)


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
    server = spawn(command, Path("/tmp"))  # noqa: S108 - writes nothing
    until(lambda: answers(address, 6379), seconds=10, what="the bare server", pause=0.0005)
    return server


def spawn(command: list[str], place: Path) -> "subprocess.Popen[bytes]":
    """Start it in a session of its own."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=place, start_new_session=True)


def options_like(yard: Yard, ip: str) -> list[str]:
    """The configuration of the server that the service runs at an address, as words of a command line."""
    file = next(
        path / "redis.conf"
        for path in (yard.service.data / "nodes").iterdir()
        if (path / "redis.conf").exists()
        and re.search(rf"^bind .*\b{re.escape(ip)}\b", (path / "redis.conf").read_text(), re.MULTILINE)
    )
    keep = [line.split(maxsplit=1) for line in file.read_text().splitlines() if line and not _OWN.match(line)]
    return [word for name, value in keep for word in (f"--{name}", *value.replace('"', "").split())]


@contextmanager
def bare_nodes(addresses: list[str], options: list[str]) -> Iterator[None]:
    """A server at each address, in directories of their own, all answering; gone afterwards."""
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="cacheyard-bench-", dir=DISK) as home:
        try:
            for ip in addresses:
                place = Path(home) / ip
                place.mkdir()
                command = [REDIS, "--bind", ip, "--port", "6379", "--save", "", "--dir", str(place)]
                command += ["--protected-mode", "no", *options, "--bind-source-addr", ip]
                running.append(spawn(command, place))
            for ip in addresses:
                until(lambda ip=ip: answers(ip, 6379), seconds=10, what=f"{ip} to answer", pause=0.001)  # type: ignore[misc]
            yield
        finally:
            for server in running:
                server.kill()
                server.wait()


def form_cluster(addresses: list[str]) -> float:
    """Make a cluster of them as operators do it, a replica for each master; seconds that it took."""
    command = ["redis-cli", "--cluster", "create", *(f"{ip}:6379" for ip in addresses)]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--cluster-replicas", "1", "--cluster-yes"], capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - began
    assert "All 16384 slots covered" in done.stdout, done.stdout[-1000:] + done.stderr
    return took
