"""What tenants may not say is refused in every form, on every type; and nothing else is.

The lists are the documents', written out here: `cacheyard.domain.commands` has its own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis
from support.accounts import Accounts, places, refusal, tell
from support.caches import HA, SECONDS, Cache, made
from support.proxied import PROXY, SPLIT
from support.service import Service
from support.waiting import until

from cacheyard.engine import find

SECRET = "Acc0unt%pass"
KINDS: dict[str, dict[str, Any]] = {
    "single": {"engine_version": "6.0"},
    "ha": {"engine_version": "7.0", "spec_code": HA},
    "cluster": {"engine_version": "7.0", "spec_code": "redis.cluster.xu1.large.r2.4", "capacity": 4},
    "proxy": PROXY,
    "ha_rw_split": SPLIT | {"engine_version": "5.0"},
}
PROXIED = ("proxy", "ha_rw_split")
TYPES = [kind for kind in KINDS if kind not in PROXIED or find.proxy() is not None]
NODE = "0" * 40

# Whole commands, by why: the documents of all types and versions.
ALL = {"bgrewriteaof", "bgsave", "debug", "migrate", "psync", "save", "shutdown", "slaveof", "sync"}
# What is listed for 7.0 alone, or for proxied types, but would break what the service does anywhere.
OURS = {"failover", "module", "replconf", "replicaof", "pfdebug", "pfselftest"}
BEFORE_7 = {"lastsave"}
BEHIND_PROXIES = {"lastsave", "lolwut", "readonly", "readwrite", "swapdb", "wait"}
PROXY_CLUSTER = {"latency", "move"}

LINES = (
    "MIGRATE 127.0.0.1 1 {x} 0 1",
    "SLAVEOF NO ONE",
    "REPLICAOF NO ONE",
    "REPLICAOF 127.0.0.1 1",
    "SHUTDOWN NOSAVE",
    "SHUTDOWN ABORT",
    "DEBUG SLEEP 0",
    "DEBUG OBJECT {x}",
    "DEBUG SET-ACTIVE-EXPIRE 0",
    "SAVE",
    "BGSAVE",
    "BGSAVE SCHEDULE",
    "BGREWRITEAOF",
    "SYNC",
    "PSYNC ? -1",
    "FAILOVER",
    "FAILOVER ABORT",
    "REPLCONF ACK 1",
    "MODULE LIST",
    "MODULE LOAD /tmp/x.so",
    "MODULE LOADEX /tmp/x.so",
    "MODULE UNLOAD x",
    "CONFIG SET maxmemory 1",
    "CONFIG SET requirepass x",
    "CONFIG REWRITE",
    "ACL LIST",
    "ACL USERS",
    "ACL GETUSER default",
    "ACL GETUSER cacheyard",
    "ACL SETUSER me on nopass ~* +@all",
    "ACL SETUSER default +@all",
    "ACL DELUSER cacheyard",
    "ACL DRYRUN default GET x",
    "ACL LOG",
    "ACL LOAD",
    "ACL SAVE",
)
CLUSTER_LINES = (
    "CLUSTER MEET 127.0.0.1 1",
    "CLUSTER FLUSHSLOTS",
    "CLUSTER ADDSLOTS 1",
    "CLUSTER DELSLOTS 1",
    "CLUSTER ADDSLOTSRANGE 1 2",
    "CLUSTER DELSLOTSRANGE 1 2",
    "CLUSTER SETSLOT 1 STABLE",
    "CLUSTER BUMPEPOCH",
    "CLUSTER SAVECONFIG",
    f"CLUSTER FORGET {NODE}",
    f"CLUSTER REPLICATE {NODE}",
    f"CLUSTER COUNT-FAILURE-REPORTS {NODE}",
    "CLUSTER FAILOVER",
    "CLUSTER FAILOVER TAKEOVER",
    "CLUSTER SET-CONFIG-EPOCH 1",
    "CLUSTER RESET",
    "CLUSTER RESET HARD",
)
ALLOWED = (
    "PING",
    "SELECT 0",
    "SET {x} 1",
    "GET {x}",
    "EVAL return(redis.call('get',KEYS[1])) 1 {x}",
    "SCRIPT EXISTS 0",
    "SCRIPT FLUSH",
    "FUNCTION LIST",
    "CONFIG GET maxmemory",
    "INFO",
    "DBSIZE",
    "KEYS *",
    "SCAN 0",
    "SLOWLOG GET",
    "MEMORY USAGE {x}",
    "OBJECT ENCODING {x}",
    "DUMP {x}-none",
    "CLIENT LIST",
    "CLIENT SETNAME me",
    "CLIENT ID",
    "COMMAND COUNT",
    "ACL WHOAMI",
    "ACL CAT",
    "ACL GENPASS",
    "TIME",
    "PUBLISH news all",
    "MONITOR",
    "SUBSCRIBE news",
    "FLUSHDB",
    "FLUSHALL",
)
DIRECT_ALLOWED = (
    "ROLE",
    "WAIT 0 0",
    "LATENCY DOCTOR",
    "LOLWUT",
    "CLIENT INFO",
    "CLIENT TRACKING OFF",
    "RESET",
)
CLUSTER_ALLOWED = (
    *("CLUSTER SLOTS", "CLUSTER SHARDS", "CLUSTER NODES", "CLUSTER INFO", "CLUSTER MYID", "CLUSTER LINKS"),
    *(
        "CLUSTER KEYSLOT {x}",
        "CLUSTER COUNTKEYSINSLOT 1",
        "CLUSTER GETKEYSINSLOT 1 1",
        "READONLY",
        "READWRITE",
    ),
)


@pytest.fixture(scope="module")
def caches(yard: Service) -> Iterator[dict[str, Cache]]:
    """One of each type, each with an account that may write."""
    with ExitStack() as afterwards:
        found = {
            kind: afterwards.enter_context(made(yard, name=f"forbidden-{number}", **KINDS[kind]))
            for number, kind in enumerate(TYPES)
        }
        for cache in found.values():
            Accounts(yard.sdk_token(), cache).create("writer", "write", SECRET)
        yield found


@pytest.fixture(params=TYPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(caches: dict[str, Cache], kind: str) -> Cache:
    return caches[kind]


@pytest.fixture(params=["default", "writer"])
def login(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The two that may do the most."""
    return {} if request.param == "default" else {"username": request.param, "password": SECRET}


def link_of(cache: Cache, login: dict[str, Any], **where: Any) -> "redis.Redis":
    return cache.client(**login, **where, protocol=2)  # 3 pushes what SUBSCRIBE answers


def forbidden_lines(kind: str) -> tuple[str, ...]:
    lines: tuple[str, ...] = LINES
    if kind in ("cluster", "proxy"):
        lines += CLUSTER_LINES
    if KINDS[kind]["engine_version"] == "7.0":
        lines += ("CONFIG RESETSTAT",)
    else:
        lines += ("LASTSAVE",)
    if kind in PROXIED:
        lines += ("CONFIG RESETSTAT", "WAIT 0 0", "READONLY", "READWRITE", "LOLWUT", "SWAPDB 0 1")
    if kind == "proxy":
        lines += ("MOVE {x} 1", "LATENCY DOCTOR", "LATENCY RESET")
    return lines


def allowed_lines(kind: str) -> tuple[str, ...]:
    if kind in PROXIED:
        return ALLOWED
    lines = ALLOWED + DIRECT_ALLOWED
    if kind == "cluster":
        return lines + CLUSTER_ALLOWED
    version = "LASTSAVE" if KINDS[kind]["engine_version"] == "7.0" else "CONFIG RESETSTAT"
    return (*lines, version, "SWAPDB 0 1", "MOVE {x} 1")


def own_key(link: "redis.Redis") -> str:
    """A key that this server has."""
    for number in range(1000):
        try:
            tell(link, "EXISTS", f"key:{number}")
        except redis.ResponseError:  # MOVED
            continue
        return f"key:{number}"
    raise AssertionError("no key is at that server")


def test_what_is_forbidden_is_refused_plainly_in_transactions_and_in_scripts(
    cache: Cache, kind: str, login: dict[str, Any]
) -> None:
    with closing(link_of(cache, login)) as link:
        own = own_key(link)
        for line in forbidden_lines(kind):
            words = line.replace("{x}", own).split()
            assert refusal(link, *words), line
            script = "return redis.call(unpack(ARGV))"
            assert refusal(link, "EVAL", script, 1, own, *words), f"{line} in a script"
            tell(link, "MULTI")
            assert refusal(link, *words), f"{line} in a transaction"
            with pytest.raises(redis.ResponseError):  # EXECABORT
                tell(link, "EXEC")
        assert tell(link, "PING")


def test_what_is_not_forbidden_is_not_refused(cache: Cache, kind: str, login: dict[str, Any]) -> None:
    with closing(link_of(cache, login)) as link:
        own = own_key(link)
    found = []
    for line in allowed_lines(kind):
        with closing(link_of(cache, login)) as link:
            if refusal(link, *line.replace("{x}", own).split()) is not None:
                found.append(line)
    assert found == []


def test_each_server_denies_these_commands_of_its_table_and_no_other(
    cache: Cache, kind: str, login: dict[str, Any]
) -> None:
    """Also of those behind proxies, at their own addresses. Nothing is executed: all is said in MULTI."""
    expected = ALL | OURS | (BEFORE_7 if KINDS[kind]["engine_version"] != "7.0" else set())
    expected |= (BEHIND_PROXIES if kind in PROXIED else set()) | (PROXY_CLUSTER if kind == "proxy" else set())
    by_subcommand = {"acl", "config", "cluster", "latency", "module"}
    elsewhere = by_subcommand | {"multi", "exec", "discard", "watch", "quit", "reset"}
    elsewhere.add("debug")  # servers have it switched off, before they look at who asks
    for where in places(cache):
        with closing(link_of(cache, login, **where)) as link:
            table = {str(row[0]): row for row in tell(link, "COMMAND")}
            # what nobody may say in MULTI is in the lines above
            asked = {name for name, row in table.items() if "no_multi" not in row[2]} - elsewhere
            assert len(asked) > 200
            denied = {name for name in asked if is_denied(link, name, int(table[name][1]))}
            assert denied == expected & asked


def is_denied(link: "redis.Redis", name: str, arity: int) -> bool:
    tell(link, "MULTI")
    try:
        tell(link, name, *["x"] * (abs(arity) - 1))
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError:
        return False
    finally:
        tell(link, "DISCARD")
    return False


def test_a_tenant_that_ends_our_connections_harms_nobody(caches: dict[str, Cache]) -> None:
    """They can be seen and ended where clients talk to servers; they come back, and nothing is lost."""
    pair = caches["ha"]
    with pair.client() as link:
        link.set("kept", "1")
        users = {str(one["user"]) for one in link.client_list()}
        assert "cacheyard-replication" in users
        for user in users - {"default"}:
            tell(link, "CLIENT", "KILL", "USER", user)

        def replicated() -> bool:
            info: Any = link.info("replication")
            return bool(info["connected_slaves"] == 1 and info["slave0"]["state"] == "online")

        until(replicated, seconds=SECONDS, what="the replica to be back")
        assert link.get("kept") == "1"
    assert pair.show()["status"] == "RUNNING"
    Accounts(pair.service.sdk_token(), pair).create("after", "read", SECRET)
    for where in places(pair):
        with closing(link_of(pair, {"username": "after", "password": SECRET}, **where)) as link:
            assert tell(link, "GET", "kept") == "1"


def test_no_password_of_ours_is_a_parameter_that_opens_more_than_replication(
    caches: dict[str, Cache],
) -> None:
    """Tenants may read all parameters, so also how replicas log in: that account may do nothing else."""
    pair = caches["ha"]
    with pair.client() as link:
        told: Any = link.config_get("*")
    assert told["masteruser"] == "cacheyard-replication"
    assert not told["requirepass"]
    with closing(pair.client(told["masterauth"], username=told["masteruser"], protocol=2)) as link:
        for line in ("GET kept", "SET kept 2", "ACL LIST", "CONFIG GET *", "INFO", "KEYS *", "CLUSTER NODES"):
            assert refusal(link, *line.split()) is not None, line
