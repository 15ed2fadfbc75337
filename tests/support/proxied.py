"""Instances behind proxies in tests: what the API says of their nodes, and of what is done to them."""

from pathlib import Path
from typing import Any

import pytest
from support.caches import Cache
from support.waiting import until

from cacheyard.engine import find

PROXY: dict[str, Any] = {"spec_code": "redis.proxy.xu1.large.4", "capacity": 4, "engine_version": "6.0"}
SPLIT: dict[str, Any] = {"spec_code": "redis.ha.xu1.large.p3.1", "capacity": 1, "engine_version": "6.0"}
FORMS = {"proxy": PROXY, "ha_rw_split": SPLIT}
needs_program = pytest.mark.skipif(find.proxy() is None, reason="the native proxy is not built here")


def groups(cache: Cache) -> list[dict[str, Any]]:
    """The shards as the API shows them."""
    answer = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups")
    found: list[dict[str, Any]] = answer.json()["group_list"]
    return found


def of_role(group: dict[str, Any], role: str) -> list[dict[str, Any]]:
    """The nodes of a shard that are `master` or `slave`."""
    return [one for one in group["replication_list"] if one["replication_role"] == role]


def servers(cache: Cache) -> list[dict[str, Any]]:
    """The nodes that hold data, as 5.3.5 shows them."""
    return [one for one in logical_nodes(cache) if one["node_role"] == "redis-server"]


def proxies(cache: Cache) -> list[dict[str, Any]]:
    """The others, by their numbers."""
    found = [one for one in logical_nodes(cache) if one["node_role"] == "redis-proxy"]
    return sorted(found, key=lambda one: str(one["name"]))


def logical_nodes(cache: Cache) -> list[dict[str, Any]]:
    """All nodes as 5.3.5 shows them."""
    found: list[dict[str, Any]] = cache.http("GET", "/logical-nodes").json()["nodes"]
    return found


def job(cache: Cache, job_id: str) -> str:
    """How a job ended."""

    def ended() -> str | None:
        found = cache.service.http("GET", f"/v2/{{p}}/jobs/{job_id}").json()
        return str(found["status"]) if found["status"] in ("SUCCESS", "FAIL") else None

    return until(ended, seconds=120, what=f"job {job_id} to end", pause=0.02)


def proxy_files(cache: Cache) -> list[tuple[int, str]]:
    """How many proxies there are, and the configuration of each."""
    mine = [(directory / "config.toml").read_text() for directory in proxy_directories(cache)]
    return [(len(mine), text) for text in mine]


def proxy_directories(cache: Cache) -> list[Path]:
    """Of the instance's proxies."""
    listens = f'listen = ["{cache.show()["ip"]}:'
    files = (cache.service.data / "proxies").glob("*/config.toml")
    return [file.parent for file in files if listens in file.read_text()]
