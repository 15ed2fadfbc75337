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
from cacheyard.domain.parameters import HZ, HZ_CLUSTER
from cacheyard.engine import tls

INTERNAL_USER = "cacheyard"  # cacheyard itself; tenants cannot take the name
# Replication logs in with a user and a password of its own, which can do nothing else: tenants may read
# all parameters, `masterauth` too.
REPLICATION_USER = "cacheyard-replication"
# So do the Sentinels, which keep their password in a file.
SENTINEL_USER = "cacheyard-sentinel"
# And so do proxies, for what they ask themselves; a client's commands go by the client's own account.
PROXY_USER = "cacheyard-proxy"
RESERVED_USERS = frozenset({INTERNAL_USER, REPLICATION_USER, SENTINEL_USER, PROXY_USER})

# How long a master may be silent until Sentinel or the cluster puts another in its place. A dead or stopped
# process is known sooner, by the agent; this is for a command that takes too long, and while there is none.
SILENT_MS = 5000

# A member of a cluster that follows a server which is in none never hears of it by the cluster's bus. It must
# not count as dead: for some seconds after that the member would take no writes in its place.
ADOPTED_MS = 24 * 3600 * 1000

CONF = "redis.conf"
ACL = "users.acl"
LOG = "redis.log"
DUMP = "dump.rdb"
NODES_CONF = "nodes.conf"  # Redis Cluster's own: who the members are

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
    "cluster-allow-replica-migration": (7, 0, 0),
}
_OLD_NAMES = {"busy-reply-threshold": "lua-time-limit"}  # new name to the one before 7.0
_MANY_WORDS = {
    "bind",
    "save",
    "client-output-buffer-limit",
    "oom-score-adj-values",
}  # values not quoted whole


# What Sentinel's documentation says it needs. CONFIG REWRITE is part of its transactions; it changes nothing
# here, as servers read their configuration from where nothing can be written.
_SENTINEL_RULES = (
    *("resetchannels", "&__sentinel__:hello"),  # servers before 7.0 begin with all channels
    *("+multi", "+exec", "+slaveof", "+replicaof", "+ping", "+role", "+info", "+publish", "+subscribe"),
    *("+config|rewrite", "+client|setname", "+client|kill", "+script|kill"),
)


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
        "cluster-enabled": "yes" if settings.clustered else "no",
        "cluster-config-file": NODES_CONF,
    }
    changeable = live(settings, server)
    if from_dump:
        changeable["appendonly"] = "no"
    lines = [_line(name, value) for name, value in for_version(fixed, server).items()]
    for name, value in changeable.items():
        lines += _lines(name, value)
    encryption, gate = tls.for_start(settings, secret)
    lines += [_line(name, value) for name, value in encryption.items()]
    lines += [_line("rename-command", f"{old} {_word(new)}") for old, new in settings.rename_commands.items()]
    if settings.replica_of is not None and not settings.clustered:
        lines.append(f"replicaof {settings.replica_of.ip} {settings.replica_of.port}")
    said = [_line(name, value) for name, value in (replication(secret) | gate).items()]
    return Rendered(file=_text(lines), gate=_text(said), acl=_text(acl_lines(settings.users, secret)))


def live(settings: NodeSettings, server: tuple[int, int, int]) -> dict[str, str]:
    """What `CONFIG SET` can change in a running server, with its wanted value. No secrets."""
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
        "hz": str(HZ_CLUSTER if settings.clustered else HZ),
        "dynamic-hz": "yes",
        "replica-priority": str(settings.priority),
    }
    if settings.clustered:
        chosen |= {
            "cluster-announce-ip": settings.bind[0],
            "cluster-node-timeout": str(SILENT_MS if settings.replica_of is None else ADOPTED_MS),
            "cluster-require-full-coverage": "no",  # else a failover of one shard stops all others
            "cluster-allow-replica-migration": "no",  # replicas are moved by tasks alone
            "cluster-migration-barrier": "1000",  # the same, for servers before 7.0
            "cluster-replica-no-failover": "yes" if settings.priority == 0 else "no",
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
    sentinels = AclUser(
        name=SENTINEL_USER, password_sha256=digest(sentinel_password(secret)), rules=_SENTINEL_RULES
    )
    proxies = AclUser(
        name=PROXY_USER,
        password_sha256=digest(proxy_password(secret)),
        rules=("+cluster|slots", "+cluster|nodes", "+role", "+info", "+ping"),
    )
    everyone = {user.name: user for user in (*users, internal, replicas, sentinels, proxies)}
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


def sentinel_password(secret: str) -> str:
    """How Sentinels log in. It tells nothing of the secret it is made from."""
    return hmac.new(secret.encode(), b"sentinel", hashlib.sha256).hexdigest()


def proxy_password(secret: str) -> str:
    """How proxies log in. It tells nothing of the secret it is made from."""
    return hmac.new(secret.encode(), b"proxy", hashlib.sha256).hexdigest()


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
