"""Slots move between real servers with all their keys, whatever state somebody left them in."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from support import servers
from support.bare_cluster import PORT, BareCluster, bare_cluster
from support.waiting import until
from support.yard import SECRET

from cacheyard.domain import slots
from cacheyard.domain.nodes import Node, Role
from cacheyard.engine.lane import Lane
from cacheyard.engine.masters import Master, Masters, NotYet, assign, check, stable
from cacheyard.engine.slots import Mover, NotMoved

TYPES = (
    ("string", ("SET", "v" * 100)),
    ("number", ("SET", "12")),
    ("list", ("RPUSH", *map(str, range(50)))),
    ("hash", ("HSET", *(word for n in range(300) for word in (f"f{n}", f"v{n}")))),
    ("set", ("SADD", *map(str, range(40)))),
    ("zset", ("ZADD", *(word for n in range(200) for word in (str(n), f"m{n}")))),
    ("stream", ("XADD", "1-1", "field", "value")),
)
# Keys that look like what the mover reads and sends, if it looked into them.
ODD = (
    b"",
    b"\r\n",
    b"\x00\xff\xfe",
    b"*1\r\n$4\r\nPING\r\n",
    b"$32\r\n00000000000000000000000000000000\r\n",
    b"+OK\r\n-ERR\r\n",
    "ключ-鍵".encode(),
    b"k" * 70_000,
)


KEYS = 30_000


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    """Three shards with all slots and one without; each test gives back what it moved."""
    with bare_cluster(tmp_path_factory.mktemp("four"), servers.NEWEST, shards=3, empty=1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "four" in request.fixturenames:
        cluster: BareCluster = request.getfixturevalue("four")
        settle(cluster, cluster.old)
        for name in cluster.names:
            cluster.master(name).flushall()


def settle(cluster: BareCluster, keep: list[str]) -> None:
    """As a task does it."""
    asyncio.run(_with_mover(cluster, lambda mover: mover.settle(keep)))


def heal(cluster: BareCluster) -> None:
    """Moves that were begun are done."""
    asyncio.run(_with_mover(cluster, lambda mover: mover.stable()))


async def _with_mover(cluster: BareCluster, act) -> None:  # type: ignore[no-untyped-def]
    async with Mover(cluster.shards, cluster.link, SECRET) as mover:
        await act(mover)


def fill(client: Any, numbers: range) -> None:
    """A key for each number."""
    pipeline = client.pipeline()
    for number in numbers:
        pipeline.set(f"key:{number}", f"value {number}")
    pipeline.execute()


def wrong(client: Any, numbers: range) -> list[tuple[int, bytes | None]]:
    """The numbers whose keys are not what they were made."""
    pipeline = client.pipeline()
    for number in numbers:
        pipeline.get(f"key:{number}")
    found = zip(numbers, pipeline.execute(), strict=True)
    return [(number, value) for number, value in found if value != f"value {number}".encode()]


def whole(cluster: BareCluster) -> list[int]:
    """How many slots each shard has; all living nodes say the same, and no slot is open."""
    seen = cluster.seen()
    views = {
        tuple(sorted((member.engine_id, member.slots) for member in view if member.slots)) for view in seen
    }
    assert len(views) == 1, views
    for view in seen:
        [me] = [member for member in view if "myself" in member.flags]
        assert not me.importing, me
        assert not me.migrating, me
    shares = dict.fromkeys(cluster.names, 0)
    names = {node.engine_id: node.shard_id for node in cluster.nodes}
    for engine_id, ranges in views.pop():
        shares[names[engine_id]] += sum(last - first + 1 for first, last in ranges)
    return list(shares.values())


def test_all_kinds_of_keys_move_with_all_that_is_theirs(four: BareCluster) -> None:
    client = four.everywhere()
    for number in range(300):
        for kind, (command, *words) in TYPES:
            client.execute_command(command, f"{kind}:{number}", *words)
        client.set(f"ttl:{number}", "x", px=600_000)
        client.set(f"soon:{number}", "x", px=1 + number)  # gone before, while, or after it is moved
    for key in ODD:
        client.set(key, key)
    dumps = {
        key: client.dump(key)
        for number in range(300)
        for kind, _ in TYPES
        for key in [f"{kind}:{number}".encode()]
    }
    for keep in (four.names, four.old):
        settle(four, keep)
        assert whole(four) == ([4096] * 4 if keep == four.names else sorted_shares(four))
        for key, dump in dumps.items():
            assert client.dump(key) == dump, key
        for key in ODD:
            assert client.get(key) == key
        for number in range(300):
            assert 500_000 < client.pttl(f"ttl:{number}") <= 600_000
    until(lambda: not any(client.exists(f"soon:{number}") for number in range(300)), seconds=5, what="expiry")
    assert sum(four.master(name).dbsize() for name in four.names) == len(dumps) + len(ODD) + 300


def sorted_shares(cluster: BareCluster) -> list[int]:
    """What three shards have of all slots, and the fourth nothing; who has one more does not matter."""
    shares = whole(cluster)
    assert sorted(shares) == [0, 5461, 5461, 5462]
    assert shares[-1] == 0
    return shares


def test_nobody_sees_the_internal_password(four: BareCluster) -> None:
    client = four.everywhere()
    fill(client, range(1000))
    masters = [four.master(name) for name in four.names]
    for master in masters:
        master.config_set("slowlog-log-slower-than", 0)
        master.config_set("slowlog-max-len", 20_000)
    heard: list[str] = []
    watching: Any = redis.Redis(host=four.shards[four.old[0]][0].ip, port=PORT, decode_responses=True)
    with watching.monitor() as monitor:
        done = threading.Event()
        thread = threading.Thread(target=_listen, args=(monitor, heard, done))
        thread.start()
        settle(four, four.names)
        done.set()
        four.master(four.old[0]).ping()
        thread.join(10)
    log = [str(entry) for master in masters for entry in master.slowlog_get(20_000)]
    for master in masters:
        master.config_set("slowlog-log-slower-than", 10_000)
        master.slowlog_reset()
    watching.close()
    assert any("MIGRATE" in line for line in heard)
    assert any("MIGRATE" in line for line in log)
    assert not [line for line in (*heard, *log) if SECRET in line]


def _listen(monitor, heard: list[str], done: threading.Event) -> None:  # type: ignore[no-untyped-def]
    for said in monitor.listen():
        heard.append(said["command"])
        if done.is_set():
            return


def test_moves_that_were_left_undone_are_done(four: BareCluster) -> None:
    """In each state in which a mover, a source or a target may have died."""
    source, target = four.master(four.old[0]), four.master(four.new[0])
    ids = [str(four.shards[name][0].engine_id) for name in (four.old[0], four.new[0])]
    slot_of: dict[str, int] = {}
    keys: dict[int, list[str]] = {}
    for number in range(200_000):
        key = f"key:{number}"
        if (slot := key_slot(key.encode())) < 9:
            keys.setdefault(slot, []).append(key)
            slot_of[key] = slot
        if len(keys) == 9 and all(len(some) >= 4 for some in keys.values()):
            break
    for key in slot_of:
        source.set(key, "old")
    taken = {slot: some[: len(some) // 2] for slot, some in keys.items()}

    def importing(slot: int) -> None:
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])

    def migrating(slot: int) -> None:
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])

    def take(slot: int, *more: str) -> None:
        to = four.shards[four.new[0]][0].ip
        source.execute_command("MIGRATE", to, PORT, "", 0, 1000, *more, "KEYS", *taken[slot])

    def forgotten(which: Any, slot: int) -> None:
        which.execute_command("CLUSTER SETSLOT", slot, "STABLE")

    # 0: only the target knows. 1: half of the keys have gone. 2: all have.
    for slot in range(1, 9):
        importing(slot)
        migrating(slot)
    importing(0)
    for slot in (1, 3, 4, 5, 7):
        take(slot)
    for slot in (2, 6):
        taken[slot] = keys[slot]
        take(slot)
    # 3: the target was replaced, 4: the source was, 5: both were; nobody knows that keys are elsewhere.
    for slot in (3, 5):
        forgotten(target, slot)
    for slot in (4, 5):
        forgotten(source, slot)
    # 6: the target has it, the source was not told.
    target.execute_command("CLUSTER SETSLOT", 6, "NODE", ids[1])
    # 7: a client has written again what had gone, as the source was replaced: what it wrote counts.
    forgotten(source, 7)
    for key in taken[7]:
        source.set(key, "new")
    # 8: both have keys, as the source heard of no success.
    taken[8] = keys[8]
    take(8, "COPY")
    for key in taken[8]:
        source.set(key, "new")

    heal(four)
    shares = whole(four)
    assert shares[-1] == 9
    client = four.everywhere()
    for key, slot in slot_of.items():
        newer = slot == 8 or (slot == 7 and key in taken[7])
        assert client.get(key) == (b"new" if newer else b"old"), (slot, key)
    assert target.dbsize() == len(slot_of)


def test_a_target_without_memory_is_given_up_and_nothing_is_lost(four: BareCluster) -> None:
    client = four.everywhere()
    fill(client, range(3000))
    full = four.master(four.new[0])
    full.config_set("maxmemory", full.info("memory")["used_memory"] + 60_000)
    try:
        with pytest.raises(NotMoved, match="no memory left"):
            settle(four, four.names)
        full.config_set("maxmemory", 1)  # what it uses for itself goes up and down: there might be room again
        with pytest.raises(NotMoved, match="no memory left"):
            heal(four)
        asyncio.run(_with_mover(four, lambda mover: mover.turn_back()))
        whole(four)
        assert not wrong(client, range(3000))
        settle(four, four.old)
    finally:
        full.config_set("maxmemory", 0)
    sorted_shares(four)
    assert full.dbsize() == 0
    assert not wrong(client, range(3000))


def test_keys_that_nobody_knows_to_be_elsewhere_go_back_if_they_must(four: BareCluster) -> None:
    """What is turned back: of keys that both have, the source's counts."""
    source, target = (four.shards[name][0] for name in (four.old[0], four.new[0]))
    keys = [key for number in range(400_000) if key_slot((key := f"key:{number}").encode()) == 5][:6]
    for key in keys:
        four.redis(source).set(key, "old")
    four.redis(target).execute_command("CLUSTER SETSLOT", 5, "IMPORTING", source.engine_id)
    four.redis(source).execute_command("CLUSTER SETSLOT", 5, "MIGRATING", target.engine_id)
    for more, some in (((), keys[:2]), (("COPY",), keys[2:4])):
        four.redis(source).execute_command("MIGRATE", target.ip, PORT, "", 0, 1000, *more, "KEYS", *some)
    for key in keys[2:4]:
        four.redis(source).set(key, "new")
    asyncio.run(_with_mover(four, lambda mover: mover.turn_back()))
    assert whole(four)[-1] == 0
    assert four.redis(target).dbsize() == 0
    assert [four.redis(source).get(key) for key in keys] == ["old", "old", "new", "new", "old", "old"]


BUMP = "CLUSTER BUMPEPOCH"  # says STILL if it has the newest epoch, else BUMPED


def test_a_source_that_claims_its_slots_anew_meanwhile_costs_no_key(
    four: BareCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it has not been told that slots have gone, its next word takes them back from a target whose
    claim is older, and the target deletes their keys."""
    client, take, claimed = four.everywhere(), Masters.take, list[str]()
    fill(client, range(3000))

    async def claim(masters: Masters, source: Master, target: Master, opened: Sequence[int]) -> None:
        if len(claimed) < 3:
            claimed.append(str(four.master(source.shard).execute_command(BUMP)))
        await take(masters, source, target, opened)

    monkeypatch.setattr(Masters, "take", claim)
    settle(four, four.names)
    whole(four)
    assert not wrong(client, range(3000))
    assert any("BUMPED" in said for said in claimed)


def test_no_slot_leaves_a_master_that_shares_its_epoch_with_another(
    four: BareCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them takes a newer one as soon as it hears of the other, whatever is going on."""
    client, take, shared = four.everywhere(), Masters.take, list[str]()
    fill(client, range(3000))

    def epoch_of(name: str, which: str = "my") -> int:
        return int(four.master(name).cluster("INFO")[f"cluster_{which}_epoch"])

    async def look(masters: Masters, source: Master, target: Master, opened: Sequence[int]) -> None:
        epochs = {name: epoch_of(name) for name in four.names}
        mine = epochs.pop(source.shard)
        shared.extend(name for name, epoch in epochs.items() if epoch == mine)
        await take(masters, source, target, opened)

    monkeypatch.setattr(Masters, "take", look)
    one, other, third = four.old

    def share() -> bool:
        """Both take the next one, before one can hear of the other's."""
        four.master(third).execute_command(BUMP)
        newest = {epoch_of(third)}

        def heard() -> bool:
            return {epoch_of(name, "current") for name in (one, other)} == newest

        until(heard, seconds=20, what="gossip")
        four.master(one).execute_command(BUMP)
        four.master(other).execute_command(BUMP)
        return epoch_of(one) == epoch_of(other)

    until(share, seconds=20, what="two masters to share an epoch")
    settle(four, four.names)
    assert shared == []
    whole(four)
    assert len({epoch_of(name) for name in four.names}) == len(four.names)
    assert not wrong(client, range(3000))


def test_no_slot_leaves_a_master_while_it_takes_others(
    four: BareCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes slots claims all its slots anew."""
    client, run, running, most = four.everywhere(), Lane.run, set[Lane](), list[int]()
    fill(client, range(3000))

    async def counted(lane: Lane) -> None:
        running.add(lane)
        most.append(len(running))
        await run(lane)
        running.remove(lane)

    monkeypatch.setattr(Lane, "run", counted)
    one, other = four.old[:2]
    there = [(slots.balanced(len(four.old))[number][0], name) for number, name in enumerate((one, other))]
    for (slot, source), target in zip(there, (other, one), strict=True):
        ids = [four.shards[name][0].engine_id for name in (source, target)]
        four.master(target).execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        four.master(source).execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
    heal(four)
    assert most == [1, 1]
    whole(four)
    for (slot, _), target in zip(there, (other, one), strict=True):
        assert slot in slots_of(four, target)
    assert not wrong(client, range(3000))


def test_no_slot_leaves_a_master_while_one_counts_as_failed(
    four: BareCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes back may just be replaced: what it takes meanwhile its successor does not know of."""
    client, take, failed = four.everywhere(), Masters.take, list[set[str]]()
    fill(client, range(3000))

    def flagged() -> set[str]:
        return {member.engine_id for view in four.seen() for member in view if "fail" in member.flags}

    async def look(masters: Masters, source: Master, target: Master, opened: Sequence[int]) -> None:
        with ThreadPoolExecutor(1) as beside:
            failed.append(await asyncio.wrap_future(beside.submit(flagged)))
        await take(masters, source, target, opened)

    monkeypatch.setattr(Masters, "take", look)
    hung = four.shards[four.old[1]][0]
    for name in four.names:
        four.master(name).config_set("cluster-node-timeout", 1000)
    try:
        os.kill(four.pid(hung), signal.SIGSTOP)
        nodes = partial(four.master(four.old[0]).cluster, "NODES")
        until(
            lambda: nodes()[f"{hung.ip}:{PORT}"]["flags"] == "master,fail",
            seconds=20,
            what="it to count as failed",
        )
    finally:
        os.kill(four.pid(hung), signal.SIGCONT)
    assert flagged() == {hung.engine_id}
    settle(four, four.names)
    for name in four.names:
        four.master(name).config_set("cluster-node-timeout", 15_000)
    assert failed
    assert not set().union(*failed)
    whole(four)
    assert not wrong(client, range(3000))


def test_a_target_that_once_heard_of_another_owner_keeps_what_it_takes(
    four: BareCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7.0.15 remembers of a slot that its owner, as it was told, does not claim it. Taking it before it
    has heard an owner claim it, it gives it to the next who does, be the claim ever so old, and deletes its
    keys: to its source, if a word of that has just been on its way."""
    client, take, tell = four.everywhere(), Masters.take, Masters.tell
    fill(client, range(3000))
    target = four.new[0]
    epochs = {name: int(four.master(name).cluster("INFO")["cluster_my_epoch"]) for name in four.old}
    source, *_, other = sorted(four.old, key=epochs.__getitem__)  # whose claims would not count for more
    owned = {name: slots_of(four, name) for name in four.names}
    going = [slot for slot, shard, _ in slots.moves(owned, four.names) if shard == source]
    at_once = list[Sequence[int]]()

    def told(name: str) -> Any:
        """The target is told whose those slots are. What it saw before."""
        pipeline = four.master(target).pipeline(transaction=False).cluster("NODES")
        for slot in going:
            pipeline.cluster("SETSLOT", slot, "NODE", four.shards[name][0].engine_id)
        return pipeline.execute()[0]

    def speaks(name: str, counted: str, by: str, times: int) -> None:
        """That shard's master says to the target what it claims. Waits until that was sent, or received."""

        def messages() -> int:
            return int(four.master(by).cluster("INFO").get(f"cluster_stats_messages_meet_{counted}", 0))

        def enough() -> bool:
            four.master(name).cluster("MEET", four.shards[target][0].ip, PORT)
            return messages() >= before + times

        before = messages()
        until(enough, seconds=20, what="the message")

    def remembers() -> bool:
        told(other)
        speaks(other, "received", by=target, times=2)  # the first may have been on its way before
        seen = told(source)[f"{four.shards[other][0].ip}:{PORT}"]["slots"]
        return any(int(first) <= going[0] <= int(last) for first, *_, last in seen)

    async def claim(masters: Masters, master: Master, commands: Iterable[bytes]) -> list[bytes]:
        pid = four.pid(four.shards[target][0])
        os.kill(pid, signal.SIGSTOP)
        try:
            asked = asyncio.create_task(tell(masters, master, commands))
            await asyncio.sleep(0)  # it is written
            speaks(source, "sent", by=source, times=1)
        finally:
            os.kill(pid, signal.SIGCONT)
        return await asked

    async def first(masters: Masters, from_: Master, to: Master, opened: Sequence[int]) -> None:
        with monkeypatch.context() as patched:
            if from_.shard == source and not at_once:
                at_once.append(opened)
                await masters._outrank(from_, to)
                patched.setattr(Masters, "_outrank", _no_matter)
                patched.setattr(Masters, "tell", claim)
            await take(masters, from_, to, opened)

    monkeypatch.setattr(Masters, "take", first)
    until(remembers, seconds=20, what="the target not to have heard from the source meanwhile")
    settle(four, four.names)
    assert at_once
    whole(four)
    assert not wrong(client, range(3000))


async def _no_matter(_: Masters, _source: Master, _target: Master) -> None:
    pass


def slots_of(cluster: BareCluster, name: str) -> list[int]:
    """By the word of the shard's first node."""
    [me] = [m for m in cluster.seen()[cluster.nodes.index(cluster.shards[name][0])] if "myself" in m.flags]
    return slots.of(me.slots)


def test_who_is_told_to_stop_leaves_no_slot_open(four: BareCluster) -> None:
    client = four.everywhere()
    fill(client, range(KEYS))

    async def stopped() -> None:
        async with Mover(four.shards, four.link, SECRET) as mover:
            task = asyncio.create_task(mover.settle(four.names))
            while four.master(four.new[0]).dbsize() < 1000:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(stopped())
    shares = whole(four)
    assert 0 < shares[-1] < 4096
    assert sum(four.master(name).dbsize() for name in four.names) == KEYS


# redis-py does not find a node that it is sent to (ASK) if that had no slots yet (its issue 4015).
PASSING = (redis.RedisError, AttributeError)


class Writer(threading.Thread):
    """Writes each key once, one after the other, reads some back, and knows what was acknowledged."""

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(daemon=True)
        self.client, self.prefix = client, name
        self.written = 0
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self.longest = 0.0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            number, began = self.written, time.monotonic()
            while not self.stop.is_set():
                try:
                    self.client.set(f"{self.prefix}:{number}", number)
                    break
                except PASSING as error:
                    self.failed.append(repr(error))
                    time.sleep(0.001)
            else:
                return
            self.written += 1
            self.longest = max(self.longest, time.monotonic() - began)
            if number % 3 == 0:
                try:
                    if (found := self.client.get(f"{self.prefix}:{number // 2}")) != str(
                        number // 2
                    ).encode():
                        self.wrong.append(f"{self.prefix}:{number // 2} is {found!r}")
                except PASSING as error:
                    self.failed.append(repr(error))


def test_clients_that_write_all_the_time_find_all_they_wrote(four: BareCluster) -> None:
    writers = [Writer(four.everywhere(), f"w{number}") for number in range(2)]
    for writer in writers:
        writer.start()
    for keep in (four.names, four.old, four.names, four.old):
        settle(four, keep)
    for writer in writers:
        writer.stop.set()
        writer.join(10)
    client = four.everywhere()
    for writer in writers:
        assert all("AttributeError" in failed for failed in writer.failed), writer.failed
        assert not writer.wrong
        assert writer.longest < 1.0
        for number in range(writer.written):
            assert client.get(f"{writer.prefix}:{number}") == str(number).encode(), (writer.prefix, number)


@pytest.mark.parametrize("dies", ["source", "target"])
def test_a_master_that_is_replaced_meanwhile_costs_no_key_that_its_replica_has(
    tmp_path: Path, dies: str
) -> None:
    """What it had not passed on when it died is lost as ever: replication is asynchronous."""
    with bare_cluster(tmp_path, servers.NEWEST, shards=3, empty=1, replicas=1) as cluster:
        client = cluster.everywhere()
        fill(client, range(KEYS))
        for node in cluster.nodes:
            if node.role is Role.MASTER and node.shard_id in cluster.old:
                assert cluster.redis(node).wait(1, 5000) == 1
        with ThreadPoolExecutor(1) as beside:
            settling = beside.submit(settle, cluster, cluster.names)
            new = cluster.master(cluster.new[0])
            until(lambda: new.dbsize() > KEYS // 16, seconds=20, what="keys to be under way", pause=0.001)
            master, replica = cluster.shards[cluster.old[1] if dies == "source" else cluster.new[0]]
            cluster.kill_node(master)
            lost = replace(cluster, replica)
            settling.result(90)
        assert whole(cluster) == [4096] * 4
        assert {number for number, _ in wrong(client, range(KEYS))} == lost
        # the dead one comes back as what it was, knowing of open slots, and has lost all to two others
        cluster.start_node(master)
        heal(cluster)
        until(lambda: link_of(cluster, master) == "up", seconds=30, what="the dead one to be a replica")
        assert whole(cluster) == [4096] * 4
        assert {number for number, _ in wrong(client, range(KEYS))} == lost


def replace(cluster: BareCluster, replica: Node) -> set[int]:
    """A replica takes the place of its dead master, once it has read all that this one sent: what it had not,
    it would throw away. The numbers whose keys nobody has then."""
    until(lambda: link_of(cluster, replica) == "down", seconds=20, what="the replica to miss its master")
    there: set[str] = set()
    for node in cluster.nodes:
        if node is replica or node.role is Role.MASTER:
            with suppress(redis.ConnectionError):  # the dead one
                there.update(cluster.redis(node).keys())
    cluster.redis(replica).execute_command("CLUSTER FAILOVER", "TAKEOVER")
    return {number for number in range(KEYS) if f"key:{number}" not in there}


class MoverDied(Exception):  # noqa: N818 - read as what happened
    """Whoever goes on knows nothing of what it did."""


@pytest.mark.parametrize("with_it", ["nobody", "mover"])
def test_slots_whose_master_died_before_it_told_anybody_are_its_successors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_it: str
) -> None:
    """It has said yes to the mover, who then told the source: nobody claims those slots any more."""
    with bare_cluster(tmp_path, servers.NEWEST, shards=3, empty=1, replicas=1) as cluster:
        client = cluster.everywhere()
        fill(client, range(KEYS))
        master, replica = cluster.shards[cluster.new[0]]
        first, following = cluster.redis(master), cluster.redis(replica)
        take, taken, lost = Masters.take, list[int](), set[int]()

        def passed_on() -> bool:
            sent: int = first.info("replication")["master_repl_offset"]
            return bool(sent == following.info("replication")["slave_repl_offset"])

        async def yes(_: Masters, _master: Master, commands: Iterable[bytes]) -> list[bytes]:
            return [b"+OK" for _ in commands]

        async def die(masters: Masters, source: Master, target: Master, opened: Sequence[int]) -> None:
            taken.append(len(opened))
            if len(taken) != 3:
                await take(masters, source, target, opened)
                return
            until(passed_on, seconds=20, what="the replica to have all keys")
            cluster.kill_node(master)
            with monkeypatch.context() as patched:
                patched.setattr(Masters, "_outrank", _no_matter)
                patched.setattr(Masters, "tell", yes)
                await take(masters, source, target, opened)
            lost.update(replace(cluster, replica))
            if with_it == "mover":
                for one in (await masters.of(cluster.old)).values():
                    await masters.tell(one, [assign(slot, "NODE", target) for slot in opened])
                raise MoverDied

        monkeypatch.setattr(Masters, "take", die)
        if with_it == "mover":
            with pytest.raises(ExceptionGroup):
                settle(cluster, cluster.names)
        settle(cluster, cluster.names)
        assert len(taken) > 3
        assert whole(cluster) == [4096] * 4
        assert {number for number, _ in wrong(client, range(KEYS))} == lost


@contextmanager
def growing(directory: Path) -> Iterator[BareCluster]:
    """One shard with all slots and keys, one without, and a replica for each: so there is one source."""
    with bare_cluster(directory, servers.NEWEST, shards=1, empty=1, replicas=1) as cluster:
        fill(cluster.everywhere(), range(KEYS))
        yield cluster


async def take_quietly(
    take: Any, masters: Masters, source: Master, target: Master, opened: Sequence[int], replica: Any
) -> None:
    """The target takes slots, of which its replica has all keys, and does not tell anybody as it should."""
    offset = {"master": "master_repl_offset", "slave": "slave_repl_offset"}

    def said(client: Any) -> int:
        info = client.info("replication")
        return int(info[offset[info["role"]]])

    with redis.Redis(host=target.address.ip, port=PORT) as client:
        until(lambda: said(client) == said(replica), seconds=20, what="the replica to have all keys")
    check(await masters.tell(target, [stable(slot) for slot in opened]))
    await take(masters, source, target, opened)


@pytest.mark.parametrize("then", ["goes on", "comes back", "turns back"])
def test_a_master_beside_its_successor_has_keys_that_nobody_else_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """It hung, and was replaced, and came back in time to take slots of which the successor has not heard.
    Whichever of them has the newer claims, it is not alone."""
    with growing(tmp_path) as cluster:
        client = cluster.everywhere()
        first, successor = map(cluster.redis, cluster.shards[cluster.new[0]])
        take, taken, written = Masters.take, list[int](), list[str]()

        async def replaced(masters: Masters, source: Master, target: Master, opened: Sequence[int]) -> None:
            if len(taken) < 2 or written:
                await take(masters, source, target, opened)
                taken.append(len(opened))
                return
            await take_quietly(take, masters, source, target, opened, successor)
            successor.execute_command("CLUSTER FAILOVER", "TAKEOVER")
            until(lambda: successor.role()[0] == "master", seconds=20, what="a successor")
            keys = (f"only:{number}" for number in range(400_000))
            written.extend(islice((key for key in keys if key_slot(key.encode()) in opened), 20))
            for key in written:
                first.set(key, "here")
            if then != "goes on":
                raise MoverDied

        monkeypatch.setattr(Masters, "take", replaced)
        if then == "goes on":
            settle(cluster, cluster.names)
        else:
            with pytest.raises(ExceptionGroup):
                settle(cluster, cluster.names)
            assert [first.role()[0], successor.role()[0]] == ["master"] * 2
            if then == "turns back":
                asyncio.run(_with_mover(cluster, lambda mover: mover.turn_back()))
            else:
                settle(cluster, cluster.names)
        shares = whole(cluster)
        assert shares == [8192] * 2 if then != "turns back" else 0 < shares[-1] < 8192
        assert sorted([first.role()[0], successor.role()[0]]) == ["master", "slave"]
        assert not wrong(client, range(KEYS))
        assert len(written) == 20
        assert [client.get(key) for key in written] == [b"here"] * 20


def test_who_hung_takes_nothing_back_from_a_successor_that_had_not_heard_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took slots, told nobody, and hung; its successor got them and had heard nobody claim them."""
    monkeypatch.setattr("cacheyard.engine.masters.ANSWER_SECONDS", 1.0)
    with growing(tmp_path) as cluster:
        client = cluster.everywhere()
        master, replica = cluster.shards[cluster.new[0]]
        first, successor = cluster.redis(master), cluster.redis(replica)
        take, bequeath, taken, back = Masters.take, Masters._bequeath, list[int](), list[int]()

        async def hang(masters: Masters, source: Master, target: Master, opened: Sequence[int]) -> None:
            if len(taken) != 2:
                await take(masters, source, target, opened)
                taken.append(len(opened))
                return
            await take_quietly(take, masters, source, target, opened, successor)
            taken.append(len(opened))
            os.kill(cluster.pid(master), signal.SIGSTOP)
            successor.execute_command("CLUSTER FAILOVER", "TAKEOVER")
            until(lambda: successor.role()[0] == "master", seconds=20, what="a successor")

        async def come_back(
            masters: Masters, heirs: Mapping[int, tuple[str, str]], known: Mapping[str, Master]
        ) -> None:
            try:
                await bequeath(masters, heirs, known)
            except NotYet as done:
                if str(done) == "slots have a master again":
                    back.append(len(heirs))
                    os.kill(cluster.pid(master), signal.SIGCONT)
                    until(lambda: not claims(first), seconds=20, what="it to hear of its successor")
                raise

        monkeypatch.setattr(Masters, "take", hang)
        monkeypatch.setattr(Masters, "_bequeath", come_back)
        try:
            settle(cluster, cluster.names)
        finally:
            os.kill(cluster.pid(master), signal.SIGCONT)
        assert back
        assert back[0] >= taken[2]
        assert whole(cluster) == [8192] * 2
        assert not wrong(client, range(KEYS))


def claims(client: Any) -> list[Any]:
    """The ranges of slots that a master says it has."""
    [me] = [seen for seen in client.cluster("NODES").values() if "myself" in seen["flags"]]
    return list(me["slots"])


def link_of(cluster: BareCluster, node: Node) -> str | None:
    """A replica's link to its master; None: it is a master."""
    found: str | None = cluster.redis(node).info("replication").get("master_link_status")
    return found
