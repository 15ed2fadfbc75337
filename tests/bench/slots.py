"""`python -m bench.slots`: keys per second of our mover of slots against `redis-cli --cluster reshard`.

Both move the same slots with the same data from three shards to a fourth, in turn, in the same run; the
clusters are bare: no service, no clients.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from support.bare_cluster import PORT, BareCluster, bare_cluster
from support.service import DISK
from support.yard import SECRET

from cacheyard.domain.slots import Move
from cacheyard.engine.slots import Mover

REDIS = shutil.which("redis-server") or "redis-server"


def moving(keys: int, size: int, rounds: int, replicas: int) -> dict[str, Any]:
    """A quarter of the slots to a new shard, by redis-cli and by us."""
    with (
        tempfile.TemporaryDirectory(prefix="cacheyard-bench-", dir=DISK) as directory,
        bare_cluster(Path(directory), REDIS, shards=3, empty=1, replicas=replicas) as cluster,
    ):
        fill(cluster, keys, size)
        rates: dict[str, list[float]] = {"redis-cli": [], "ours": [], "ours, back": []}
        for _ in range(rounds):
            before = owners(cluster)
            rates["redis-cli"].append(rate(cluster, partial(reshard, cluster, 4096)))
            after = owners(cluster)
            same = [
                (slot, before[slot], after[slot]) for slot in sorted(after) if after[slot] != before[slot]
            ]
            rates["ours, back"].append(rate(cluster, partial(settle, cluster, cluster.old)))
            there = owners(cluster)
            again = [(slot, there[slot], target) for slot, _, target in same]
            again.sort(key=lambda move: move[1])
            rates["ours"].append(rate(cluster, partial(move, cluster, again)))
            settle(cluster, cluster.old)
    found = {f"{name}, keys/s": round(statistics.median(these)) for name, these in rates.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["redis-cli"], strict=True)]
    return found | {"ours / redis-cli (aim 2)": round(statistics.median(ratios), 2)}


def fill(cluster: BareCluster, keys: int, size: int) -> None:
    """Keys in all slots alike."""
    client, value = cluster.everywhere(), b"x" * size
    for start in range(0, keys, 10_000):
        pipeline = client.pipeline()
        for number in range(start, min(keys, start + 10_000)):
            pipeline.set(b"key:%d" % number, value)
        pipeline.execute()
    client.close()


def owners(cluster: BareCluster) -> dict[int, str]:
    """The shard that has each slot."""
    names = {node.engine_id: node.shard_id for node in cluster.nodes}
    seen = cluster.seen()[0]
    return {
        slot: names[member.engine_id]
        for member in seen
        for first, last in member.slots
        for slot in range(first, last + 1)
    }


def rate(cluster: BareCluster, act: Callable[[], None]) -> float:
    """Keys per second that `act` moves into the new shard or out of it."""
    new = cluster.master(cluster.new[0])
    before, began = int(new.dbsize()), time.perf_counter()
    act()
    took = time.perf_counter() - began
    return abs(int(new.dbsize()) - before) / took


def reshard(cluster: BareCluster, count: int) -> None:
    """As operators do it."""
    first = {name: shard[0] for name, shard in cluster.shards.items()}
    command = ["redis-cli", "--user", "cacheyard", "--pass", SECRET, "--no-auth-warning"]
    command += ["--cluster", "reshard", f"{cluster.nodes[0].ip}:{PORT}", "--cluster-yes"]
    command += ["--cluster-from", ",".join(str(first[name].engine_id) for name in cluster.old)]
    command += ["--cluster-to", str(first[cluster.new[0]].engine_id), "--cluster-slots", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr)


def settle(cluster: BareCluster, keep: Sequence[str]) -> None:
    """All slots to those shards, with all that a resize does before and after."""

    async def work() -> None:
        async with Mover(cluster.shards, cluster.link, SECRET) as mover:
            await mover.settle(keep)

    asyncio.run(work())


def move(cluster: BareCluster, moves: Sequence[Move]) -> None:
    """These moves, as part of a resize."""

    async def work() -> None:
        async with Mover(cluster.shards, cluster.link, SECRET) as mover:
            await mover.move(moves)

    asyncio.run(work())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=300_000)
    parser.add_argument("--bytes", type=int, default=100, help="of each value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=0, help="of each master")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = moving(given.keys, given.bytes, given.rounds, given.replicas)
    for name, value in figures.items():
        print(f"{name:<52} {value:>10}", file=sys.stderr if given.json else sys.stdout, flush=True)
    if given.json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
