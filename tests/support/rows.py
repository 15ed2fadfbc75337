"""Rows of nodes that a test makes by itself: as small as can be, with what the test is about changed."""

from typing import Any

from cacheyard.domain.nodes import Node, NodeSettings, Role, Run


def settings(**changes: Any) -> NodeSettings:
    """Of a server whose data are on disk."""
    chosen: dict[str, Any] = {
        "bind": ("127.0.0.1",),
        "port": 6379,
        "maxmemory": 1,
        "maxclients": 1,
        "databases": 1,
        "persistent": True,
        "parameters": {},
        "rename_commands": {},
        "replica_of": None,
        "users": (),
        "internal_secret": "",
    }
    return NodeSettings(**(chosen | changes))


def node(number: int = 0, **changes: Any) -> Node:
    """A node of the one shard that there is, which is wanted up; number 0 is the master."""
    name = changes.get("id", f"n{number}")
    chosen: dict[str, Any] = {
        "id": name,
        "instance_id": "i",
        "shard_id": "s",
        "host_id": "local",
        "number": number,
        "logical_id": name,
        "replication_id": name,
        "kind": "redis",
        "role": Role.REPLICA if number else Role.MASTER,
        "az_code": "az1",
        "ip": f"127.0.0.{number}",
        "port": 6379,
        "binary": "redis-server",
        "run": Run.UP,
        "incarnation": 1,
        "keep_data": True,
        "generation": 1,
    }
    if "settings" not in changes:
        changes["settings"] = settings()
    return Node(**(chosen | changes))
