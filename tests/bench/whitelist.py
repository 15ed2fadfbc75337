"""What a whitelist costs: the same instance with one of twenty ranges in force, and with none, in turn."""

import statistics
import time
from typing import Any

from bench.throughput import benchmark
from bench.yard import Yard, ms, ready

RANGES = ["127.0.0.1", *(f"10.{number}.0.0/16" for number in range(19))]


def whitelists(yard: Yard, rounds: int) -> dict[str, Any]:
    """Requests per second, and how long a request takes that sets a whitelist, which is in force then."""
    instance_id = yard.create("whitelist")[0]
    shown = ready(yard, instance_id)
    path = f"{yard.project}/instance/{instance_id}/whitelist"
    ratios: dict[str, list[float]] = {}
    took: list[float] = []

    def switch(on: bool) -> None:
        group = {"group_name": "bench", "ip_list": RANGES}
        began = time.perf_counter()
        yard.http.put(path, json={"enable_whitelist": on, "whitelist": [group]}).raise_for_status()
        took.append(time.perf_counter() - began)

    for turn in range(rounds):
        for pipeline in (1, 16):
            rates: dict[bool, dict[str, float]] = {}
            for on in (True, False) if turn % 2 else (False, True):
                switch(on)
                rates[on] = benchmark(shown["ip"], pipeline)
            for command, rate in rates[True].items():
                ratios.setdefault(f"{command} P{pipeline}", []).append(rate / rates[False][command])
    yard.delete_all()
    found: dict[str, Any] = {
        f"whitelist of 20, {name}, ratio (aim 0.97)": round(statistics.median(rates), 3)
        for name, rates in ratios.items()
    }
    return found | {"whitelist set and in force, median ms": ms(statistics.median(took))}
