"""`make bench`: how long things take, as ratios to servers started by hand and measured in the same run.

Prints a table and, with `--json`, the same as JSON. Nothing here is a test: machines are noisy.
`--only` chooses parts. `python -m bench.failover` and `python -m bench.slots` measure more.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from support.service import Service

from bench.creation import clusters, creation
from bench.encrypted import encrypted_throughput
from bench.failover import kills
from bench.listing import listing
from bench.parameters import parameter_changes
from bench.proxied import proxied_creation, proxied_throughput
from bench.proxies import proxies
from bench.sentinels import idle_sentinels
from bench.starting import cold_start
from bench.throughput import cluster_throughput, throughput
from bench.whitelist import whitelists
from bench.yard import Yard

PARTS = (
    "start",
    "creation",
    "throughput",
    "listing",
    "clusters",
    "cluster-throughput",
    "failover",
    "sentinels",
    "proxied",
    "proxies",
    "whitelist",
    "parameters",
    "tls",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="instances of each type")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all else")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts, not all")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chosen = given.only or PARTS
    figures: dict[str, Any] = {}

    def tell(new: dict[str, Any]) -> None:
        figures.update(new)
        for name, value in new.items():
            print(f"{name:<58} {value:>10}", file=sys.stderr if given.json else sys.stdout, flush=True)

    if "start" in chosen:
        tell(cold_start(given.rounds))
    with Service(CACHEYARD_OVERCOMMIT="20") as service:
        yard = Yard(service)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "creation": lambda: creation(yard, given.runs),
            "throughput": lambda: throughput(yard, given.rounds),
            "listing": lambda: listing(yard, 300),
            "clusters": lambda: clusters(yard, given.rounds),
            "cluster-throughput": lambda: cluster_throughput(yard, given.rounds),
            "sentinels": lambda: idle_sentinels(yard),
            "parameters": lambda: parameter_changes(yard, given.rounds),
            "whitelist": lambda: whitelists(yard, given.rounds),
            "tls": lambda: encrypted_throughput(yard, given.rounds),
            "proxied": lambda: proxied_creation(yard, given.rounds) | proxied_throughput(yard, given.rounds),
        }
        for name, part in parts.items():
            if name in chosen:
                tell(part())
    if "failover" in chosen:
        tell(kills(given.rounds))
    if "proxies" in chosen:
        tell(proxies(given.rounds))
    if given.json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
