"""Servers take the rules that deny tenants commands, and refuse by them; engines and abilities are found."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from support import servers
from support.waiting import until
from support.yard import SECRET, Yard

from cacheyard.agent.pulse import listens
from cacheyard.domain.commands import NAMES, denied_rules, reading_rules
from cacheyard.domain.nodes import AclUser, Address, Node
from cacheyard.engine import find
from cacheyard.engine.redis import Link, RedisError, ResponseError, check_write, flush
from cacheyard.engine.replication import is_fed, promote

MODES = ("single", "ha", "cluster", "proxy", "ha_rw_split")
VERSIONS = ("4.0", "5.0", "6.0", "7.0")
REFUSED = (
    "CONFIG SET maxmemory 1",
    "CONFIG REWRITE",
    "DEBUG SLEEP 0",
    "MODULE LIST",
    "ACL LIST",
    "ACL SETUSER me on nopass +@all",
    "ACL GETUSER default",
    "SHUTDOWN NOSAVE",
    "REPLICAOF NO ONE",
    "SLAVEOF NO ONE",
    "PSYNC ? -1",
    "SYNC",
    "REPLCONF ACK 1",
    "MIGRATE 127.0.0.1 1 key 0 1",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "FAILOVER",
    "EVAL return(redis.call('config','set','maxmemory','1')) 0",
)
ALLOWED = (
    "CONFIG GET maxmemory",
    "ACL WHOAMI",
    "ACL CAT",
    "ACL GENPASS",
    "SET key value",
    "EVAL return(1) 0",
    "INFO",
    "CLIENT LIST",
    "SLOWLOG GET",
    "MEMORY USAGE key",
    "ROLE",
    "FLUSHALL",
    "SUBSCRIBE channel",
)


@pytest.fixture(scope="module", params=servers.BINARIES, ids=servers.name)
def yard(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Yard]:
    made = Yard(tmp_path_factory.mktemp("yard") / "data", request.param)
    try:
        made.start_agent()
        yield made
    finally:
        made.close()


def version(yard: Yard) -> tuple[int, int, int]:
    return next(engine.version for engine in servers.ENGINES if engine.binary == yard.binary)


def tenant(rules: tuple[str, ...]) -> AclUser:
    return AclUser(name="default", password_sha256=None, rules=("~*", "&*", "+@all", *rules))


def started(yard: Yard, node: Node) -> Node:
    yard.add(node)
    return yard.settled(node)[0]


def refused(client: "redis.Redis", command: str) -> bool:
    try:
        client.execute_command(*command.split())  # type: ignore[no-untyped-call]
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError as error:
        return "permission" in str(error) or "not allowed" in str(error)  # by a script; DEBUG by 7.0 itself
    return False


def test_each_set_of_rules_is_taken(yard: Yard) -> None:
    node = started(yard, yard.node())
    internal = yard.redis(node, username="cacheyard", password=SECRET)
    for mode in MODES:
        for sold in VERSIONS:
            for server in {version(yard), min(version(yard), (6, 2, 0))}:
                writing = ("+@all", *denied_rules(mode, sold, server))
                for rules in (writing, reading_rules(mode, sold, server)):
                    words = ("ACL", "SETUSER", "x", "reset", "~*", "&*", *rules)
                    assert internal.execute_command(*words)  # type: ignore[no-untyped-call]


def test_every_command_of_the_server_is_known_by_its_name(yard: Yard) -> None:
    node = started(yard, yard.node())
    said = yard.redis(node, username="cacheyard", password=SECRET).command()
    assert {name for name in said if len(name) >= 4} <= NAMES


def test_who_may_read_alone_is_refused_whatever_the_server_calls_a_write(yard: Yard) -> None:
    reader = AclUser(
        name="reader",
        password_sha256=None,
        rules=("~*", "&*", *reading_rules("single", "7.0", version(yard))),
    )
    node = started(yard, yard.node(users=(tenant(denied_rules("single", "7.0", version(yard))), reader)))
    client = yard.redis(node, username="reader", password="any")
    flags = {name: {str(flag) for flag in about["flags"]} for name, about in client.command().items()}
    arity = {name: abs(about["arity"]) for name, about in client.command().items()}

    def may(flag: str) -> set[str]:
        asked = {name for name in flags if flag in flags[name] and ":" not in name and name != "post"}
        lines = {name: " ".join((name, *["x"] * (arity[name] - 1))) for name in asked}
        return {name for name, line in lines.items() if not refused(client, line)}

    assert len([name for name in flags if "write" in flags[name]]) > 80
    assert may("write") == set()
    assert {"get", "scan", "hgetall", "xread", "keys", "dump"} <= may("readonly")


@pytest.mark.parametrize("sold", ["6.0", "7.0"])
def test_tenants_are_refused_what_is_not_theirs_and_nothing_else(yard: Yard, sold: str) -> None:
    node = started(yard, yard.node(users=(tenant(denied_rules("single", sold, version(yard))),)))
    client = yard.redis(node)
    assert [command for command in REFUSED if not refused(client, command)] == []
    assert [command for command in ALLOWED if refused(client, command)] == []
    assert refused(yard.redis(node, client_name="b"), "CONFIG RESETSTAT") is (sold == "7.0")
    assert refused(yard.redis(node, client_name="b"), "LASTSAVE") is (sold == "6.0")


def test_cluster_administration_is_refused_and_the_way_may_be_asked(yard: Yard) -> None:
    rules = denied_rules("cluster", "6.0", version(yard))
    node = started(yard, yard.node(parameters={"cluster-enabled": "yes"}, users=(tenant(rules),)))
    client = yard.redis(node)
    for word in ("MEET 127.0.0.1 1", "ADDSLOTS 1", "RESET", "FORGET x", "FAILOVER", "SETSLOT 1 STABLE"):
        assert refused(client, f"CLUSTER {word}")
    for word in ("SLOTS", "NODES", "INFO", "MYID", "KEYSLOT key"):
        assert not refused(client, f"CLUSTER {word}")


def test_a_write_is_verified_as_a_client_would_and_as_the_internal_user(yard: Yard) -> None:
    node = started(yard, yard.node())
    address = Address(ip=node.ip, port=node.port)
    asyncio.run(check_write(address, SECRET))
    asyncio.run(check_write(address, None))
    with pytest.raises(RedisError):
        asyncio.run(check_write(address, "wrong"))
    assert yard.redis(node).dbsize() == 0


def test_we_flush_by_the_new_name(yard: Yard) -> None:
    node = started(yard, yard.node(rename_commands={"flushall": "wipe"}))
    yard.redis(node).set("key", "value")

    async def wipe() -> None:
        address = Address(ip=node.ip, port=node.port)
        async with Link(address, SECRET, renamed=node.settings.rename_commands) as link:
            await flush(link)

    asyncio.run(wipe())
    until(lambda: yard.redis(node).dbsize() == 0, seconds=20, what="the keys to be gone")


def test_a_replica_that_is_in_sync_has_just_told_its_master_so(yard: Yard) -> None:
    """By itself it does so once a second, and its master may wait for that with what is new."""
    master = started(yard, yard.node())
    replica = started(yard, yard.node(replica_of=master))
    link_to = {node.ip: partial(Link, Address(node.ip, node.port), SECRET) for node in (master, replica)}

    async def asked(times: int) -> float:
        async with link_to[replica.ip]() as one, link_to[master.ip]() as other:
            while not await is_fed(one, other):
                await asyncio.sleep(0.01)
            began = time.monotonic()
            for _ in range(times):
                assert await is_fed(one, other)
            return time.monotonic() - began

    def told() -> int:
        info: Any = yard.redis(master).info("commandstats")
        return int(info["cmdstat_replconf"]["calls"])

    asyncio.run(asked(1))
    before = told()
    took = asyncio.run(asked(50))
    until(lambda: told() >= before + 50, seconds=5, what="the master to hear of it each time")
    assert took < 25, "it could have told so often by itself"


class Forking(Link):
    """Has the server fork right before it takes an address the first time."""

    tries = 0

    async def call(self, *words: str | int, seconds: float | None = None) -> Any:
        if words[:3] != ("CONFIG", "SET", "bind"):
            return await super().call(*words, seconds=seconds)
        self.tries += 1
        return (await self.calls((("BGSAVE",), words) if self.tries == 1 else (words,)))[-1]


def test_a_server_that_forks_while_it_takes_an_address_listens_nevertheless(yard: Yard) -> None:
    """The child still holds the sockets: the server cannot open them, and would be out of reach."""
    node, floating = started(yard, yard.node()), yard.new_ip()
    if version(yard) < (7, 0, 0):
        return  # it ends then, and is started again

    async def listening_after(bind: tuple[str, ...]) -> tuple[int, set[str]]:
        async with Forking(Address(node.ip, node.port), SECRET) as link:
            await promote(link, bind)
            found = {ip for ip in (node.ip, floating) if await listens(Address(ip, node.port))}
            while "rdb_bgsave_in_progress:1" in await link.call("INFO", "persistence"):
                await asyncio.sleep(0.002)
            return link.tries, found

    failed = 0
    for number in range(200):  # every second time the child has closed them already
        wanted = (node.ip, floating) if number % 2 == 0 else (node.ip,)
        tries, found = asyncio.run(listening_after(wanted))
        assert found == set(wanted)
        failed += tries > 1
        if failed == 3:
            break
    assert failed


def test_a_server_that_has_lost_its_sockets_opens_them_again(yard: Yard) -> None:
    """It still answers the agent, and says that it listens where it should."""
    node = started(yard, yard.node())
    if version(yard) < (7, 0, 0):
        return  # it ends then, and is started again
    own = Address(node.ip, node.port)

    async def lose() -> None:
        async with Link(own, SECRET) as link:
            while await listens(own):
                with suppress(ResponseError):
                    await link.calls((("BGSAVE",), ("CONFIG", "SET", "bind", node.ip)))

    pid = yard.redis(node).info("server")["process_id"]
    asyncio.run(lose())
    yard.settled(yard.want(node, settings={"maxclients": 777}))
    assert asyncio.run(listens(own))
    assert yard.redis(node).info("server")["process_id"] == pid


def test_what_answers_where_no_answer_was_expected_answers_no_other_question(yard: Yard) -> None:
    node = started(yard, yard.node())

    async def ask() -> str:
        async with Link(Address(node.ip, node.port), SECRET) as link:
            with pytest.raises(ResponseError):
                await link.tell("REPLCONF", "no-such-thing", "1")
            return str(await link.call("ECHO", "hello"))

    assert asyncio.run(ask()) == "hello"


def test_a_broken_binary_is_left_out(tmp_path: Path) -> None:
    for name, content in (("silent", "#!/bin/sh\n"), ("broken", "no program")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    extra = os.pathsep.join([str(tmp_path / "silent"), str(tmp_path / "broken"), str(tmp_path / "absent")])
    found = [engine.binary for engine in find.engines({"PATH": "", "CACHEYARD_ENGINES": extra})]
    assert not [binary for binary in found if binary.startswith(str(tmp_path))]


def test_what_the_machine_lacks_is_said_in_a_sentence() -> None:
    for ability in find.abilities():
        assert ability.detail
        assert ability.found or ability.without.endswith(".")
