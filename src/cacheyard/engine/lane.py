"""How slots leave one shard: some at a time, quickly, without holding up the source's clients.

The protocol is Redis' own. A slot is *open* while the target imports and the source migrates it: MIGRATE
takes key by key across, and clients that ask the source for a key that has gone are sent after it (ASK).
Then it is the target's. While it is open, a copy that the source has is the one that counts.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from cacheyard.domain import slots
from cacheyard.domain.nodes import Address
from cacheyard.engine.masters import (
    PASSING,
    TAKEN_AT_ONCE,
    Master,
    Masters,
    NotMoved,
    NotYet,
    Patience,
    assign,
    check,
)
from cacheyard.engine.pipe import joined, lines, packed, text
from cacheyard.engine.redis_conf import INTERNAL_USER

CHUNK_SECONDS = 0.02  # how long a source may be busy with us before it serves its clients again
FIRST_CHUNK = 10  # keys; how many fit is learned from there
LARGEST_CHUNK = 2000  # keys
CHUNKS_OPEN = 4  # the slots that are open at once hold about so many chunks of keys …
SLOTS_OPEN = 512  # … and are not more than these
NAMED_ANYWAY = 16  # keys; a slot may have got some since they were counted
MIGRATES = 8  # in one write: the source does them one after another, whatever becomes of the first
MIGRATE_MS = 4000  # all of them, if the target hangs: less than it takes until the source counts as dead

LAST_SECONDS = 5.0  # for the slots that are open when we are told to stop
HELD_UP_SECONDS = 0.5  # a MIGRATE of one key that fails after so long …
HELD_UP_TIMES = 3  # … and so often has a key that is too large

_MINE = b"already the owner"


class Lane:
    """One source and the slots that leave it: `targets` says where each goes. `everybody` is told of it."""

    def __init__(
        self, masters: Masters, source: str, targets: Mapping[int, str], everybody: Mapping[str, Master]
    ) -> None:
        self.keys = 0  # that have gone across
        self.longest = 0.0  # seconds that the source was busy with us at a time
        self._masters = masters
        self._source = source
        self._left = dict(targets)
        self._everybody = dict(everybody)
        self._chunk = FIRST_CHUNK
        self._held_up = Counter[int]()
        self._patience = Patience()
        self._disturbed = False

    async def run(self) -> None:
        """Until all have left, whoever is master. Raises `NotMoved`."""
        while self._left:
            try:
                await self._try()
            except PASSING as error:
                self._disturbed = True
                await self._patience.after(error)

    async def _try(self) -> None:
        if self._disturbed:  # somebody may have been replaced, have left slots to nobody, or claim them anew
            await self._masters.settled()
            self._disturbed = False
        masters = await self._masters.of({self._source, *self._left.values()})
        source = masters.get(self._source)
        has = set(slots.of(source.me.slots)) if source is not None else set()
        self._left = {slot: target for slot, target in self._left.items() if slot in has}  # others have gone
        if source is None or not self._left:
            return
        counts = await self._masters.counts(source)
        targets = (masters[name] for name in set(self._left.values()))
        await asyncio.gather(*(self._set_right(source, target, counts) for target in targets))
        for target, these in groupby(list(self._left), key=self._left.__getitem__):
            left = list(these)
            while left:
                some = self._next(left, counts)
                left = left[len(some) :]
                group = self._group(source, masters[target], {slot: counts.get(slot, 0) for slot in some})
                await _to_the_end(group)

    async def _set_right(self, source: Master, target: Master, counts: Mapping[int, int]) -> None:
        """What the target knows of the slots that come to it. Gossip changes nothing about a slot that a node
        imports: it may not know that the source was replaced, and then it takes no key of it from anybody.
        And it may remember what was never true of the source."""
        sees, mine, its = target.owners(), target.me.engine_id, source.me.engine_id
        coming = [slot for slot, name in self._left.items() if name == target.shard]
        wrong = [slot for slot in coming if sees.get(slot) not in (its, mine)]
        check(await self._masters.tell(target, (assign(slot, "NODE", source) for slot in wrong)))
        if known := [slot for slot in slots.of(source.me.slots) if sees.get(slot) != mine]:
            # one that nobody asks the target for
            spare = min(known, key=lambda slot: (slot in target.me.importing, counts.get(slot, 0)))
            await self._masters.remind(target, source, spare)

    def _next(self, left: Sequence[int], counts: Mapping[int, int]) -> Sequence[int]:
        """The first slots, as many as may be open at once."""
        number, keys = 0, 0
        for slot in left[:SLOTS_OPEN]:
            keys += counts.get(slot, 0)
            if number and keys > CHUNKS_OPEN * self._chunk:
                break
            number += 1
        return left[:number]

    async def _group(self, source: Master, target: Master, counts: Mapping[int, int]) -> None:
        """Open some slots, take their keys across, close them. `counts`: about how many keys each has.

        What was done of it before, by us or another, is no obstacle.
        """
        tell = self._masters.tell
        said = await tell(target, (assign(slot, "IMPORTING", source) for slot in counts))
        check(answer for answer in said if _MINE not in answer)
        opened = {
            slot: counts[slot] for slot, answer in zip(counts, said, strict=True) if _MINE not in answer
        }
        check(await tell(source, (assign(slot, "MIGRATING", target) for slot in opened)))
        await self._empty(source, target, opened)
        told = {slot: assign(slot, "NODE", target) for slot in counts}
        these = list(told)
        for first in range(0, len(these), TAKEN_AT_ONCE):
            some = these[first : first + TAKEN_AT_ONCE]
            await self._masters.hand_over(source, target, some, opened)
            for slot in some:
                del self._left[slot]
        self._patience = Patience()
        others = self._everybody.keys() - {source.shard, target.shard}
        await asyncio.gather(*(self._tell(name, [*told.values()]) for name in others))

    async def _tell(self, name: str, told: Sequence[bytes]) -> None:
        """The target says to all what it has by itself, too: who does not hear us is not told again."""
        try:
            await self._masters.tell(self._everybody[name], told)
        except OSError:
            del self._everybody[name]

    async def _empty(self, source: Master, target: Master, counts: Mapping[int, int]) -> None:
        """Take all keys of open slots across.

        What goes to the source in one write is: to migrate keys that it has named; to name more of the same
        slots, to see whether they are empty; and to name those of the next slots.
        """
        left, waiting = dict(counts), list(counts)
        named: list[tuple[int, int, bytes]] = []  # slot, number of keys, the keys
        while waiting or named:
            now, named = named[:MIGRATES], named[MIGRATES:]
            words = migrate_words(target.address, self._masters.secret, MIGRATE_MS // max(1, len(now)))
            for slot, number, _ in now:
                left[slot] = max(0, left[slot] - number)
            again = [slot for slot, _, _ in now]
            asked = self._to_name(again, waiting if len(named) < MIGRATES else (), left)
            waiting = waiting[len(asked) - len(again) :]
            moving = b"".join(migrate(words, number, keys) for _, number, keys in now)
            naming = [packed("CLUSTER", "GETKEYSINSLOT", slot, most) for slot, most in asked]
            began = time.monotonic()
            moved, *answers = await self._masters.ask(source, [moving, *naming])
            took = time.monotonic() - began
            self._judge(again, lines(moved), took)
            self._learn(sum(number for _, number, _ in now), took)
            for (slot, _), answer in zip(asked, answers, strict=True):
                number, keys = named_in(answer)
                if number:
                    named.append((slot, number, keys))

    def _to_name(
        self, again: Sequence[int], waiting: Sequence[int], left: Mapping[int, int]
    ) -> list[tuple[int, int]]:
        """Slots and how many of their keys are to be named, a chunk in all; `again` whatever they have."""
        room, found = self._chunk, []
        for number, slot in enumerate((*again, *waiting)):
            if room <= 0 and number >= len(again):
                break
            found.append((slot, max(1, min(room, left[slot] + NAMED_ANYWAY))))
            room -= left[slot]
        return found

    def _learn(self, keys: int, took: float) -> None:
        """How many keys fit into a chunk."""
        if keys:
            self.keys += keys
            self.longest = max(self.longest, took)
            self._patience = Patience()
            fit = round(keys * CHUNK_SECONDS / took)
            self._chunk = max(1, min(fit, 2 * self._chunk, LARGEST_CHUNK))

    def _judge(self, these: Sequence[int], said: Sequence[bytes], took: float) -> None:
        """Whether the MIGRATEs did what they should. That keys are gone or have expired is no fault."""
        for slot, answer in zip(these, said, strict=True):
            if answer[:1] != b"-":
                continue
            self._chunk = 1
            if b"OOM" in answer:
                raise NotMoved(f"the new shard of slot {slot} has no memory left: {text(answer)}")
            if len(these) == 1 and took > HELD_UP_SECONDS:
                self._held_up[slot] += 1
                if self._held_up[slot] >= HELD_UP_TIMES:
                    raise NotMoved(f"a key of slot {slot} is too large to be moved: {text(answer)}")
            raise NotYet(text(answer))


async def _to_the_end(act: Coroutine[Any, Any, None]) -> None:
    """Who is told to stop meanwhile, stops then: no slot stays open without need."""
    task = asyncio.ensure_future(act)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(*PASSING, NotMoved):
            async with asyncio.timeout(LAST_SECONDS):
                await task
        raise


def migrate_words(to: Address, secret: str, ms: int, *, replace: bool = True) -> tuple[int, bytes]:
    """What stands in each MIGRATE to that server before its keys: how many words, and they themselves."""
    more = ("REPLACE",) if replace else ()
    words = ("MIGRATE", to.ip, to.port, "", 0, ms, *more, "AUTH2", INTERNAL_USER, secret, "KEYS")
    return len(words), joined(*words)


def migrate(words: tuple[int, bytes], number: int, keys: bytes) -> bytes:
    """MIGRATE for so many keys."""
    return b"*%d\r\n%b%b" % (words[0] + number, words[1], keys)


def named_in(answer: bytes) -> tuple[int, bytes]:
    """The keys in an answer of GETKEYSINSLOT as they came, and how many there are."""
    if answer[:1] != b"*":
        raise NotYet(text(answer))
    end = answer.index(b"\r\n")
    return int(answer[1:end]), answer[end + 2 :]
