"""How long cacheyard itself takes to start, and what it needs when nothing happens."""

import statistics
import time
from typing import Any

import httpx
from support.service import Service

from bench.yard import Yard, memory_kb


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
