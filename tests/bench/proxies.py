"""What the native proxy costs: redis-benchmark straight at a server and through the proxy, in turn.

The same for twemproxy (Debian's `nutcracker`), if it is there, over servers of its own. Each process is in
a session of its own, as service managers have them: see `bench.bare`. On two cores benchmark, proxy and
server compete, so single runs mean little: medians of pairs are told.

`python -m bench.proxies` measures this alone.
"""

import argparse
import csv
import shutil
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from support.service import DISK
from support.waiting import until

from bench.bare import bare_nodes
from cacheyard.domain.slots import SLOTS
from cacheyard.engine import find

NET = "127.206"
DIRECT = f"{NET}.0.2"
PIPELINES = (1, 16)
REQUESTS = {1: 60_000, 16: 480_000}
PATIENCE = 20.0


class Rate(msgspec.Struct, frozen=True):
    """What redis-benchmark says of one command."""

    per_second: float
    p99_ms: float


def proxies(rounds: int) -> dict[str, str]:
    """Ratios to a direct server, for each way of being in between."""
    found: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(bare_nodes([DIRECT], []))
        for name, address in stack.enter_context(_ways()).items():
            found |= {f"{name}, {what}": told for what, told in _compared(address, rounds).items()}
    return found


@contextmanager
def _ways() -> Iterator[dict[str, str]]:
    """The address of each proxy, by what it is and what is behind it."""
    program = find.proxy()
    assert program is not None, "the native proxy is not installed"
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cacheyard-bench-", dir=DISK)))
        ways: dict[str, str] = {}
        for shards in (1, 3):
            behind = [f"{NET}.{shards}.{number + 2}" for number in range(shards)]
            stack.enter_context(bare_nodes(behind, ["--cluster-enabled", "yes"]))
            _form(behind)
            ways[f"cluster of {shards}"] = stack.enter_context(_proxy(place, program, "cluster", behind))
        replica = f"{NET}.4.2"
        stack.enter_context(bare_nodes([replica], ["--replicaof", f"{DIRECT} 6379"]))
        ways["split"] = stack.enter_context(_proxy(place, program, "split", [DIRECT, replica]))
        if (nutcracker := shutil.which("nutcracker")) is not None:
            for shards in (1, 3):
                behind = [f"{NET}.{5 + shards}.{number + 2}" for number in range(shards)]
                stack.enter_context(bare_nodes(behind, []))
                ways[f"twemproxy over {shards}"] = stack.enter_context(_nutcracker(place, nutcracker, behind))
        yield ways


@contextmanager
def _proxy(place: Path, program: str, mode: str, behind: list[str]) -> Iterator[str]:
    address = f"{NET}.9.{len(behind) + (100 if mode == 'split' else 0)}"
    servers = ", ".join(f'"{ip}:6379"' for ip in behind)
    config = place / f"{address}.toml"
    config.write_text(f'mode = "{mode}"\nlisten = ["{address}:6379"]\nservers = [{servers}]\n')
    with _running([program, str(config)], address):
        yield address


@contextmanager
def _nutcracker(place: Path, program: str, behind: list[str]) -> Iterator[str]:
    address = f"{NET}.10.{len(behind)}"
    servers = "".join(f"   - {ip}:6379:1\n" for ip in behind)
    config = place / f"{address}.yml"
    config.write_text(
        f"bench:\n  listen: {address}:6379\n  hash: fnv1a_64\n  distribution: ketama\n"
        f"  redis: true\n  servers:\n{servers}"
    )
    with _running([program, "-c", str(config), "-s", str(22_220 + len(behind)), "-a", address], address):
        yield address


@contextmanager
def _running(command: list[str], address: str) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until(lambda: _serves(address), seconds=PATIENCE, what=f"{command[0]} to answer", pause=0.01)
        yield
    finally:
        process.terminate()
        process.wait()


def _serves(address: str) -> bool:
    """Whether a key can be read there; twemproxy hangs up on PING."""
    with socket.create_connection((address, 6379), timeout=1) as connection:
        connection.sendall(b"*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n")
        return connection.recv(16) in (b"$-1\r\n", b"_\r\n")


def _form(masters: list[str]) -> None:
    """Make a cluster of them without replicas; redis-cli makes none of less than three."""
    for number, ip in enumerate(masters):
        first, last = (SLOTS * share // len(masters) for share in (number, number + 1))
        _cli(ip, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        _cli(ip, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last - 1))
        for other in masters:
            _cli(ip, "CLUSTER", "MEET", other, "6379")
    for ip in masters:
        until(
            lambda ip=ip: "cluster_slots_ok:16384" in _cli(ip, "CLUSTER", "INFO"),  # type: ignore[misc]
            seconds=PATIENCE,
            what="the cluster to be whole",
        )


def _cli(ip: str, *words: str) -> str:
    return subprocess.run(["redis-cli", "-h", ip, *words], capture_output=True, text=True, check=True).stdout


def _compared(address: str, rounds: int) -> dict[str, str]:
    """Each command's rate as a share of the direct one: the median, and the lowest and highest pair; and so
    for the 99th percentile of its time."""
    rates: dict[str, list[float]] = {}
    tails: dict[str, list[float]] = {}
    for turn in range(rounds):
        for pipeline in PIPELINES:
            order = (address, DIRECT) if turn % 2 else (DIRECT, address)
            said = {ip: _benchmark(ip, pipeline) for ip in order}
            for command, direct in said[DIRECT].items():
                through, name = said[address][command], f"{command} P{pipeline}"
                rates.setdefault(name, []).append(through.per_second / direct.per_second)
                tails.setdefault(name, []).append(through.p99_ms / direct.p99_ms)
    return {name: f"{_spread(rates[name])}, p99 {_spread(tails[name])}" for name in rates}


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def _benchmark(ip: str, pipeline: int) -> Mapping[str, Rate]:
    command = ["redis-benchmark", "-h", ip, "-t", "set,get", "-c", "50", "-P", str(pipeline), "--csv"]
    command += ["-n", str(REQUESTS[pipeline]), "-r", "100000", "-d", "32"]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=True
    ).stdout.splitlines()
    lines = out[next(number for number, line in enumerate(out) if line.startswith('"test"')) :]
    return {
        row["test"]: Rate(float(row["rps"]), float(row["p99_latency_ms"])) for row in csv.DictReader(lines)
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    for name, told in proxies(given.rounds).items():
        print(f"{name:<28} {told}", flush=True)


if __name__ == "__main__":
    main()
