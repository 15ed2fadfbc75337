"""How long a change of parameters takes."""

import statistics
import time
from typing import Any

import redis

from bench.bare import bare_nodes, options_like
from bench.yard import CLUSTER, Yard, median_ratio, ms, ready


def parameter_changes(yard: Yard, rounds: int) -> dict[str, Any]:
    """A cluster of three masters and three replicas: the request that waits for all of them, against CONFIG
    SET by hand on six servers, one after the other, by new connections; in turn."""
    instance_id = yard.create("parameters", CLUSTER)[0]
    options = options_like(yard, ready(yard, instance_id)["ip"].split(",")[0])
    addresses = [f"127.202.1.{number + 2}" for number in range(6)]
    ours, theirs = [], []
    with bare_nodes(addresses, options):
        for turn in range(rounds):
            value = str(100 + turn)
            asked = {"param_id": "1", "param_name": "timeout", "param_value": value}
            began = time.perf_counter()
            answer = yard.http.put(
                f"{yard.project}/instances/{instance_id}/configs", json={"redis_config": [asked]}
            )
            ours.append(time.perf_counter() - began)
            answer.raise_for_status()
            began = time.perf_counter()
            for address in addresses:
                with redis.Redis(host=address) as link:
                    link.config_set("timeout", value)
            theirs.append(time.perf_counter() - began)
    yard.delete_all()
    return {
        "parameter of a cluster 3x2, PUT to answer, p50 ms": ms(statistics.median(ours)),
        "CONFIG SET on six servers by hand, p50 ms": ms(statistics.median(theirs)),
        "ours / by hand": median_ratio(ours, theirs),
    }
