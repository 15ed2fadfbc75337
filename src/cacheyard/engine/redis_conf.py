"""Turns the settings of a node into what a Redis server reads: configuration and ACL file.

The agent writes `file` and `acl` into the node's directory and sends `gate` through the server's
standard input (`redis-server redis.conf -`). The gate holds the secrets, so that no file has them,
and the port: the file alone says `port 0`, with which a server refuses to start. So a server whose
agent died before it had written down the server's pid ends by itself.
"""

import hashlib
import hmac
from pathlib import Path

import msgspec

from cacheyard.domain.nodes import AclUser, NodeSettings

INTERNAL_USER = "cacheyard"  # cacheyard itself; tenants cannot take the name
# Replication logs in with a user and a password of its own, which can do nothing else: tenants may read
# all parameters, `masterauth` too.
REPLICATION_USER = "cacheyard-replication"
RESERVED_USERS = frozenset({INTERNAL_USER, REPLICATION_USER})

# How often a server looks after its time-outs and expired keys. 100 idle servers of 7.0 cost 10.6 % of a
# core at Redis' own 10 and 1.5 % at 1, but at 1 a stop takes a second. Redis Cluster counts on 10.
HZ = "4"
HZ_CLUSTER = "10"

CONF = "redis.conf"
ACL = "users.acl"
LOG = "redis.log"
DUMP = "dump.rdb"

# Names that older servers do not know, by the first version that does.
_SINCE: dict[str, tuple[int, int, int]] = {
    "bind-source-addr": (7, 0, 0),
    "shutdown-timeout": (7, 0, 0),
    "enable-protected-configs": (7, 0, 0),
    "enable-debug-command": (7, 0, 0),
    "enable-module-command": (7, 0, 0),
    "latency-tracking": (7, 0, 0),
    "busy-reply-threshold": (7, 0, 0),
    "maxmemory-clients": (7, 0, 0),
    "cluster-allow-pubsubshard-when-down": (7, 0, 0),
    "cluster-announce-hostname": (7, 0, 0),
}
_OLD_NAMES = {"busy-reply-threshold": "lua-time-limit"}  # new name to the one before 7.0
_MANY_WORDS = {
    "bind",
    "save",
    "client-output-buffer-limit",
    "oom-score-adj-values",
}  # values not quoted whole


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is started with."""

    file: str  # redis.conf
    gate: str  # standard input: the port and the secrets
    acl: str  # users.acl


def render(
    settings: NodeSettings,
    secret: str,
    server: tuple[int, int, int],
    directory: Path,
    *,
    from_dump: bool = False,
) -> Rendered:
    """For a server of version `server` in `directory`. `from_dump`: load dump.rdb, even if AOF is wanted."""
    fixed = {
        "port": "0",  # the gate says the real one
        "daemonize": "no",
        "dir": str(directory),
        "logfile": LOG,
        "dbfilename": DUMP,
        "aclfile": str(directory / ACL),
        "databases": str(settings.databases),
        "always-show-logo": "no",
        "crash-memcheck-enabled": "no",  # it keeps a crashed server from ending, and so its successor waiting
        "enable-protected-configs": "no",
        "enable-debug-command": "no",
        "enable-module-command": "no",
    }
    changeable = live(settings, server)
    if from_dump:
        changeable["appendonly"] = "no"
    lines = [_line(name, value) for name, value in for_version(fixed, server).items()]
    for name, value in changeable.items():
        lines += _lines(name, value)
    lines += [_line("rename-command", f"{old} {_word(new)}") for old, new in settings.rename_commands.items()]
    if settings.replica_of is not None:
        lines.append(f"replicaof {settings.replica_of.ip} {settings.replica_of.port}")
    gate = [*(_line(name, value) for name, value in replication(secret).items()), f"port {settings.port}"]
    return Rendered(file=_text(lines), gate=_text(gate), acl=_text(acl_lines(settings.users, secret)))


def live(settings: NodeSettings, server: tuple[int, int, int]) -> dict[str, str]:
    """What `CONFIG SET` can change in a running server, with its wanted value. No secrets."""
    clustered = settings.parameters.get("cluster-enabled") == "yes"
    chosen = {
        "bind": " ".join(settings.bind),
        "protected-mode": "no",
        "bind-source-addr": settings.bind[0],
        "replica-announce-ip": settings.bind[0],
        "replica-announce-port": str(settings.port),
        "maxmemory": str(settings.maxmemory),
        "maxclients": str(settings.maxclients),
        "appendonly": "yes" if settings.persistent else "no",
        "appendfsync": "everysec",
        "save": "",
        "stop-writes-on-bgsave-error": "no",  # a failed backup must not stop a cache from taking writes
        "rdb-del-sync-files": "yes",
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": "0",
        "repl-ping-replica-period": "1",  # CLUSTER SLOTS leaves out a replica until its offset moves
        "shutdown-timeout": "5",
        "tcp-keepalive": "60",
        "loglevel": "notice",
        "hz": HZ_CLUSTER if clustered else HZ,
        "dynamic-hz": "yes",
    }
    chosen.update(settings.parameters)
    chosen["appendonly"] = "yes" if append_only(settings) else "no"
    return for_version(chosen, server)


def append_only(settings: NodeSettings) -> bool:
    """Whether the server keeps an append-only file: the parameter, if there is one, wins."""
    return settings.parameters.get("appendonly", "yes" if settings.persistent else "no") == "yes"


def for_version(chosen: dict[str, str], server: tuple[int, int, int]) -> dict[str, str]:
    """`chosen` without the names that `server` does not know, with others spelled as it knows them."""
    known = {}
    for name, value in chosen.items():
        spelled = name
        if server < (7, 0, 0):
            spelled = _OLD_NAMES.get(name, name.replace("-listpack-", "-ziplist-"))
        if server >= _SINCE.get(spelled, (0, 0, 0)):
            known[spelled] = value
    return known


def acl_lines(users: tuple[AclUser, ...], secret: str) -> list[str]:
    """The ACL file, a user a line. Without a `default` among `users` nobody gets in unnamed."""
    internal = AclUser(name=INTERNAL_USER, password_sha256=digest(secret), rules=("~*", "&*", "+@all"))
    replicas = AclUser(
        name=REPLICATION_USER,
        password_sha256=digest(replication(secret)["masterauth"]),
        rules=("+psync", "+replconf", "+ping"),
    )
    everyone = {user.name: user for user in (*users, internal, replicas)}
    lines = [f"user {user.name} {' '.join(acl_rules(user))}" for user in everyone.values()]
    if "default" not in everyone:
        lines.insert(0, "user default reset")
    return lines


def acl_rules(user: AclUser) -> tuple[str, ...]:
    """The words of `ACL SETUSER` after the name: the whole user, whatever it was before."""
    password = "nopass" if user.password_sha256 is None else f"#{user.password_sha256}"
    return ("reset", "on", password, *user.rules)


def replication(secret: str) -> dict[str, str]:
    """How a replica logs in at its master. The password tells nothing of the secret it is made from."""
    password = hmac.new(secret.encode(), b"replication", hashlib.sha256).hexdigest()
    return {"masteruser": REPLICATION_USER, "masterauth": password}


def digest(secret: str) -> str:
    """How ACLs keep a password."""
    return hashlib.sha256(secret.encode()).hexdigest()


def renames_in(file: str) -> dict[str, str]:
    """The renamed commands of a redis.conf that `render` made."""
    words = (line.split() for line in file.splitlines() if line.startswith("rename-command "))
    return {old: new.strip('"') for _, old, new in words}


def _lines(name: str, value: str) -> list[str]:
    if name == "client-output-buffer-limit":  # 6.2 takes one class of clients a line
        words = value.split()
        return [_line(name, " ".join(words[i : i + 4])) for i in range(0, len(words), 4)]
    return [_line(name, value)]


def _line(name: str, value: str) -> str:
    if any(character in name + value for character in "\r\n\0"):
        raise ValueError(f"{name} has a line break in its value")
    if value and (name in _MANY_WORDS or name == "rename-command"):
        return f"{name} {value}"
    return f"{name} {_word(value)}"


def _word(value: str) -> str:
    """One argument of a configuration line, quoted if it needs it."""
    if value and all(character.isalnum() or character in "-_./:@" for character in value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
