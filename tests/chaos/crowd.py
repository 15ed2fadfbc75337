"""Clients at one address, each with a connection of its own: what each notices, and what they count together.

`Crowd` are clients that write all the time and remember which proxy each of them talks to. `Reader` reads
what it writes, and knows how old it was. `Counting` are clients that count together: each takes a number,
adds one and puts it back if nobody else did meanwhile.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

import redis
from chaos.service import PASSWORD, connect
from chaos.traffic import ANSWER_SECONDS, Lane, kind, may_be_lost
from support.waiting import until

FAULTS = (redis.RedisError, OSError)
AGAIN_SECONDS = 0.002  # until the next try after an error
PAUSE = 0.005  # between an answer and the next command
COUNTERS = 8
CHANGED = "Watched variable changed."  # redis-py says WatchError of a broken connection, too
UNKNOWN = "may have been executed"  # a proxy's word for what nobody can tell


class Threads(ABC):
    """So many threads from the beginning of a `with` to its end."""

    def __init__(self, shown: dict[str, Any], number: int) -> None:
        self._shown = shown
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._be, args=(at,), daemon=True) for at in range(number)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(20)

    @abstractmethod
    def _be(self, number: int) -> None: ...

    def _connect(self, seconds: float = ANSWER_SECONDS) -> redis.Redis:
        return connect(self._shown["ip"], self._shown["port"], PASSWORD, seconds)


class Guest(Lane):
    """A client and what it noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.proxy: int | None = None  # pid of the process that it talks to now


class Crowd(Threads):
    """Clients that write, each by a connection that it keeps as long as it can."""

    def __init__(self, shown: dict[str, Any], number: int) -> None:
        super().__init__(shown, number)
        self.guests = [Guest() for _ in range(number)]

    def at(self, proxies: Sequence[int]) -> list[Guest]:
        """Those that talk to these processes now."""
        return [guest for guest in self.guests if guest.proxy in proxies]

    def flows(self, seconds: float, writes: int = 20) -> None:
        """Wait until each has written so often."""
        began = [len(guest.times) for guest in self.guests]
        until(
            lambda: all(len(g.times) >= was + writes for g, was in zip(self.guests, began, strict=True)),
            seconds=seconds,
            what=f"{writes} writes of each client",
            pause=0.01,
        )

    def _be(self, number: int) -> None:
        guest, key = self.guests[number], f"guest:{number}"
        while not self._ended.is_set():
            try:
                # one connection, which is never silently a new one
                with closing(self._connect()) as pool, _kept(pool) as link:
                    guest.proxy = link.client_id() >> 31
                    while not self._ended.is_set():
                        link.set(key, len(guest.times))
                        guest.times.append(time.monotonic())
                        time.sleep(PAUSE)
            except FAULTS as error:
                guest.proxy = None
                guest.errors[kind(error)] += 1
                time.sleep(AGAIN_SECONDS)


def _kept(pool: redis.Redis) -> redis.Redis:
    client: redis.Redis = pool.client()  # type: ignore[no-untyped-call]
    return client


class Reader(Threads):
    """One client writes numbers to a key, others read it."""

    KEY = "the newest"

    def __init__(self, shown: dict[str, Any], readers: int = 2) -> None:
        super().__init__(shown, 1 + readers)
        self.written: list[float] = []  # when each number was acknowledged; the first is 0
        self.stale = 0.0  # seconds: how long before it was read anew a number had been replaced, at most
        self.reads = 0
        self.gap = 0.0  # seconds without an answer to one of the readers
        self.errors = Counter[str]()

    def __str__(self) -> str:
        return (
            f"{self.reads} reads, without one for {1000 * self.gap:.0f} ms at most, of what was replaced "
            f"{1000 * self.stale:.0f} ms before at most; {dict(self.errors)}"
        )

    def flows(self, seconds: float, reads: int = 50) -> None:
        """Wait for so many more writes and reads."""
        written, read = len(self.written) + reads, self.reads + reads
        until(
            lambda: len(self.written) >= written and self.reads >= read,
            seconds=seconds,
            what=f"{reads} writes and reads",
            pause=0.01,
        )

    def _be(self, number: int) -> None:
        link = self._connect()
        with closing(link):
            if number:
                self._read(link)
            else:
                self._write(link)

    def _write(self, link: redis.Redis) -> None:
        while not self._ended.is_set():
            try:
                link.set(self.KEY, len(self.written))
                self.written.append(time.monotonic())
                time.sleep(PAUSE)
            except FAULTS:
                time.sleep(AGAIN_SECONDS)

    def _read(self, link: redis.Redis) -> None:
        last = time.monotonic()
        while not self._ended.is_set():
            asked = time.monotonic()
            try:
                told: Any = link.get(self.KEY)
            except FAULTS as error:
                self.errors[kind(error)] += 1
                time.sleep(AGAIN_SECONDS)
                continue
            now = time.monotonic()
            self.gap, last = max(self.gap, now - last), now
            self.reads += 1
            following = 0 if told is None else int(told) + 1
            if following < len(self.written):
                self.stale = max(self.stale, asked - self.written[following])
            time.sleep(PAUSE)


@dataclass(frozen=True)
class Counted:
    """A number that a client put and was told so."""

    value: int
    at: float


class Counting(Threads):
    """Clients that count together, each number once: WATCH, GET, MULTI, SET, EXEC."""

    def __init__(self, shown: dict[str, Any], clients: int) -> None:
        super().__init__(shown, clients)
        self.done: list[list[Counted]] = [[] for _ in range(COUNTERS)]
        self.unknown: Counter[int] = Counter()  # by counter: whether it happened nobody can tell
        self.conflicts = 0
        self.errors: Counter[str] = Counter()
        self._noting = threading.Lock()

    def __str__(self) -> str:
        told, unknown = sum(map(len, self.done)), self.unknown.total()
        return f"{told} numbers, {self.conflicts} conflicts, {unknown} unknown; {dict(self.errors)}"

    def flows(self, seconds: float, numbers: int = 20) -> None:
        """Wait until each counter went on by so much."""
        began = [len(done) for done in self.done]
        until(
            lambda: all(len(done) >= was + numbers for done, was in zip(self.done, began, strict=True)),
            seconds=seconds,
            what=f"{numbers} numbers of each counter",
            pause=0.01,
        )

    def forgive(self, struck: Iterable[float]) -> int:
        """Take out the numbers that a master lost, which told them so shortly before it was struck that its
        replicas may not have had them. How many."""
        moments, before = list(struck), sum(map(len, self.done))
        for number, last in enumerate(self._last()):
            newest = {one.value: one for one in sorted(self.done[number], key=lambda one: one.at)}
            self.done[number] = [
                one
                for one in self.done[number]
                if (one is newest[one.value] and one.value <= last) or not may_be_lost(one.at, moments)
            ]
        return before - sum(map(len, self.done))

    def wrong(self) -> list[str]:
        """What is not as it must be, once all have ended: each number up to the last was put once, and its
        client was told so, or that nobody can tell."""
        found = []
        for number, last in enumerate(self._last()):
            times = Counter(one.value for one in self.done[number])
            twice = sorted(value for value in times if times[value] > 1)
            lost = sorted(value for value in times if value > last)
            untold = last - (len(times) - len(lost))
            if twice or lost or not 0 <= untold <= self.unknown[number]:
                found.append(
                    f"counter {number} at {last}: {twice} twice, {lost} lost, {untold} of which nobody was "
                    f"told, {self.unknown[number]} unknown"
                )
        return found

    def _last(self) -> list[int]:
        with closing(self._connect(10)) as link:
            return [int(str(link.get(_counter(number)) or 0)) for number in range(COUNTERS)]

    def _be(self, number: int) -> None:
        at = number % COUNTERS
        while not self._ended.is_set():
            with closing(self._connect(2)) as link:
                try:
                    self._count(link, at)
                except FAULTS as error:
                    self._note(kind(error))
                    time.sleep(AGAIN_SECONDS)

    def _count(self, link: redis.Redis, at: int) -> None:
        key = _counter(at)
        with link.pipeline() as pipe:
            while not self._ended.is_set():
                pipe.watch(key)  # type: ignore[no-untyped-call]
                value = int(str(pipe.get(key) or 0)) + 1
                pipe.multi()
                pipe.set(key, value)
                try:
                    pipe.execute()
                except FAULTS as error:
                    if str(error) == CHANGED:
                        self.conflicts += 1
                        continue
                    if not isinstance(error, redis.ResponseError) or UNKNOWN in str(error):
                        with self._noting:
                            self.unknown[at] += 1
                    self._note(f"EXEC: {kind(error)}")
                    raise
                self.done[at].append(Counted(value, time.monotonic()))

    def _note(self, error: str) -> None:
        with self._noting:
            self.errors[error] += 1


def _counter(number: int) -> str:
    return f"counter:{number}"
