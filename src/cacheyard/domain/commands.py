"""Which Redis commands tenants may not call, as ACL rules.

Two reasons: the service forbids them (by engine version and cache mode), or they would let a tenant
out of its instance or break what the service does with it. Services put the rules behind `+@all` in
the users of a node's settings. They load on servers from 6.0 on, which deny a whole command and
allow single subcommands again (`-config +config|get`); denying one subcommand alone is 7.0's.

Rules cannot look into further arguments: a tenant may read every parameter, so no parameter may
hold a secret that opens more than the tenant's own data (see `engine.redis_conf` on replication).
"""

_NAMES = """
    append asking auth bgrewriteaof bgsave bitcount bitfield bitfield_ro bitop bitpos blmove blmpop
    blpop brpop brpoplpush bzmpop bzpopmax bzpopmin client cluster command config copy dbsize debug decr
    decrby discard dump echo eval eval_ro evalsha evalsha_ro exec exists expire expireat expiretime
    failover fcall fcall_ro flushall flushdb function geoadd geodist geohash geopos georadius
    georadius_ro georadiusbymember georadiusbymember_ro geosearch geosearchstore getbit getdel getex
    getrange getset hdel hello hexists hget hgetall hincrby hincrbyfloat hkeys hlen hmget hmset
    hrandfield hscan hset hsetnx hstrlen hvals incr incrby incrbyfloat info keys lastsave latency lindex
    linsert llen lmove lmpop lolwut lpop lpos lpush lpushx lrange lrem lset ltrim memory mget migrate
    module monitor move mset msetnx multi object persist pexpire pexpireat pexpiretime pfadd pfcount
    pfdebug pfmerge pfselftest ping psetex psubscribe psync pttl publish pubsub punsubscribe quit
    randomkey readonly readwrite rename renamenx replconf replicaof reset restore restore-asking role
    rpop rpoplpush rpush rpushx sadd save scan scard script sdiff sdiffstore select setbit setex setnx
    setrange shutdown sinter sintercard sinterstore sismember slaveof slowlog smembers smismember smove
    sort sort_ro spop spublish srandmember srem sscan ssubscribe strlen subscribe substr sunion
    sunionstore sunsubscribe swapdb sync time touch type unlink unsubscribe unwatch wait waitaof watch
    xack xadd xautoclaim xclaim xdel xgroup xinfo xlen xpending xrange xread xreadgroup xrevrange xsetid
    xtrim zadd zcard zcount zdiff zdiffstore zincrby zinter zintercard zinterstore zlexcount zmpop
    zmscore zpopmax zpopmin zrandmember zrange zrangebylex zrangebyscore zrangestore zrank zrem
    zremrangebylex zremrangebyrank zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore zrevrank
    zscan zscore zunion zunionstore
    """
# Of servers up to 7.2, those of four letters and more: a server does not start if a command is to be renamed
# to one of them, or one that is not among them is to be renamed.
NAMES = frozenset(_NAMES.split())

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


# What reading accounts need besides Redis' own category of reading commands: to find their way, to listen,
# and to put several reads together. A script may call what its caller may, so EVAL reads and no more.
_READING = (
    *(
        "asking",
        "auth",
        "command",
        "echo",
        "hello",
        "ping",
        "readonly",
        "readwrite",
        "reset",
        "select",
        "wait",
    ),
    *("discard", "exec", "multi", "unwatch", "watch"),
    *("psubscribe", "pubsub", "punsubscribe", "subscribe", "unsubscribe"),
    *("eval", "evalsha", "script|exists", "script|help", "script|load"),
    *("info", "role", "time"),
    *(f"client|{name}" for name in ("caching", "getname", "getredir", "help", "id", "info", "reply")),
    *(f"client|{name}" for name in ("setname", "tracking", "trackinginfo")),
)
_READING_7 = (
    *("eval_ro", "evalsha_ro", "fcall", "fcall_ro"),
    *(f"function|{name}" for name in ("dump", "help", "list", "stats")),
    *("quit", "ssubscribe", "sunsubscribe"),
)
_READING_7_2 = ("client|no-touch", "client|setinfo")


def denied_rules(cache_mode: str, engine_version: str, server: tuple[int, int, int]) -> tuple[str, ...]:
    """The rules for an instance of `cache_mode` sold as `engine_version` (`"7.0"`) that a server of version
    `server` runs. They go behind `+@all`."""
    config: tuple[str, ...] = _CONFIG_ALLOWED
    if engine_version != "7.0":
        config = (*config, "resetstat")  # the cloud's 7.0 forbids it
    rules = [f"-{command}" for command in _denied(cache_mode, engine_version, server)]
    rules += _only("acl", _ACL_ALLOWED)
    rules += _only("config", config)
    if cache_mode in _NODES_ARE_CLUSTERED:
        rules += _only("cluster", _cluster_allowed(server))
    return tuple(rules)


def reading_rules(cache_mode: str, engine_version: str, server: tuple[int, int, int]) -> tuple[str, ...]:
    """The same for an account that may read and nothing else: all of its rules about commands. What reads the
    server rather than the data (CONFIG GET, SLOWLOG, MONITOR, other clients) is left out."""
    allowed = [*_READING, *(f"acl|{name}" for name in _ACL_ALLOWED)]
    if server >= (7, 0, 0):
        allowed += _READING_7
    if server >= (7, 2, 0):
        allowed += _READING_7_2
    if cache_mode in _NODES_ARE_CLUSTERED:
        allowed += (f"cluster|{name}" for name in _cluster_allowed(server))
    denied = _denied(cache_mode, engine_version, server)
    return ("-@all", "+@read", *(f"+{name}" for name in allowed), *(f"-{name}" for name in denied))


def _denied(cache_mode: str, engine_version: str, server: tuple[int, int, int]) -> list[str]:
    """The commands that are denied as a whole."""
    denied = set(_NEVER) | set(_BEHIND_PROXY.get(cache_mode, ()))
    if server >= (6, 2, 0):
        denied |= set(_SINCE_6_2)
    if engine_version != "7.0":
        denied |= set(_UNTIL_6_0)
    return sorted(denied)


def _cluster_allowed(server: tuple[int, int, int]) -> tuple[str, ...]:
    return _CLUSTER_ALLOWED + (_CLUSTER_ALLOWED_7 if server >= (7, 0, 0) else ())


def _only(command: str, subcommands: tuple[str, ...]) -> list[str]:
    return [f"-{command}", *(f"+{command}|{name}" for name in subcommands)]
