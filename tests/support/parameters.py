"""Parameters in tests: changed as clients do it, and looked for in every server."""

from typing import Any

from huaweicloudsdkdcs import v2 as dcs
from support.caches import Cache
from support.inside import inside
from support.proxied import job

IDS = {
    "timeout": "1", "maxmemory-policy": "2", "hash-max-ziplist-entries": "3", "hash-max-ziplist-value": "4",
    "set-max-intset-entries": "7", "zset-max-ziplist-entries": "8", "zset-max-ziplist-value": "9",
    "latency-monitor-threshold": "10", "maxclients": "11", "reserved-memory": "12",
    "notify-keyspace-events": "13", "active-expire-num": "14", "appendfsync": "15", "appendonly": "16",
    "lua-time-limit": "17", "proto-max-bulk-len": "18", "master-read-only": "19", "repl-backlog-size": "20",
    "repl-backlog-ttl": "21", "repl-timeout": "22", "client-output-buffer-slave-hard-limit": "23",
    "client-output-buffer-slave-soft-limit": "24", "client-output-buffer-limit-slave-soft-seconds": "25",
    "slowlog-log-slower-than": "26", "slowlog-max-len": "27", "auto-kill-timeout-lua-process": "28",
    "multi-db": "29", "dispatch-pubsub-to-fixed-shard": "30", "readonly-lua-route-to-slave-enabled": "31",
    "proxy-slowlog-log-slower-than": "32", "proxy-slowlog-max-len": "33",
    "support-dispatch-to-replica-list": "34",
}  # fmt: skip


def body(**chosen: str) -> Any:
    """The body of a change; `_` stands for `-`."""
    names = {name.replace("_", "-"): value for name, value in chosen.items()}
    return dcs.ModifyRedisConfigBody(
        redis_config=[
            dcs.RedisConfig(param_id=IDS.get(name, "999"), param_name=name, param_value=value)
            for name, value in names.items()
        ]
    )


def change(sdk: Any, cache: Cache, **chosen: str) -> None:
    """5.4.2, which answers when it has been done."""
    sdk.update_configurations(dcs.UpdateConfigurationsRequest(instance_id=cache.id, body=body(**chosen)))


def begin(sdk: Any, cache: Cache, **chosen: str) -> str | None:
    """5.4.3; the id of its job."""
    request = dcs.UpdateInstanceConfigRequest(instance_id=cache.id, body=body(**chosen))
    job_id: str | None = sdk.update_instance_config(request).job_id
    return job_id


def change_by_job(sdk: Any, cache: Cache, **chosen: str) -> str:
    """5.4.3, waited for; how its job ended."""
    job_id = begin(sdk, cache, **chosen)
    assert job_id is not None
    return job(cache, job_id)


def listed(sdk: Any, cache: Cache) -> Any:
    """5.4.1."""
    return sdk.list_configurations(dcs.ListConfigurationsRequest(instance_id=cache.id))


def values(sdk: Any, cache: Cache) -> dict[str, str]:
    """The values that 5.4.1 shows, by name."""
    return {one.param_name: one.param_value for one in listed(sdk, cache).redis_config}


def histories(sdk: Any, cache: Cache) -> Any:
    """5.4.4, newest first."""
    return sdk.list_config_histories(dcs.ListConfigHistoriesRequest(instance_id=cache.id)).histories


def detail(sdk: Any, cache: Cache, history_id: str) -> Any:
    """5.2.1: parameters by name, with what they had and got."""
    answer = cache.http("GET", f"/config-histories/{history_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def in_servers(cache: Cache, name: str) -> list[str]:
    """What each server says that the parameter is, behind proxies too."""
    with inside(cache) as known:
        return [known.call(node.ip, "CONFIG", "GET", name)[1] for node in known.nodes]


def all_have(cache: Cache, wanted: dict[str, str]) -> dict[str, list[str]]:
    """The parameters that some server has other than wanted; none: all is as it should be."""
    found = {name: in_servers(cache, name) for name in wanted}
    return {name: seen for name, seen in found.items() if set(seen) != {wanted[name]}}
