"""The parameters of an instance: what they are called, what may be chosen, and what that makes of servers and
proxies. No I/O.

An instance's row keeps what was chosen (`instances.parameters`, by name). All else follows from the type,
the engine version and the flavor it has now, so it holds for nodes that come later; a value that the type
does not have (any more) has no effect, and one out of the range of a later flavor is brought into it.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from cacheyard.domain.engines import SOLD
from cacheyard.domain.flavors import MODES, Flavor

_MB = 1 << 20
CLIENTS = 10_000  # of a server behind proxies, which need far fewer
DATABASES = 256  # of a Proxy Cluster with multi-db
# How often a server looks after its time-outs and expired keys. 100 idle servers of 7.0 cost 10.6 % of a
# core at Redis' own 10 and 1.5 % at 1, but at 1 a stop takes a second. Redis Cluster counts on 10.
HZ, HZ_CLUSTER = 4, 10
LONGEST_ARGUMENT = 512 * _MB  # that a server can take
LOOKUPS = 20  # expired keys that Redis looks for at a time, at the least
_LOOKUPS_A_STEP = 5  # … and so many more with each step of active-expire-effort
_MOST_EFFORT = 10
_EVENTS = "g$lshzxe"  # as Redis orders them
_REPLICATED = ("ha", "cluster", "proxy", "ha_rw_split")
_DIRECT = ("single", "ha", "cluster")
_PROXIED = ("proxy", "ha_rw_split")
_CLUSTERED = ("cluster", "proxy")
_NOT_PROXY = ("single", "ha", "cluster", "ha_rw_split")
_NOT_SPLIT = ("single", "ha", "cluster", "proxy")
BY_FLAVOR = -1  # a range that the flavor says
_HARD = "client-output-buffer-slave-hard-limit"
_SOFT = "client-output-buffer-slave-soft-limit"
_SOFT_SECONDS = "client-output-buffer-limit-slave-soft-seconds"
EVENTS_PATTERN = "([KE]+([A]|[g$lshzxe]+)){0,11}"


class ValueType(StrEnum):
    """As clients spell them."""

    INTEGER = "Interger"
    ENUM = "Enum"
    TEXT = "regular"


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter."""

    id: str
    name: str
    description: str
    type: ValueType
    default: str = ""
    low: int = 0  # of integers
    high: int = 0
    choices: tuple[str, ...] = ()  # of enumerations
    modes: tuple[str, ...] = MODES
    by_flavor: bool = False  # its range and default depend on the flavor
    need_restart: bool = False  # none does: servers and proxies take all of them while they run

    @property
    def value_range(self) -> str:
        """As clients show it."""
        if self.type is ValueType.INTEGER:
            return f"{self.low}-{self.high}"
        return ",".join(self.choices) if self.type is ValueType.ENUM else EVENTS_PATTERN

    def fault(self, value: str) -> str | None:
        """Why it cannot have that value; None: it can."""
        if self.type is ValueType.INTEGER:
            if not re.fullmatch(r"\d{1,18}", value, re.ASCII) or not self.low <= int(value) <= self.high:
                return f"it must be a number from {self.low} to {self.high}"
        elif self.type is ValueType.ENUM:
            if value not in self.choices:
                return f"it must be {' or '.join(choice or 'empty' for choice in self.choices)}"
        elif value:
            return _events_fault(value)
        return None

    def kept(self, value: str) -> str:
        """How the row keeps a value that has no fault."""
        if self.type is ValueType.INTEGER:
            return str(int(value))
        return value or self.default  # no events at all are asked for by clients that mean the default

    def within(self, value: str) -> str:
        """A value that was chosen for another flavor."""
        if self.type is not ValueType.INTEGER:
            return value
        return str(min(max(int(value), self.low), self.high))


class ProxyParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What the proxies of an instance get of its parameters."""

    clients: int  # of all proxies together
    idle_seconds: int
    argument_bytes: int  # the longest argument that servers take
    databases: int  # 0: the one that a cluster has
    pubsub_to_one_shard: bool
    slow_after_us: int
    slow_entries: int
    replica_commands: tuple[str, ...]  # which only replicas serve
    readers_scripts_to_replicas: bool  # scripts of users that may only read


def _number(
    number: int, name: str, low: int, high: int, default: int, description: str, *modes: str
) -> Parameter:
    return Parameter(
        id=str(number),
        name=name,
        type=ValueType.INTEGER,
        low=low,
        high=high,
        default=str(default),
        description=description,
        modes=modes or MODES,
        by_flavor=high == BY_FLAVOR,
    )


def _choice(
    number: int, name: str, choices: tuple[str, ...], default: str, description: str, *modes: str
) -> Parameter:
    return Parameter(
        id=str(number),
        name=name,
        type=ValueType.ENUM,
        choices=choices,
        default=default,
        description=description,
        modes=modes or MODES,
    )


_YES_NO = ("yes", "no")
_POLICIES = (
    *("volatile-lru", "allkeys-lru", "volatile-random", "allkeys-random"),
    *("volatile-ttl", "noeviction", "volatile-lfu", "allkeys-lfu"),
)

# fmt: off
# The numbers up to 13 are the documented ones; those above are this service's own, and stay as they are.
_CATALOG = (
    _number(1, "timeout", 0, 7200, 0,
            "Seconds after which a client that says nothing is cut off; 0: never.", *_NOT_PROXY),
    _choice(2, "maxmemory-policy", _POLICIES, "volatile-lru",
            "Which keys go when the memory is full."),
    _number(3, "hash-max-ziplist-entries", 1, 10_000, 512,
            "Fields up to which a hash is kept compact."),
    _number(4, "hash-max-ziplist-value", 1, 10_000, 64,
            "Bytes of a value up to which a hash is kept compact."),
    # 5 and 6 are list-max-ziplist-entries and -value, of version 3.0 alone
    _number(7, "set-max-intset-entries", 1, 10_000, 512,
            "Members up to which a set of integers is kept compact."),
    _number(8, "zset-max-ziplist-entries", 1, 10_000, 128,
            "Members up to which a sorted set is kept compact."),
    _number(9, "zset-max-ziplist-value", 1, 10_000, 64,
            "Bytes of a member up to which a sorted set is kept compact."),
    _number(10, "latency-monitor-threshold", 0, 86_400_000, 0,
            "Milliseconds from which LATENCY remembers an event; 0: it remembers none.", *_NOT_PROXY),
    _number(11, "maxclients", 0, BY_FLAVOR, 0,
            "Clients that may be connected to the instance at once.", *_NOT_SPLIT),
    _number(12, "reserved-memory", 0, BY_FLAVOR, 0,
            "Megabytes of the instance's memory kept free of data, for replication and persistence.",
            "single", "ha"),
    Parameter(id="13", name="notify-keyspace-events", type=ValueType.TEXT, default="Ex", modes=_NOT_PROXY,
              description="Which changes of keys are published: K or E or both, and A or some of g$lshzxe."),
    _number(14, "active-expire-num", 1, 1000, LOOKUPS,
            "Expired keys that are looked for at a time.", "single", "ha", "ha_rw_split"),
    # a server that looks for fewer must tick less often, and the nodes of a cluster must not
    _number(14, "active-expire-num", LOOKUPS, 1000, LOOKUPS,
            "Expired keys that are looked for at a time.", "cluster", "proxy"),
    _choice(15, "appendfsync", ("no", "always", "everysec"), "everysec",
            "When what was appended to the file is forced to disk.", *_REPLICATED),
    _choice(16, "appendonly", _YES_NO, "yes",
            "Whether each change is appended to a file.", *_REPLICATED),
    _number(17, "lua-time-limit", 100, 5000, 5000,
            "Milliseconds from which a script counts as too long.", *_NOT_SPLIT),
    _number(18, "proto-max-bulk-len", _MB, LONGEST_ARGUMENT, LONGEST_ARGUMENT,
            "Bytes that one argument of a command may have.", *_NOT_SPLIT),
    _choice(19, "master-read-only", _YES_NO, "no",
            "Whether commands that write are refused.", *_DIRECT),
    _number(20, "repl-backlog-size", 16 << 10, 1 << 30, _MB,
            "Bytes of changes kept for replicas that were away.", *_REPLICATED),
    _number(21, "repl-backlog-ttl", 0, 604_800, 3600,
            "Seconds without a replica after which these are given up; 0: never.", *_REPLICATED),
    _number(22, "repl-timeout", 30, 3600, 60,
            "Seconds of silence after which master and replica part.", *_REPLICATED),
    _number(23, _HARD, 0, BY_FLAVOR, 0,
            "Bytes waiting for a replica at which it is cut off; 0: no limit.", *_REPLICATED),
    _number(24, _SOFT, 0, BY_FLAVOR, 0,
            "Bytes waiting for a replica at which it is cut off if it stays so; 0: no limit.", *_REPLICATED),
    _number(25, _SOFT_SECONDS, 0, 60, 60,
            "Seconds for which it may stay so.", *_REPLICATED),
    _number(26, "slowlog-log-slower-than", 0, 1_000_000, 10_000,
            "Microseconds of execution from which a command is in the slow log."),
    _number(27, "slowlog-max-len", 0, 1000, 128,
            "Entries that the slow log keeps."),
    _choice(28, "auto-kill-timeout-lua-process", _YES_NO, "no",
            "Whether scripts that run longer than lua-time-limit are ended.", *_REPLICATED),
    _choice(29, "multi-db", _YES_NO, "no",
            "Whether there are 256 databases; changed while there are no keys.", "proxy"),
    _choice(30, "dispatch-pubsub-to-fixed-shard", _YES_NO, "no",
            "Whether all channels are at the shard that has slot 0.", "proxy"),
    _choice(31, "readonly-lua-route-to-slave-enabled", _YES_NO, "no",
            "Whether scripts of accounts that may only read are run by replicas.", "ha_rw_split"),
    _number(32, "proxy-slowlog-log-slower-than", 30_000, 2_000_000, 500_000,
            "Microseconds until the reply from which a command is in a proxy's slow log.", *_PROXIED),
    _number(33, "proxy-slowlog-max-len", 0, 1000, 128,
            "Entries that a proxy's slow log keeps.", *_PROXIED),
    _choice(34, "support-dispatch-to-replica-list", ("", "KEYS"), "",
            "Commands that only replicas serve.", *_PROXIED),
)
# fmt: on


def catalog(version: str, mode: str, flavor: Flavor | None = None) -> tuple[Parameter, ...]:
    """The parameters of instances of that engine version and type, in the order of their numbers. Without a
    flavor those are left out whose range depends on it."""
    if version not in SOLD:
        return ()
    there = (one for one in _CATALOG if mode in one.modes)
    return tuple(_of_flavor(one, flavor) if flavor else one for one in there if flavor or not one.by_flavor)


def find(name: str, version: str, mode: str, flavor: Flavor | None = None) -> Parameter | None:
    """The parameter of that name; None: such instances have none."""
    return next((one for one in catalog(version, mode, flavor) if one.name == name), None)


def absence(name: str, version: str, mode: str) -> str:
    """Why `find` finds none."""
    there = [one for one in _CATALOG if one.name == name]
    if not there:
        return "there is no such parameter"
    if find(name, version, mode) is None and any(one.by_flavor and mode in one.modes for one in there):
        return "what it can be depends on the size of the instance"
    return f"instances of version {version} and type {mode} do not have it"


def values(chosen: Mapping[str, str], version: str, flavor: Flavor) -> dict[str, str]:
    """All parameters of an instance with the value that each has, chosen or not."""
    return {
        one.name: one.within(chosen[one.name]) if one.name in chosen else one.default
        for one in catalog(version, flavor.cache_mode, flavor)
    }


def for_servers(chosen: Mapping[str, str], version: str, flavor: Flavor) -> dict[str, str]:
    """What each server is told by CONFIG, beside what has a setting of its own. Names are those of Redis 7.0.
    What the type does not have is told too, with its default: the server may have been of another type."""
    now = {one.name: one.default for one in _CATALOG} | values(chosen, version, flavor)
    told = {_SERVER_NAMES.get(name, name): now[name] for name in _TOLD}
    if "appendonly" in values(chosen, version, flavor):  # else the type says it
        told["appendonly"] = now["appendonly"]
    if flavor.cache_mode in _PROXIED:
        told["timeout"] = "0"  # the proxies' connections are not their clients'
    told["notify-keyspace-events"] = _in_order(now["notify-keyspace-events"])
    told |= _expiry(int(now["active-expire-num"]), clustered=flavor.cache_mode in _CLUSTERED)
    replicas = f"slave {now[_HARD]} {now[_SOFT]} {now[_SOFT_SECONDS]}"
    told["client-output-buffer-limit"] = f"normal 0 0 0 {replicas} pubsub {32 * _MB} {8 * _MB} 60"
    return told


def server_clients(chosen: Mapping[str, str], version: str, flavor: Flavor) -> int:
    """Clients that each server takes."""
    if flavor.cache_mode in _PROXIED:
        return min(CLIENTS, flavor.connections // flavor.shards)
    return int(values(chosen, version, flavor)["maxclients"]) // flavor.shards


def server_memory(chosen: Mapping[str, str], version: str, flavor: Flavor) -> int:
    """Bytes that the data of each server may use."""
    return (flavor.shard_mb - int(values(chosen, version, flavor).get("reserved-memory", "0"))) * _MB


def tenant_rules(chosen: Mapping[str, str], version: str, cache_mode: str) -> tuple[str, ...]:
    """ACL rules that all of the tenant's users have behind their own."""
    if find("master-read-only", version, cache_mode) is None:
        return ()
    return ("-@write",) if chosen.get("master-read-only") == "yes" else ()


def kills_scripts(chosen: Mapping[str, str], version: str, cache_mode: str) -> bool:
    """Whether scripts that run too long are ended."""
    there = find("auto-kill-timeout-lua-process", version, cache_mode) is not None
    return there and chosen.get("auto-kill-timeout-lua-process") == "yes"


def for_proxies(chosen: Mapping[str, str], version: str, flavor: Flavor) -> ProxyParameters:
    """What the proxies are configured with."""
    now = {one.name: one.default for one in _CATALOG} | values(chosen, version, flavor)
    return ProxyParameters(
        clients=int(now["maxclients"]) or flavor.connections,
        idle_seconds=int(now["timeout"]),
        argument_bytes=int(now["proto-max-bulk-len"]),
        databases=DATABASES if now["multi-db"] == "yes" else 0,
        pubsub_to_one_shard=now["dispatch-pubsub-to-fixed-shard"] == "yes",
        slow_after_us=int(now["proxy-slowlog-log-slower-than"]),
        slow_entries=int(now["proxy-slowlog-max-len"]),
        replica_commands=tuple(now["support-dispatch-to-replica-list"].lower().split()),
        readers_scripts_to_replicas=now["readonly-lua-route-to-slave-enabled"] == "yes",
    )


def _of_flavor(parameter: Parameter, flavor: Flavor) -> Parameter:
    """The parameter with the range and the default that it has for that flavor."""
    shard = flavor.shard_mb * _MB
    match parameter.name:
        case "maxclients":
            low, high, default = 1000 * flavor.shards, flavor.connection_limit, flavor.connections
        case "reserved-memory":
            low, high, default = 0, flavor.capacity_mb * 8 // 10, 0
        case "client-output-buffer-slave-hard-limit":
            low, high, default = 0, shard, max(shard // 10, min(shard, 256 * _MB))
        case "client-output-buffer-slave-soft-limit":
            low, high, default = 0, shard, max(shard // 10, 64 * _MB)
        case _:
            return parameter
    return msgspec.structs.replace(parameter, low=low, high=high, default=str(default))


_SERVER_NAMES = {one.name: one.name.replace("-ziplist-", "-listpack-") for one in _CATALOG} | {
    "lua-time-limit": "busy-reply-threshold"
}

# What a server has by that name, or by the one that it has come to have.
_TOLD = (
    "timeout",
    "maxmemory-policy",
    "hash-max-ziplist-entries",
    "hash-max-ziplist-value",
    "set-max-intset-entries",
    "zset-max-ziplist-entries",
    "zset-max-ziplist-value",
    "latency-monitor-threshold",
    "appendfsync",
    "lua-time-limit",
    "proto-max-bulk-len",
    "repl-backlog-size",
    "repl-backlog-ttl",
    "repl-timeout",
    "slowlog-log-slower-than",
    "slowlog-max-len",
)


def _events_fault(value: str) -> str | None:
    letters = set(value)
    if not letters <= set("KEA" + _EVENTS):
        return f"it may have the letters K, E, A and {_EVENTS}"
    if not letters & set("KE"):
        return "it needs K or E"
    if not letters - set("KE"):
        return f"it needs A, or some of {_EVENTS}"
    if "A" in letters and letters & set(_EVENTS):
        return f"A stands for {_EVENTS}, and not beside one of them"
    return None


def _in_order(events: str) -> str:
    """As Redis tells them."""
    return "".join(letter for letter in "A" + _EVENTS + "KE" if letter in events)


def _expiry(lookups: int, *, clustered: bool) -> dict[str, str]:
    """How a server looks for so many expired keys at a time, compared with LOOKUPS.

    Redis' own number grows by five with each step of active-expire-effort, up to 65; what is more comes about
    by looking more often, and what is less than 20 by looking less often.
    """
    usual = HZ_CLUSTER if clustered else HZ
    effort = min(_MOST_EFFORT, 1 + max(0, -(-(lookups - LOOKUPS) // _LOOKUPS_A_STEP)))
    at_a_time = LOOKUPS + _LOOKUPS_A_STEP * (effort - 1)
    hz = usual if LOOKUPS <= lookups <= at_a_time else max(1, round(usual * lookups / at_a_time))
    return {"active-expire-effort": str(effort), "hz": str(hz)}
