"""Tells the store what this machine is. Called when the agent starts."""

import os
from pathlib import Path

from cacheyard.clock import now_ms
from cacheyard.domain.engines import Engine
from cacheyard.domain.placement import Host
from cacheyard.store import hosts
from cacheyard.store.db import Store

LOCAL = "local"  # the only host of a yard on one machine
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


async def register(
    store: Store,
    engines: list[Engine],
    proxy: str | None,
    proxy_version: str | None,
    az_codes: tuple[str, ...],
    host_id: str = LOCAL,
    filter_fault: str | None = None,
    caps: bool = False,
) -> Host:
    """Write this machine's row, and return it."""
    host = Host(
        id=host_id,
        az_codes=az_codes,
        memory_mb=memory_mb(),
        cores=len(os.sched_getaffinity(0)),
        engines=tuple(engines),
        proxy=proxy,
        proxy_version=proxy_version,
        filter_fault=filter_fault,
        caps=caps,
        seen_at=now_ms(),
    )

    def write() -> None:
        with store.write() as tx:
            hosts.register(tx, host)

    await store.run(write)
    return host


def memory_mb(root: Path = Path("/")) -> int:
    """The machine's memory, or what its container may use of it."""
    limits = [_meminfo(root / "proc/meminfo")]
    for name in _CGROUP_LIMITS:
        path = root / name.lstrip("/")
        if path.exists() and (text := path.read_text().strip()).isdigit():  # "max": no limit
            limits.append(int(text))
    return min(limits) // 1_048_576


def _meminfo(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no MemTotal")
