"""Many instances at once, and how long it takes to list them."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.waiting import until

from bench.yard import Yard, memory_kb, memory_of, ms, quantile


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
