"""Clients that write all the time, in a process of their own: nothing that a test does slows them down.

`Traffic` starts it. Run as a program it reads from its first argument what to write to, writes one
number after the other (`SET n:<lane>:<number> <number>`), each once, and goes on until its standard
input ends. Then it tells which writes were acknowledged, and when. A write that was not acknowledged
is not repeated: it may have happened or not, and is nobody's loss. What was acknowledged and is not
there afterwards is lost.

A lane is a client that waits for each answer. A cluster has one for each shard, behind proxies too, with
keys of that shard alone, so that one whose master is gone does not keep the others from writing. Clients try
again at once, with a new connection where the old one broke and without any pause of their own; what
lies between two acknowledged writes is the service's doing. They do not open a new connection when
a server answers with an error: one that may no longer be written to has to close it.
"""

import json
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import redis
import redis.cluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from support.waiting import until

from cacheyard.domain import flavors
from cacheyard.domain.slots import SLOTS, balanced

ANSWER_SECONDS = 0.25  # how long a client waits for a server that is there and silent
# Until the next try after an error. To find its way in a cluster anew costs redis-py some ms of processor.
AGAIN_SECONDS = {False: 0.002, True: 0.02}
START_SECONDS = 20.0
READ_AT_ONCE = 1000
# For redis-py it is no RedisError that no two nodes of a cluster agree; and it trips (AttributeError, #4015)
# over an ASK that names a node which has no slots yet.
PASSING = (redis.RedisError, RedisClusterException, OSError, AttributeError)
LAST_SECOND = 1.0  # only what was acknowledged so shortly before its server was struck may be lost,
IN_FLIGHT = 0.1  # or by the server before that, if the client read it later


@dataclass
class Lane:
    """What a lane has written: numbers and when they were acknowledged, in order."""

    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # time.monotonic(), the same in all processes
    errors: Counter[str] = field(default_factory=Counter)

    def gap(self, since: float, until: float) -> float:
        """The longest time without an acknowledged write."""
        inside = [since, *(at for at in self.times if since < at < until), until]
        return max(later - earlier for earlier, later in pairwise(inside))


@dataclass
class Lost:
    """A write that was acknowledged and is not there."""

    lane: int
    number: int
    at: float


def may_be_lost(at: float, struck: Iterable[float]) -> bool:
    """Whether what was acknowledged then may have been so by a server that had not passed it on when it was
    struck, at one of those times."""
    return any(moment - LAST_SECOND < at < moment + IN_FLIGHT for moment in struck)


@dataclass(frozen=True)
class Load:
    """How much is written. What it says of clients is per shard."""

    clients: int = 1
    pause: float = 0.001  # seconds between an answer and the next write
    batch: int = 1  # writes that a client sends at once
    size: int = 0  # bytes of each value, beside its number
    wait: int = 0  # replicas that must have a write before it counts as acknowledged; not in a cluster


GENTLE = Load()


class Traffic:
    """Writes to an instance from its making until `stop`."""

    def __init__(
        self, shown: dict[str, Any], password: str, *, load: Load = GENTLE, prefix: str = "n"
    ) -> None:
        self.lanes: list[Lane] = []
        flavor = flavors.find(shown["spec_code"])
        assert flavor is not None
        self._target = {
            "hosts": shown["ip"].split(","),
            "port": shown["port"],
            "password": password,
            "clustered": shown["cache_mode"] == "cluster",
            "shards": flavor.shards,
            "prefix": prefix,
            **asdict(load),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.traffic", json.dumps(self._target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        with ExitStack() as failed:
            failed.callback(self.close)
            self.flows(START_SECONDS)
            failed.pop_all()

    def flows(self, seconds: float, writes: int = 20) -> None:
        """Wait until every lane has had so many more writes acknowledged."""
        began = self._counts()

        def all_flow() -> bool:
            return all(now >= was + writes for now, was in zip(self._counts(), began, strict=True))

        until(all_flow, seconds=seconds, what=f"{writes} writes of each client", pause=0.01)

    def stop(self) -> "Traffic":
        """End the writing; what was written is known then."""
        told, _ = self._process.communicate(timeout=30)
        for numbers, times, errors in json.loads(told.splitlines()[-1]):
            self.lanes.append(Lane(numbers, [at / 1e6 for at in times], Counter(errors)))
        return self

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _counts(self) -> list[int]:
        """By lane: how many writes were acknowledged so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        counts: list[int] = json.loads(self._process.stdout.readline())
        return counts

    # --- What was seen, after `stop` -----------------------------------------------------------------

    @property
    def acknowledged(self) -> int:
        """How many writes."""
        return sum(len(lane.numbers) for lane in self.lanes)

    @property
    def errors(self) -> Counter[str]:
        """By kind."""
        return sum((lane.errors for lane in self.lanes), Counter[str]())

    def gap(self, since: float, until: float) -> float:
        """The longest time in which some lane had no write acknowledged, in seconds."""
        return max(lane.gap(since, until) for lane in self.lanes)

    def gaps(self, since: float, until: float) -> list[float]:
        """By lane; those of a shard stand together, shards in the order of their slots."""
        return [lane.gap(since, until) for lane in self.lanes]

    def lost(self, ip: str = "") -> list[Lost]:
        """All writes that were acknowledged and are not there. `ip`: where the instance is now, if it may be
        elsewhere."""
        prefix = self._target["prefix"]
        there = {"hosts": ip.split(",")} if ip else {}
        with client(self._target | there, patient=True) as reader:
            return [
                Lost(index, number, when)
                for index, lane in enumerate(self.lanes)
                for number, when, value in zip(
                    lane.numbers,
                    lane.times,
                    _values(reader, [key(prefix, index, number) for number in lane.numbers]),
                    strict=True,
                )
                if not value.startswith(f"{number}:")
            ]


def _values(reader: Any, keys: Sequence[str]) -> Iterable[str]:
    """How the values begin; empty where there is none."""
    for start in range(0, len(keys), READ_AT_ONCE):
        with pipeline(reader) as pipe:
            for name in keys[start : start + READ_AT_ONCE]:
                pipe.getrange(name, 0, 20)
            yield from pipe.execute()


def key(prefix: str, lane: int, number: int) -> str:
    """The key that stands for a number."""
    return f"{prefix}:{lane}:{number}"


def client(target: dict[str, Any], *, patient: bool = False) -> Any:
    """A client that hides no failure behind retries; `patient`: one that has time."""
    seconds = 10.0 if patient else ANSWER_SECONDS
    options: dict[str, Any] = {
        "password": target["password"] or None,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "decode_responses": True,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 3 if patient and target["clustered"] else 0),
    }
    hosts, port = target["hosts"], target["port"]
    if target["clustered"]:
        known = [ClusterNode(host, port) for host in hosts]  # type: ignore[no-untyped-call]
        return redis.RedisCluster(startup_nodes=known, require_full_coverage=False, **options)
    return redis.Redis(host=hosts[0], port=port, **options)


# --- The process that writes ----------------------------------------------------------------------


def write(
    target: dict[str, Any], slots: list[range], number: int, lane: Lane, ended: threading.Event
) -> None:
    """Be the lane of that number, with keys in these slots, until `ended`."""
    connection: Any = None
    names = numbers_of(slots, target["prefix"], number)
    padding = "x" * target["size"]
    while not ended.is_set():
        batch = [(one, name, f"{one}:{padding}") for one, name in islice(names, target["batch"])]
        try:
            connection = connection or client(target)
            send(connection, batch, target["wait"])
        except PASSING as error:
            lane.errors[kind(error)] += 1
            time.sleep(AGAIN_SECONDS[target["clustered"]])
            continue
        lane.times += [time.monotonic()] * len(batch)
        lane.numbers += [one for one, _, _ in batch]
        time.sleep(target["pause"])
    if connection is not None:
        connection.close()


def send(connection: Any, batch: list[tuple[int, str, str]], wait: int) -> None:
    """Write these, and return when all are acknowledged; raises when one is not."""
    if len(batch) == 1 and not wait:
        connection.set(*batch[0][1:])
        return
    with pipeline(connection) as pipe:
        for _, name, value in batch:
            pipe.set(name, value)
        if wait:
            pipe.execute_command("WAIT", wait, int(ANSWER_SECONDS * 500))
        told = pipe.execute()
    if wait and told[-1] < wait:
        raise OSError(f"only {told[-1]} replicas have it")


def pipeline(connection: Any) -> Any:
    """Commands that are sent together, and are no transaction."""
    return connection.pipeline(
        **({} if isinstance(connection, redis.RedisCluster) else {"transaction": False})
    )


def kind(error: BaseException) -> str:
    """`ReadOnlyError`, `ResponseError MISCONF`: what happened, without names and addresses."""
    first = str(error).split(" ")[0]
    return f"{type(error).__name__} {first}" if first.isupper() else type(error).__name__


def shards(target: dict[str, Any]) -> list[list[range]]:
    """Slots of each shard, in the order of the slots; a server that is no cluster has all of them. Proxies do
    not tell who has which: they are taken to be what they are in a new instance."""
    if not target["clustered"]:
        return [[range(first, last + 1)] for first, last in balanced(target["shards"])]
    with redis.Redis(
        host=target["hosts"][0],
        port=target["port"],
        password=target["password"] or None,
        decode_responses=True,
    ) as asked:
        ask: Any = asked.execute_command
        words = [line.split(" ") for line in ask("CLUSTER", "NODES").splitlines()]
    held = [[_range(word) for word in line[8:] if not word.startswith("[")] for line in words]
    return sorted((slots for slots in held if slots), key=lambda slots: slots[0].start)


def _range(word: str) -> range:
    first, _, last = word.partition("-")
    return range(int(first), int(last or first) + 1)


def numbers_of(slots: list[range], prefix: str, lane: int) -> Iterator[tuple[int, str]]:
    """Numbers whose keys are in these slots, and the keys."""
    everywhere = sum(map(len, slots)) == SLOTS
    number = 0
    while True:
        number += 1
        name = key(prefix, lane, number)
        if everywhere or any(key_slot(name.encode()) in some for some in slots):
            yield number, name


def main() -> None:
    """Write until standard input ends; each line in it asks for the counts so far."""
    # redis-py waits 0.25 s before it asks a cluster anew that has said that it is down
    vars(redis.cluster)["time"] = types.SimpleNamespace(
        monotonic=time.monotonic, time=time.time, sleep=lambda _seconds: None
    )
    target = json.loads(sys.argv[1])
    ended = threading.Event()
    lanes: list[Lane] = []
    threads = []
    for slots in [slots for slots in shards(target) for _ in range(target["clients"])]:
        lanes.append(Lane())
        work = (target, slots, len(lanes) - 1, lanes[-1], ended)
        threads.append(threading.Thread(target=write, args=work, daemon=True))
    for thread in threads:
        thread.start()
    while sys.stdin.readline():
        say([len(lane.times) for lane in lanes])
    ended.set()
    for thread in threads:
        thread.join(10)
    say([(lane.numbers, [int(at * 1e6) for at in lane.times], lane.errors) for lane in lanes])


def say(what: Any) -> None:
    """A line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
