"""Clients as people have them, at the address of proxied instances: redis-py, redis-cli, redis-benchmark.

Nothing here knows of shards or replicas but where it says so. With read/write splitting a replica may
answer a moment late: what was written is read until it is there (`seen`).
"""

import asyncio
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
import redis.asyncio
from support.caches import PASSWORD, Cache, made
from support.proxied import FORMS, groups, of_role
from support.service import Service
from support.waiting import until

SOON = 10.0
KEYS = 500
BENCHMARKS = "ping,set,get,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,lrange,mset"


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    with Service(CACHEYARD_OVERCOMMIT="100") as service:
        yield service


@pytest.fixture(scope="module", params=FORMS)
def cache(request: pytest.FixtureRequest, yard: Service) -> Iterator[Cache]:
    with made(yard, name="front-1", **FORMS[request.param]) as cache:
        yield cache


@pytest.fixture
def front(cache: Cache) -> Cache:
    """Of each type, without a key."""
    with cache.client() as link:
        link.flushall()
        seen(link.dbsize, 0)
    return cache


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def link(request: pytest.FixtureRequest, front: Cache) -> Iterator[Any]:
    """A client that speaks the one protocol or the other."""
    with front.client(protocol=request.param) as link:
        yield link


def seen(ask: Callable[[], Any], wanted: Any) -> None:
    """Wait until that is what is answered."""
    until(lambda: ask() == wanted, seconds=SOON, what=f"{wanted!r} to be read")


def is_cluster(cache: Cache) -> bool:
    return bool(cache.show()["cache_mode"] == "proxy")


# --- redis-py -------------------------------------------------------------------------------------


def test_values_of_every_type(link: Any) -> None:
    link.set("text", "v" * 100_000, ex=100)
    link.hset("hash", mapping={"a": "1", "b": "2"})
    link.rpush("list", *"abc")
    link.sadd("set", "x", "y")
    link.zadd("sorted", {"one": 1, "two": 2.5})
    link.pfadd("log", *map(str, range(100)))
    link.geoadd("places", (13.36, 38.11, "Palermo"))
    link.setbit("bits", 7, 1)
    assert [link.incrby("number", 5), link.incrbyfloat("number", 0.5)] == [5, 5.5]
    seen(lambda: link.get("text"), "v" * 100_000)
    seen(lambda: 0 < link.ttl("text") <= 100, True)
    seen(lambda: link.hgetall("hash"), {"a": "1", "b": "2"})
    seen(lambda: link.lrange("list", 0, -1), ["a", "b", "c"])
    seen(lambda: set(link.smembers("set")), {"x", "y"})
    seen(lambda: [tuple(pair) for pair in link.zrange("sorted", 0, -1, withscores=True)][-1], ("two", 2.5))
    seen(lambda: link.pfcount("log"), 100)
    seen(lambda: link.geosearch("places", longitude=13, latitude=38, radius=99, unit="km"), ["Palermo"])
    seen(lambda: link.getbit("bits", 7), 1)
    seen(lambda: link.mget("text", "nothing", "number"), ["v" * 100_000, None, "5.5"])
    assert link.delete("text", "hash", "list", "nothing") == 3


def test_a_pipeline_answers_in_its_order(link: Any) -> None:
    with link.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.set(f"key:{number}", number)
            pipe.incr(f"key:{number}")
        pipe.lpush("key:0", "no list")
        assert pipe.execute(raise_on_error=False)[: 2 * KEYS : 2] == [True] * KEYS
    with link.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.incr(f"key:{number}")
        pipe.lpush("key:0", "no list")
        pipe.echo("last")
        *numbers, error, last = pipe.execute(raise_on_error=False)
    assert numbers == [number + 2 for number in range(KEYS)]
    assert isinstance(error, redis.ResponseError)
    assert str(error).startswith("WRONGTYPE")
    assert last == "last"


def test_a_transaction_is_done_whole_or_not_at_all(front: Cache, link: Any) -> None:
    with link.pipeline() as pipe:
        pipe.set("{t}a", 1).incr("{t}a").rpush("{t}b", "x").lrange("{t}b", 0, -1)
        assert pipe.execute() == [True, 2, 1, ["x"]]
    with link.pipeline() as pipe, front.client() as other:
        pipe.watch("{t}a")
        assert pipe.get("{t}a") == "2"
        other.incr("{t}a")
        pipe.multi()
        pipe.set("{t}a", "from what it was")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    seen(lambda: link.get("{t}a"), "3")

    def count(pipe: Any) -> None:
        pipe.multi()
        pipe.incr("{t}a")

    assert link.transaction(count, "{t}a") == [4]
    with link.pipeline() as pipe, pytest.raises(redis.ResponseError):
        pipe.set("{t}c", 1).execute_command("SET", "{t}d").execute()
    assert link.exists("{t}c", "{t}d") == 0
    if is_cluster(front):
        with link.pipeline() as pipe, pytest.raises(redis.ResponseError, match="hash to the same slot"):
            pipe.set("{t}c", 1).set("{u}c", 1).execute()
        seen(lambda: link.exists("{t}c"), 0)


def test_messages_reach_subscribers_at_any_proxy(front: Cache, link: Any) -> None:
    readers = [link.pubsub() for _ in range(6)]
    patterns = [link.pubsub() for _ in range(2)]
    try:
        for reader in readers:
            reader.subscribe("news")
        for reader in patterns:
            reader.psubscribe("n?ws")
        assert [message(reader) for reader in readers + patterns] == ["1"] * 8, "one subscription each"
        seen(lambda: dict(link.pubsub_numsub("news")), {"news": 6})
        for number in range(50):
            with front.client() as writer:
                writer.publish("news", number)
        for reader in readers + patterns:
            assert [message(reader) for _ in range(50)] == [str(number) for number in range(50)]
    finally:
        for reader in readers + patterns:
            reader.close()


def message(reader: Any) -> str:
    """The next one that a subscriber gets."""
    return str(until(lambda: reader.get_message(timeout=0.1), seconds=SOON, what="a message")["data"])


def test_commands_that_wait_hold_up_nobody(front: Cache, link: Any) -> None:
    told: dict[str, Any] = {}

    def wait(name: str, ask: Callable[[Any], Any]) -> None:
        with front.client() as waiter:
            told[name] = ask(waiter)

    asks: dict[str, Callable[[Any], Any]] = {
        "blpop": lambda waiter: waiter.blpop(["{w}list", "{w}other"], timeout=9),
        "blmove": lambda waiter: waiter.blmove("{w}from", "{w}to", timeout=9),
        "bzpopmin": lambda waiter: waiter.bzpopmin("{w}sorted", timeout=9),
        "xread": lambda waiter: waiter.xread({"{w}stream": "$"}, block=9000),
    }
    threads = [threading.Thread(target=wait, args=pair) for pair in asks.items()]
    for thread in threads:
        thread.start()
    until(lambda: waiting(front) == 4, seconds=SOON, what="four clients that wait", pause=0.05)
    assert link.blpop("{w}nothing", timeout=1) is None
    assert link.incr("number") == 1, "and others go on"
    link.rpush("{w}list", "a")
    link.rpush("{w}from", "b")
    link.zadd("{w}sorted", {"c": 1})
    link.xadd("{w}stream", {"d": "1"})
    for thread in threads:
        thread.join(SOON)
    assert list(told["blpop"]) == ["{w}list", "a"]
    assert told["blmove"] == "b"
    assert list(told["bzpopmin"]) == ["{w}sorted", "c", 1.0]
    assert told["xread"][0][1][0][1] == {"d": "1"}


def waiting(cache: Cache) -> int:
    """How many clients wait in servers."""
    total = 0
    for group in groups(cache):
        for master in of_role(group, "master"):
            with cache.client(host=master["replication_ip"], port=6379) as server:
                total += int(server.info("clients")["blocked_clients"])
    return total


def test_iterators_find_everything_once(link: Any) -> None:
    with link.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.set(f"scan:{number}", number)
            pipe.hset("hash", f"field:{number}", number)
            pipe.sadd("set", number)
            pipe.zadd("sorted", {str(number): number})
        pipe.execute()
    names = [str(number) for number in range(KEYS)]
    assert sorted(link.scan_iter("scan:*")) == sorted(f"scan:{name}" for name in names)
    assert sorted(link.scan_iter(count=1000, _type="hash")) == ["hash"]
    assert sorted(dict(link.hscan_iter("hash")).values()) == sorted(names)
    assert sorted(link.sscan_iter("set")) == sorted(names)
    assert sorted(name for name, _ in link.zscan_iter("sorted")) == sorted(names)
    seen(link.dbsize, KEYS + 3)
    seen(lambda: len(link.keys("scan:1*")), len([name for name in names if name.startswith("1")]))


def test_scripts(front: Cache, link: Any) -> None:
    add = link.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1]) + tonumber(ARGV[1])")
    assert [add(keys=["sum"], args=[2]), add(keys=["sum"], args=[2])] == [4, 6]
    with link.pipeline(transaction=False) as pipe:
        for name in ("a", "b", "c"):
            add(keys=[name], args=[1], client=pipe)
        assert pipe.execute() == [2, 2, 2]
    assert link.eval("return {KEYS[1], ARGV[1], {1, 'x'}}", 1, "k", "v") == ["k", "v", [1, "x"]]
    with pytest.raises(redis.ResponseError, match="wrong"):
        link.eval("return redis.error_reply('wrong')", 1, "k")
    if is_cluster(front):
        with pytest.raises(redis.ResponseError, match="numkeys must be bigger than zero"):
            link.eval("return 1", 0)
        with pytest.raises(redis.ResponseError, match="hash to the same slot"):
            link.eval("return 1", 2, "a", "b")
    else:
        assert link.eval("return 1", 0) == 1


def test_a_lock_is_held_by_one(front: Cache) -> None:
    """redis-py's, which is a key and scripts."""
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with front.client() as client:
            for _ in range(5):
                with client.lock("the lock", timeout=30, sleep=0.005):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0.002)
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, most) == (0, 1)


def test_a_stream_is_shared_by_a_group(front: Cache, link: Any) -> None:
    link.xgroup_create("stream", "group", id="0", mkstream=True)
    ids = [link.xadd("stream", {"number": str(number)}, maxlen=1000) for number in range(20)]
    taken: list[str] = []
    for name in ("one", "two"):
        with front.client(protocol=2) as consumer:
            ((_, entries),) = consumer.xreadgroup("group", name, {"stream": ">"}, count=10, block=1000)
            taken += [entry for entry, _ in entries]
    assert taken == ids
    assert link.xack("stream", "group", *ids[:15]) == 15
    seen(lambda: link.xpending("stream", "group")["pending"], 5)
    claimed = link.xautoclaim("stream", "group", "three", min_idle_time=0)
    assert [entry for entry, _ in claimed[1]] == ids[15:]
    seen(lambda: link.xinfo_groups("stream")[0]["consumers"], 3)
    seen(lambda: link.xlen("stream"), 20)
    assert link.xtrim("stream", maxlen=5, approximate=False) == 15


def test_the_asyncio_client(front: Cache) -> None:
    async def use(client: Any) -> None:
        await asyncio.gather(*(client.set(f"async:{number}", number) for number in range(200)))
        numbers = await asyncio.gather(*(client.incr(f"async:{number}") for number in range(200)))
        assert numbers == [number + 1 for number in range(200)]
        async with client.pipeline(transaction=True) as pipe:
            assert await pipe.set("{p}a", 1).incr("{p}a").execute() == [True, 2]
        async with client.pubsub(ignore_subscribe_messages=True) as reader:
            await reader.subscribe("news")
            while (await client.pubsub_numsub("news"))[0][1] == 0:
                await asyncio.sleep(0.01)
            await client.publish("news", "hello")
            while (told := await reader.get_message(timeout=1)) is None:
                pass
            assert told["data"] == "hello"
        waiter = asyncio.create_task(client.blpop("queue", timeout=9))
        await client.rpush("queue", "job")
        assert list(await waiter) == ["queue", "job"]
        assert len([key async for key in client.scan_iter("async:*")]) == 200

    async def with_time(work: Awaitable[None]) -> None:
        async with asyncio.timeout(30):
            await work

    shown = front.show()
    for protocol in (2, 3):

        async def run(protocol: int = protocol) -> None:
            async with redis.asyncio.Redis(
                host=shown["ip"],
                port=shown["port"],
                password=PASSWORD,
                protocol=protocol,
                decode_responses=True,
                max_connections=250,
            ) as client:
                await with_time(use(client))

        asyncio.run(run())


def test_databases(front: Cache) -> None:
    if is_cluster(front):
        with front.client(db=1) as link, pytest.raises(redis.ResponseError):
            link.ping()
        return
    with front.client(db=9) as ninth, front.client() as first:
        ninth.set("key", "of 9")
        seen(lambda: ninth.get("key"), "of 9")
        assert first.get("key") is None
        seen(lambda: set(first.info("keyspace")), {"db9"})
        ninth.flushdb()


def test_a_client_for_clusters_is_told_that_this_is_none(front: Cache) -> None:
    shown = front.show()
    with pytest.raises(redis.RedisClusterException):
        redis.RedisCluster(host=shown["ip"], port=shown["port"], password=PASSWORD)


def test_a_client_learns_who_it_is_and_who_else_is_there(front: Cache, link: Any) -> None:
    link.client_setname("somebody")
    assert link.client_getname() == "somebody"
    assert link.client_id() in {int(one["id"]) for one in link.client_list()}
    assert [one["name"] for one in link.client_list() if one["name"] == "somebody"] == ["somebody"]
    assert link.acl_whoami() == "default"
    with front.client() as other:
        address = next(one["addr"] for one in other.client_list() if one["name"] == "somebody")
        assert other.client_kill(address)
    until(lambda: broken(link), seconds=SOON, what="its connection to end")


def broken(link: Any) -> bool:
    """Whether the name is gone, and so the connection that had it."""
    with suppress(redis.ConnectionError):
        return link.client_getname() is None
    return True


# --- redis-cli and redis-benchmark ----------------------------------------------------------------


def command(cache: Cache, program: str, *words: str) -> list[str]:
    shown = cache.show()
    return [program, "-h", shown["ip"], "-p", str(shown["port"]), *words]


def cli(cache: Cache, *words: str, given: bytes | None = None) -> str:
    """What redis-cli prints."""
    done = subprocess.run(
        command(cache, "redis-cli", "--no-auth-warning", "-a", PASSWORD, *words),
        input=given,
        stdin=None if given is not None else subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize("protocol", ["-2", "-3"])
def test_the_cli_speaks_both_protocols(front: Cache, protocol: str) -> None:
    assert cli(front, protocol, "SET", "key", "value") == "OK\n"
    assert cli(front, protocol, "HSET", "hash", "field", "1") == "1\n"
    seen(lambda: cli(front, protocol, "GET", "key"), "value\n")
    seen(lambda: cli(front, protocol, "--no-raw", "GET", "nothing"), "(nil)\n")
    told = '["field","1"]\n' if protocol == "-2" else '{"field":"1"}\n'
    seen(lambda: cli(front, protocol, "--json", "HGETALL", "hash"), told)
    assert "redis_version:7" in cli(front, protocol, "INFO", "server")
    assert cli(front, protocol, "-c", "INCR", "number") == "1\n", "also one that would follow a cluster"
    told = cli(front, protocol, given=b"MULTI\nSET {t}a 1\nINCR {t}a\nEXEC\nNOSUCH\nGET\n")
    assert told.split("\n")[:5] == ["OK", "QUEUED", "QUEUED", "OK", "2"]
    assert "ERR unknown command 'NOSUCH'" in told
    assert "ERR wrong number of arguments for 'get' command" in told


def test_the_cli_walks_through_all_keys(front: Cache) -> None:
    with front.client() as link:
        link.mset({f"key:{number}": number for number in range(KEYS)})
        link.rpush("long list", *range(KEYS))
        link.set("large text", "x" * 10_000)
    assert len(cli(front, "--scan").split()) >= KEYS
    assert len(cli(front, "--scan", "--pattern", "key:1*").split()) == len(
        [number for number in range(KEYS) if str(number).startswith("1")]
    )
    told = cli(front, "--bigkeys")
    assert "large text" in told
    assert f"has {KEYS} items" in told
    assert "large text" in cli(front, "--memkeys")


def test_a_mass_of_commands_is_taken_in(front: Cache) -> None:
    """redis-cli --pipe sends all at once, and an ECHO last."""
    lines = [f"SET pipe:{number} {'x' * (1 + number % 300)}\r\n" for number in range(20_000)]
    told = cli(front, "--pipe", given="".join(lines).encode())
    assert "errors: 0, replies: 20000" in told
    seen(lambda: cli(front, "DBSIZE"), "20000\n")


def test_the_cli_watches(front: Cache) -> None:
    """MONITOR shows what clients of all proxies do; in front of a cluster it can be that of one shard."""
    with monitor(front) as lines, front.client() as link:
        until(
            lambda: link.set("watched", 1) and any('"watched"' in line for line in lines),
            seconds=SOON,
            what="it",
        )
    if is_cluster(front):
        node = of_role(groups(front)[0], "master")[0]["replication_ip"]
        with monitor(front, f"{node}:6379") as lines, front.client() as link:
            until(
                lambda: [link.set(f"key:{number}", 1) for number in range(20)] and len(lines) > 5,
                seconds=SOON,
                what="commands of that shard",
            )
            keys = {word for line in lines for word in line.split() if word.startswith('"key:')}
            assert 0 < len(keys) < 20


@contextmanager
def monitor(cache: Cache, *words: str) -> Iterator[list[str]]:
    """The lines that redis-cli prints under MONITOR, as they come."""
    lines: list[str] = []
    process = subprocess.Popen(
        command(cache, "redis-cli", "--no-auth-warning", "-a", PASSWORD, "MONITOR", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    out = process.stdout
    reader = threading.Thread(target=lambda: lines.extend(iter(out.readline, "")), daemon=True)
    reader.start()
    try:
        until(lambda: lines[:1] == ["OK\n"], seconds=SOON, what="MONITOR to begin")
        yield lines
    finally:
        process.kill()
        process.wait()
        reader.join(SOON)
        out.close()


def test_refusals_are_those_of_a_server_that_does_not_know_the_command(front: Cache) -> None:
    for words in (
        ["WAIT", "1", "10"],
        ["CONFIG", "SET", "maxmemory", "1"],
        ["SHUTDOWN"],
        ["DEBUG", "SLEEP", "1"],
    ):
        assert cli(front, *words).startswith(("ERR unknown", "ERR Unknown", "NOPERM")), words
    assert "disabled" in cli(front, "CLUSTER", "INFO")
    assert cli(front, "PING") == "PONG\n"


def test_redis_benchmark_runs(front: Cache) -> None:
    """Its MSET has keys of many slots."""
    words = ["-a", PASSWORD, "-n", "2000", "-c", "20", "-P", "8", "-r", "1000", "--csv", "-t", BENCHMARKS]
    done = subprocess.run(
        command(front, "redis-benchmark", *words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    measured = [line.split('"')[1] for line in done.stdout.splitlines()[1:]]
    assert len(measured) >= len(BENCHMARKS.split(",")), done.stdout
    assert "ERR" not in done.stdout + done.stderr
