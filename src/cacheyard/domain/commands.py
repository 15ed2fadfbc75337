"""Which Redis commands tenants may not call, as ACL rules.

Two reasons: the service forbids them (by engine version and cache mode), or they would let a tenant
out of its instance or break what the service does with it. Services put the rules behind `+@all` in
the users of a node's settings. They load on servers from 6.0 on, which deny a whole command and
allow single subcommands again (`-config +config|get`); denying one subcommand alone is 7.0's.

Rules cannot look into further arguments: a tenant may read every parameter, so no parameter may
hold a secret that opens more than the tenant's own data (see `engine.redis_conf` on replication).
"""

# Never a tenant's: the process, its replication, its files, its users, other servers' data.
_NEVER = (
    "bgrewriteaof",
    "bgsave",
    "debug",
    "migrate",
    "module",
    "pfdebug",
    "pfselftest",
    "psync",
    "replconf",
    "replicaof",
    "save",
    "shutdown",
    "slaveof",
    "sync",
)
_SINCE_6_2 = ("failover",)
_UNTIL_6_0 = ("lastsave",)  # engine versions 4.0, 5.0 and 6.0 forbid it, 7.0 does not; the documented lists

# By the proxied cache modes; the documented lists.
_BEHIND_PROXY = {
    "proxy": ("latency", "lastsave", "lolwut", "move", "readonly", "readwrite", "swapdb", "wait"),
    "ha_rw_split": ("lastsave", "lolwut", "readonly", "readwrite", "swapdb", "wait"),
}

_ACL_ALLOWED = ("cat", "genpass", "help", "whoami")
_CONFIG_ALLOWED = ("get", "help")
# What clients ask to find their way; all that changes the cluster or tells of its votes is left out.
_CLUSTER_ALLOWED = (
    "countkeysinslot",
    "getkeysinslot",
    "help",
    "info",
    "keyslot",
    "myid",
    "nodes",
    "replicas",
    "slaves",
    "slots",
)
_CLUSTER_ALLOWED_7 = ("links", "shards")
_NODES_ARE_CLUSTERED = ("cluster", "proxy")


def denied_rules(cache_mode: str, engine_version: str, server: tuple[int, int, int]) -> tuple[str, ...]:
    """The rules for an instance of `cache_mode` sold as `engine_version` (`"7.0"`) that a server of version
    `server` runs. They go behind `+@all`."""
    denied = set(_NEVER) | set(_BEHIND_PROXY.get(cache_mode, ()))
    if server >= (6, 2, 0):
        denied |= set(_SINCE_6_2)
    config: tuple[str, ...] = _CONFIG_ALLOWED
    if engine_version != "7.0":
        denied |= set(_UNTIL_6_0)
        config = (*config, "resetstat")  # the cloud's 7.0 forbids it
    rules = [f"-{command}" for command in sorted(denied)]
    rules += _only("acl", _ACL_ALLOWED)
    rules += _only("config", config)
    if cache_mode in _NODES_ARE_CLUSTERED:
        rules += _only("cluster", _CLUSTER_ALLOWED + (_CLUSTER_ALLOWED_7 if server >= (7, 0, 0) else ()))
    return tuple(rules)


def _only(command: str, subcommands: tuple[str, ...]) -> list[str]:
    return [f"-{command}", *(f"+{command}|{name}" for name in subcommands)]
