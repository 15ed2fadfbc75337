"""Whether an instance is as it should be, by all who know: the API, the rows, the servers themselves.

Tests of faults end with it. It asks nothing that a task would repair by being asked.
"""

import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import redis
from chaos.service import PASSWORD, Refused, Service, alive, connect, nothing_left

from cacheyard.domain.instances import CLUSTERED_MODES, PROXIED_MODES
from cacheyard.store import proxies
from cacheyard.store.db import Store

WHOLE_SECONDS = 20.0  # two on an idle machine
NOT_BUILT = 501


def await_whole(
    service: Service, instance_id: str, *, seconds: float = WHOLE_SECONDS, password: str | None = PASSWORD
) -> dict[str, Any]:
    """Wait until nothing is wrong with an instance and nothing is left over; the instance as shown then.

    Nobody may write meanwhile: replicas must have exactly what their masters have.
    """

    def faults() -> list[str]:
        try:
            return [*_faults(service, instance_id, password), *service.leftovers()]
        except (redis.RedisError, OSError) as error:
            return [f"{type(error).__name__}: {error}"]

    try:
        nothing_left(faults, seconds=seconds, what=f"{instance_id} to be whole")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{service.story(instance_id)}\n{service.log()}") from None
    shown = service.show(instance_id)
    assert shown is not None
    return shown


def _faults(service: Service, instance_id: str, password: str | None) -> Iterator[str]:
    shown = service.show(instance_id)
    if shown is None:
        yield "it is gone"
        return
    if shown["status"] != "RUNNING" or shown["task"]:
        yield f"it is {shown['status']}, held by {shown['task']}"
        return
    nodes = service.nodes(instance_id)
    yield from _unlike_rows(service, instance_id, nodes)
    shards: dict[str, list[sqlite3.Row]] = {}
    for node in nodes:
        shards.setdefault(node["shard_id"], []).append(node)
        if node["seen_state"] != "Active" or node["seen_error"]:
            yield f"{node['ip']} is {node['seen_state']}: {node['seen_error']}"
        if (node["seen_generation"], node["seen_incarnation"]) != (node["generation"], node["incarnation"]):
            yield f"{node['ip']} is not yet as wanted"
    for shard in shards.values():
        yield from _shard_faults(shard, shown["port"], password)
    if shown["cache_mode"] == "ha":
        yield from _address_faults(shown, nodes, password)
    if shown["cache_mode"] in PROXIED_MODES:
        yield from _proxy_faults(service, shown, nodes, password)
    if shown["cache_mode"] in CLUSTERED_MODES:
        for node in nodes:
            yield from _cluster_faults(node, nodes, shown["port"], password)
    for row in service.rows("SELECT * FROM shards WHERE instance_id = ?", instance_id):
        if shown["cache_mode"] != "single" and not (row["watched"] and row["seen_watch"] == row["watch"]):
            yield f"{row['name']} is not watched: {row['watch']}, seen {row['seen_watch']}"


def _unlike_rows(service: Service, instance_id: str, nodes: list[sqlite3.Row]) -> Iterator[str]:
    """What the API says of shards and roles must be what the rows say."""
    try:
        groups = service.call("GET", f"/instance/{instance_id}/groups")["group_list"]
    except Refused as refused:
        if refused.status != NOT_BUILT:
            raise
        return
    told = {
        (group["group_id"], node["node_id"], node["replication_ip"], node["replication_role"], node["status"])
        for group in groups
        for node in group["replication_list"]
    }
    words = {"master": "master", "replica": "slave"}
    wanted = {(row["shard_id"], row["id"], row["ip"], words[row["role"]], "Active") for row in nodes}
    if told != wanted:
        yield f"the API tells {sorted(told - wanted)} and not {sorted(wanted - told)}"


def _shard_faults(shard: list[sqlite3.Row], port: int, password: str | None) -> Iterator[str]:
    """One master, which its server says too; all others follow it and have what it has."""
    masters = [node for node in shard if node["role"] == "master"]
    if len(masters) != 1:
        yield f"{len(masters)} masters in shard {shard[0]['shard_id']}"
        return
    (master,) = masters
    with closing(connect(master["ip"], port, password)) as link:
        role = link.role()
        if role[0] != "master":
            yield f"{master['ip']} is {role[0]}, not master"
            return
        offset, keys = int(role[1]), link.dbsize()
        following = {ip for ip, _, _ in role[2]}
    for node in shard:
        if node is master:
            continue
        with closing(connect(node["ip"], port, password)) as link:
            role = link.role()
            if role[0] != "slave":
                yield f"{node['ip']} is {role[0]}, not a replica"
            elif (role[1], role[3]) != (master["ip"], "connected") or node["ip"] not in following:
                yield f"{node['ip']} is {role[3]} to {role[1]}, its master is {master['ip']}"
            elif int(role[4]) < offset:
                yield f"{node['ip']} is at {role[4]}, its master at {offset}"
            elif (there := link.dbsize()) != keys:
                yield f"{node['ip']} has {there} keys, its master {keys}"


def _address_faults(shown: dict[str, Any], nodes: list[sqlite3.Row], password: str | None) -> Iterator[str]:
    """The address that clients use is the master's."""
    master = next(node for node in nodes if node["role"] == "master")
    with closing(connect(shown["ip"], shown["port"], password)) as link:
        pid = int(link.info("server")["process_id"])
    if pid != master["seen_pid"]:
        yield f"{shown['ip']} is process {pid}, not the master's {master['seen_pid']}"


def _proxy_faults(
    service: Service, shown: dict[str, Any], nodes: list[sqlite3.Row], password: str | None
) -> Iterator[str]:
    """Each proxy is configured as the rows want by now and knows who serves; behind the address can be
    written."""
    store = Store(service.data / "cacheyard.sqlite")
    try:
        with store.read() as tx:
            yield from proxies.unsettled(tx, shown["instance_id"])
    finally:
        store.close()
    wanted = {(f"{row['ip']}:{row['port']}", row["role"], True) for row in nodes}
    for proxy in service.proxies(shown["instance_id"]):
        if proxy["seen_error"] or not alive(proxy["seen_pid"]):
            yield f"proxy {proxy['number']}, {proxy['seen_pid']}, is no more: {proxy['seen_error']}"
            continue
        said = proxy_state(service, proxy)
        seen = {(one["server"], one["role"], one["healthy"]) for one in said["servers"]}
        told = said["ready"], said["pid"], said["config_digest"]
        if told != (True, proxy["seen_pid"], proxy["seen_digest"]):
            yield f"proxy {proxy['number']}, {proxy['seen_pid']}, says {told}"
        if wanted - seen or any(role == "master" for _, role, _ in seen - wanted):
            yield f"proxy {proxy['number']} knows {sorted(seen)} and not {sorted(wanted - seen)}"
    with closing(connect(shown["ip"], shown["port"], password)) as link:
        link.delete("nobody's key")


def proxy_state(service: Service, proxy: sqlite3.Row) -> dict[str, Any]:
    """What a proxy says of itself; `OSError` when it says nothing."""
    place = os.open(service.data / "proxies" / proxy["id"], os.O_PATH)
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(5)
        try:
            asked.connect(f"/proc/self/fd/{place}/control")  # its own path may be too long for a socket
        finally:
            os.close(place)
        asked.sendall(b"state\n")
        told: dict[str, Any] = json.load(asked.makefile("rb"))
    return told


def _cluster_faults(
    node: sqlite3.Row, nodes: list[sqlite3.Row], port: int, password: str | None
) -> Iterator[str]:
    """The node sees a whole cluster of the nodes in the rows, each slot served and none half moved."""
    with closing(connect(node["ip"], port, password)) as link:
        ask: Any = link.execute_command
        info = dict(line.split(":", 1) for line in ask("CLUSTER", "INFO").split())
        text = ask("CLUSTER", "NODES")
    if (info["cluster_state"], info["cluster_slots_ok"]) != ("ok", "16384"):
        yield f"{node['ip']} says {info['cluster_state']}, {info['cluster_slots_ok']} slots"
    wanted = {row["engine_id"]: row for row in nodes}
    masters = {row["shard_id"]: row["engine_id"] for row in nodes if row["role"] == "master"}
    seen = {words[0]: words for line in text.splitlines() if (words := line.split(" "))}
    if seen.keys() != wanted.keys():
        yield f"{node['ip']} knows {len(seen)} nodes, {len(seen.keys() & wanted.keys())} of {len(wanted)}"
        return
    for engine_id, (_, at, flags, master_id, _, _, _, state, *slots) in seen.items():
        row = wanted[engine_id]
        is_master = row["role"] == "master"
        if set(flags.split(",")) - {"myself"} != {"master" if is_master else "slave"}:
            yield f"{node['ip']} says that {at} is {flags}, not {row['role']}"
        if not at.startswith(f"{row['ip']}:{row['port']}@"):
            yield f"{node['ip']} says that {row['ip']} is at {at}"
        if state != "connected":
            yield f"{node['ip']} is not connected to {at}"
        if master_id != ("-" if is_master else masters[row["shard_id"]]):
            yield f"{node['ip']} says that {at} follows {master_id}"
        if is_master != bool(slots):
            yield f"{node['ip']} says that {at}, a {row['role']}, has slots {slots}"
        yield from (f"{node['ip']} has an open slot {slot}" for slot in slots if slot.startswith("["))
