"""What the three Sentinels cost while they watch fifty master/standby instances and nothing happens."""

import os
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import redis
from chaos.service import processes
from support.waiting import until

from bench.yard import HA, Yard, memory_of
from cacheyard.engine import sentinel
from cacheyard.settings import load
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.store.sentinels import sentinel_facts

COUNT = 50
SECONDS = 30.0


def idle_sentinels(yard: Yard, count: int = COUNT, seconds: float = SECONDS) -> dict[str, Any]:
    """Shares of a core and memory, of the Sentinels, the agent with the API, and a server."""
    for number in range(count):
        yard.create(f"watched-{number}", HA)

    def running() -> bool:
        return bool(yard.http.get(f"{yard.project}/instances/status").json()["running_count"] == count)

    until(running, seconds=240, what=f"{count} instances to run", pause=0.2)
    root = yard.service.data / "sentinels"
    sentinels = until(
        lambda: pids if len(pids := _pids_below(yard, root)) == 3 else None,
        seconds=10,
        what="three Sentinels",
    )
    servers = _pids_below(yard, yard.service.data / "nodes")
    until(partial(_met, yard, count), seconds=60, what="the Sentinels to have met all servers", pause=0.2)
    groups = {"Sentinels": sentinels, "servers": servers, "API and agent": [yard.service.pid]}
    before = {name: sum(map(cpu_seconds, pids)) for name, pids in groups.items()}
    began = time.monotonic()
    time.sleep(seconds)  # what they cost in so long is what is measured
    took = time.monotonic() - began
    shares = {name: (sum(map(cpu_seconds, pids)) - before[name]) / took for name, pids in groups.items()}
    memory = sum(map(memory_of, sentinels))
    yard.delete_all()
    return {
        f"{count} idle ha: three Sentinels, % of a core": round(100 * shares["Sentinels"], 2),
        f"{count} idle ha: three Sentinels' memory (PSS), MiB": round(memory / 1024, 1),
        f"{count} idle ha: {len(servers)} servers, % of a core": round(100 * shares["servers"], 2),
        f"{count} idle ha: API and agent, % of a core": round(100 * shares["API and agent"], 2),
    }


def _met(yard: Yard, count: int) -> bool:
    """Whether each Sentinel knows the others, and a replica of each master."""
    settings = load(yard.service.data)
    store = Store(settings.database)
    with closing(store):
        ip, secret = sentinel_facts(store, Sealer.of(settings.secret_key))
    for number in range(sentinel.COUNT):
        with redis.Redis(
            host=ip, port=sentinel.PORT + number, password=sentinel.password_of(secret), decode_responses=True
        ) as link:
            masters: Any = link.sentinel_masters()
        known = [(one["num-slaves"], one["num-other-sentinels"]) for one in masters.values()]
        if known != [(1, sentinel.COUNT - 1)] * count:
            return False
    return True


def _pids_below(yard: Yard, root: Path) -> list[int]:
    return [pid for pid, place in processes(yard.service.data).items() if place.parent == root]


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
