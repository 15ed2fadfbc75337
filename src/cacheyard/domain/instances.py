"""An instance and the rules for what it may be called and when it may be disturbed. No I/O."""

import re
from typing import Any

import msgspec

from cacheyard.domain.commands import denied_rules
from cacheyard.domain.engines import version_of
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.nodes import AclUser, Address, NodeSettings, Role
from cacheyard.domain.statuses import Status

PORT = 6379
MAINTENANCE = ("02:00:00", "06:00:00")  # what clients expect when they give none
BATCH = 50  # instance ids a request may name
BATCH_NAME = 56  # characters of a name that gets -000, -001 … behind it
TAGS = 20  # tags an instance may have
FILLED = 0.7  # how full a new size may be from the start
LOCK_AFTER = 5  # wrong passwords
LOCK_MINUTES = 5
RENAMEABLE = frozenset(
    (
        "command",
        "keys",
        "flushdb",
        "flushall",
        "hgetall",
        "scan",
        "hscan",
        "sscan",
        "zscan",
        "dbsize",
        "dbstats",
    )
)
_NEW_COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9_-]{3,63}")
_HOUR = re.compile(r"([01]\d|2[0-3]):00(:00)?")


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `instances`; see store.tables for what the columns mean."""

    id: str
    project_id: str
    name: str
    description: str
    status: Status
    task_id: str | None
    engine: str
    engine_version: str
    internal_version: str
    cache_mode: str
    spec_code: str
    capacity_mb: int
    ip: str
    port: int
    vpc_id: str
    subnet_id: str
    security_group_id: str | None
    az_codes: list[str]
    maintain_begin: str
    maintain_end: str
    backup_policy: dict[str, Any] | None
    rename_commands: dict[str, str]
    template_id: str | None
    enterprise_project_id: str
    no_password: bool
    password_hash: str | None
    password_sha256: str | None
    wrong_passwords: int
    locked_until: int | None
    internal_secret: str
    user_id: str
    user_name: str
    created_at: int
    launched_at: int | None
    updated_at: int


class Tag(msgspec.Struct, frozen=True):
    """A label of an instance."""

    key: str
    value: str


def maintenance_fault(begin: str, end: str) -> str | None:
    """Why a window cannot be had; None: it can. It is an hour long (the newer form) or four (the older)."""
    if not _HOUR.fullmatch(begin) or not _HOUR.fullmatch(end):
        return "the window must begin and end on the hour, HH:00:00"
    length = (int(end[:2]) - int(begin[:2])) % 24
    if length == 1 or (length == 4 and int(begin[:2]) % 4 == 2):
        return None
    return "the window must be one hour long, or one of the four-hour windows from 02, 06, 10, 14, 18 and 22"


def rename_fault(commands: dict[str, str]) -> str | None:
    """Why commands cannot be renamed so; None: they can."""
    for command, new in commands.items():
        if command not in RENAMEABLE:
            return f"{command} cannot be renamed"
        if not _NEW_COMMAND.fullmatch(new):
            return f"the new name of {command} must have 4-64 letters, digits, _ or -, a letter first"
    taken = [new.lower() for new in commands.values()]
    if len(set(taken)) < len(taken):
        return "two commands cannot have the same new name"
    return None


def tenants(instance: Instance) -> tuple[AclUser, ...]:
    """The tenant's users: for now `default`, who may do all that the service does not forbid."""
    denied = denied_rules(instance.cache_mode, instance.engine_version, version_of(instance.internal_version))
    rules = ("~*", "&*", "+@all", *denied)
    return (AclUser(name="default", password_sha256=instance.password_sha256, rules=rules),)


def node_settings(instance: Instance, flavor: Flavor, *, role: Role, ip: str, master_ip: str) -> NodeSettings:
    """What a node of a single or master/standby instance is configured with.

    The master alone binds the address that clients use; a single node's own address is that address.
    """
    floating = (instance.ip,) if role is Role.MASTER and instance.ip != ip else ()
    return NodeSettings(
        bind=(ip, *floating),
        port=instance.port,
        maxmemory=flavor.shard_mb << 20,
        maxclients=flavor.connections,
        databases=flavor.databases,
        persistent=flavor.cache_mode != "single",
        parameters=DEFAULT_PARAMETERS,
        rename_commands=instance.rename_commands,
        replica_of=Address(master_ip, instance.port) if role is Role.REPLICA else None,
        users=tenants(instance),
        internal_secret=instance.internal_secret,
    )


# The default template: where the service differs from a bare server.
DEFAULT_PARAMETERS = {
    "maxmemory-policy": "volatile-lru",
    "timeout": "0",
    "notify-keyspace-events": "Ex",
    "repl-backlog-size": "1048576",
    "repl-backlog-ttl": "3600",
    "slowlog-log-slower-than": "10000",
    "slowlog-max-len": "128",
    "latency-monitor-threshold": "0",
    "lua-time-limit": "5000",
}
