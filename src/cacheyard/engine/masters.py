"""The masters of a Redis Cluster by their own word: who they are, which slots and how many keys they have.

For the mover of slots, which must not believe rows or yesterday's answers: any of them may be replaced at any
moment.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import permutations
from ssl import SSLContext
from typing import Self, TypeVar

import msgspec
import structlog

from cacheyard.domain import slots
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.engine import cluster
from cacheyard.engine.cluster import Member
from cacheyard.engine.pipe import Pipe, lines, packed, text
from cacheyard.engine.redis import Link, RedisError, ResponseError
from cacheyard.engine.replication import epochs, epochs_in, tell_epoch

log = structlog.get_logger()

T = TypeVar("T")

ANSWER_SECONDS = 5.0  # for anything; then we ask who is master now
LOOK_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 0.05  # when some have answered; one that hangs must not hide the one that was promoted
PATIENCE_SECONDS = 60.0  # without any progress
PAUSES = (0.005, 0.25)  # seconds between tries, the first and the longest

ORPHANED_SECONDS = 2.0  # so long a slot may have no master while all shards have one; then it is given one
TAKEN_AT_ONCE = 128  # slots: a millisecond's work, in which nobody else knows of it
REMIND_SECONDS = 1.0  # a node sends what it is asked to send within 0.1 s
_BUMP = packed("CLUSTER", "BUMPEPOCH")
_INFO = packed("CLUSTER", "INFO")
_MULTI, _EXEC = packed("MULTI"), packed("EXEC")

COUNTED = 4096  # slots at a time, which hold up a server for 2 ms
_COUNT = """
local found = {}
for slot = ARGV[1], ARGV[2] do
    local count = redis.call('CLUSTER', 'COUNTKEYSINSLOT', slot)
    if count > 0 then found[#found + 1] = slot .. ' ' .. count end
end
return table.concat(found, ' ')
"""


class NotMoved(Exception):  # noqa: N818 - read as what happened
    """The slots cannot be moved; the message is for the user."""


class NotYet(Exception):  # noqa: N818 - read as what it says
    """A server's view is not what it will soon be."""


PASSING = (NotYet, OSError, RedisError)  # what may be otherwise in a moment


class Master(msgspec.Struct, frozen=True):
    """The master of a shard."""

    shard: str
    address: Address
    me: Member
    seen: list[Member]  # all nodes, as it sees them
    heard: int  # the newest epoch that it knows of

    def owners(self) -> dict[int, str]:
        """The engine ids of who has which slot, as it sees it."""
        return cluster.owners(self.seen)


class Masters:
    """`shards`: all nodes of each shard, by its name."""

    def __init__(
        self,
        shards: Mapping[str, Sequence[Node]],
        connect: Callable[[Address], Link],
        secret: str,
        trust: SSLContext | None,
    ) -> None:
        self.shards = shards
        self.secret = secret
        self._trust = trust
        self._connect = connect
        self._pipes: dict[Address, Pipe] = {}
        self._closed = False
        self._seconds: dict[str, Node] = {}  # names of second masters of shards, and who they are
        self._taken: dict[int, tuple[str, Master]] = {}  # slots that we had a master take: whose, and who
        self._bequeathing = asyncio.Lock()
        self._orphaned: float | None = None  # since when there are slots that nobody claims

    async def close(self) -> None:
        """Close all connections. None is opened after that."""
        self._closed = True
        await asyncio.gather(*(pipe.close() for pipe in self._pipes.values()))

    async def of(self, names: Iterable[str]) -> dict[str, Master]:
        """The masters of these. Raises `NotYet` when a shard has none now, or a second master is silent; one
        that is none any more is left out."""
        wanted = list(names)
        found: dict[str, Master] = {}
        for name, (claims, sure) in zip(wanted, await asyncio.gather(*map(self._of, wanted)), strict=True):
            if claims:
                found[name] = claims[0]
            elif name in self.shards or not sure:
                raise NotYet(f"{self._nodes(name)[0].ip} and its replicas have no master")
        return found

    async def all(self) -> dict[str, Master]:
        """The masters of all shards that have one, and second ones, under names of their own. Raises `NotYet`
        when a node that may be one is silent. (At a 6.2 a shard whose last slot has left follows its new
        owner, and has none.)

        A master that was replaced while slots came to it, and is back, has those of which its successor has
        not heard: it alone has their keys.
        """
        found = await asyncio.gather(*map(self._of, self.shards))
        for name, (these, sure) in zip(self.shards, found, strict=True):
            if not these and not sure:
                raise NotYet(f"{self.shards[name][0].ip} or a replica of its does not answer")
        claims = [claim for these, _ in found for claim in these]
        owners = {owner.address for owner in _owners(claims).values()}
        masters: dict[str, Master] = {}
        for claim in claims:  # of each shard, the newest first
            if claim.shard not in masters:
                masters[claim.shard] = claim
            elif claim.address in owners:
                name = f"{claim.shard}, {claim.address.ip}"
                nodes = self.shards[claim.shard]
                self._seconds[name] = next(node for node in nodes if node.ip == claim.address.ip)
                masters[name] = msgspec.structs.replace(claim, shard=name)
        return masters

    async def settled(self) -> dict[str, Master]:
        """The masters of all shards, as `all` has them, when none is about to be replaced, or to claim slots
        anew by itself. Raises `NotYet` when one is, or when slots were just given to the successor of who had
        taken them."""
        began = time.monotonic()
        masters = await self.all()
        if time.monotonic() - began > LOOK_AGAIN_SECONDS:  # others may have given up since who hung until now
            masters = await self.all()
        ids = {master.me.engine_id: master for master in masters.values()}
        for member in (member for master in masters.values() for member in master.seen):
            if member.engine_id in ids and member.flags & {"fail", "fail?"}:
                raise NotYet(f"{ids[member.engine_id].address.ip} was away, and may be replaced")
        await self._inherit(masters)
        await self._settle_epochs(masters)
        return masters

    async def whole(self) -> tuple[dict[str, Master], dict[str, list[int]]]:
        """The masters of all shards as `settled` has them, and the slots of each. Raises `NotYet` when a slot
        has none."""
        masters = await self.settled()
        await self._adopt(masters)
        return masters, owned_by(masters)

    async def take(self, source: Master, target: Master, opened: Sequence[int]) -> None:
        """Slots that the target imports, which have no keys but there, are the target's: `TAKEN_AT_ONCE` or
        fewer. Raises `NotYet`. The source is to be told at once.

        A slot that is taken over while it is imported makes the target tell all nodes, each of which then
        compares all slots: 16384 times that is seconds of work for each. So only the last of several is.
        """
        await self._outrank(source, target)
        self._taken |= dict.fromkeys(opened, (source.shard, target))
        *some, last = opened
        check(await self.tell(target, [*_mine(some, target), assign(last, "NODE", target)]))

    async def remind(self, target: Master, source: Master, slot: int) -> None:
        """The target hears from the source itself that this has its slots. `slot` is one of them; the target
        knows nothing of it for about 0.1 s. Raises `OSError` if it does not hear in time.

        Redis 7.0.15 remembers of a slot that its owner, as we had told it, did not claim it, in a message
        that was older. It forgets that when it hears an owner claim it and learns anything from that message.
        If it takes the slot before, it gives it to the next who claims it, however old the claim, and deletes
        its keys. Mended by Redis' pull request 12564.
        """
        async with asyncio.timeout(REMIND_SECONDS), self._connect(target.address) as link:
            await link.call("CLUSTER", "SETSLOT", slot, "STABLE")
            with suppress(ResponseError):  # it knew nothing before
                await link.call("CLUSTER", "DELSLOTS", slot)
            await self._introduce(source, target)
            while source.me.engine_id != cluster.owners(await cluster.members(link)).get(slot):
                await asyncio.sleep(PAUSES[0])

    async def hand_over(
        self, source: Master, target: Master, these: Sequence[int], opened: Container[int] | None = None
    ) -> None:
        """Slots without keys at the source are the target's, and the source knows it: `TAKEN_AT_ONCE` or
        fewer. `opened`: those of them that the target has not taken yet. Raises `NotYet`."""
        if new := [slot for slot in these if opened is None or slot in opened]:
            await self.take(source, target, new)
        check(await self.tell(source, (assign(slot, "NODE", target) for slot in these)))

    async def renew(self, owners: Iterable[Master]) -> None:
        """The claims of one of these owners, who has not the newest, become the newest: that is what others
        believe. One at a time, or they would share an epoch."""
        for owner in owners:
            if b"BUMPED" in (await self.tell(owner, [_BUMP]))[0]:
                return

    async def _outrank(self, source: Master, target: Master) -> None:
        """The target's claims are newer than the source's. Else the next word of the source, which has yet to
        be told that it is rid of slots, would take them back, and the target would delete their keys."""
        mine, newest = await asyncio.gather(self._epoch(target), self._epoch(source))
        if mine <= newest:  # not without need: who hangs does it when it is back, and may have been replaced
            [said] = await self.tell(target, [_BUMP])  # +BUMPED 7, or +STILL 7
            if said[:1] == b"-":
                raise NotYet(text(said))
            mine = int(said.split()[1])
        if mine <= newest:
            raise NotYet(f"{target.address.ip} has epoch {mine}, {source.address.ip} {newest}")

    async def _epoch(self, master: Master) -> int:
        [info] = await self.ask(master, [_INFO])
        if info[:1] == b"-":
            raise NotYet(text(info))
        return epochs_in(text(info)).mine

    async def _settle_epochs(self, masters: Mapping[str, Master]) -> None:
        """A master that hears of another which has its epoch takes a newer one by itself, and so claims
        slots anew that are just leaving it. If no other has that of an owner, and all know the newest, that
        does not come any more: who takes an epoch takes one that is newer than all it knows."""
        sharing: dict[int, list[Master]] = defaultdict(list)
        for master in masters.values():
            sharing[master.me.epoch].append(master)
        newest = max(masters.values(), key=lambda master: master.me.epoch)
        unheard = [
            pair
            for same in sharing.values()
            if any(master.me.slots for master in same)
            for pair in permutations(same, 2)
        ]
        unheard += [(newest, other) for other in masters.values() if other.heard < newest.me.epoch]
        if unheard:
            await asyncio.gather(*(self._introduce(one, other) for one, other in unheard))
            one, other = unheard[0]
            raise NotYet(f"{one.address.ip} and {other.address.ip} have not settled their epochs")

    async def _inherit(self, masters: Mapping[str, Master]) -> None:
        heirs: dict[int, tuple[str, str]] = {}
        for slot in _orphans(masters) & self._taken.keys():
            source, before = self._taken[slot]
            now = masters.get(before.shard)
            # whose epoch is not newer has been replaced itself, and come back
            if now is not None and now.address != before.address and now.me.epoch > before.me.epoch:
                heirs[slot] = source if source in masters else _other(masters, now.shard), now.shard
        await self._bequeath(heirs, masters)

    async def _adopt(self, masters: Mapping[str, Master]) -> None:
        """If we died with such a master, nobody remembers. Then they are theirs who have most of their keys.
        Not while slots move: a source must not have a new epoch then."""
        orphans = _orphans(masters)
        if not orphans or not self.shards.keys() <= masters.keys():
            self._orphaned = None
            return
        self._orphaned = self._orphaned or time.monotonic()
        if time.monotonic() - self._orphaned > ORPHANED_SECONDS:
            counts = list(
                zip(await asyncio.gather(*map(self.counts, masters.values())), masters, strict=True)
            )
            ranked = {
                slot: [name for _, name in sorted(counts, key=lambda one: one[0].get(slot, 0))]
                for slot in orphans
            }
            await self._bequeath({slot: (names[0], names[-1]) for slot, names in ranked.items()}, masters)

    async def _bequeath(self, heirs: Mapping[int, tuple[str, str]], masters: Mapping[str, Master]) -> None:
        """Nobody claims these slots. Of each pair of shards, the second has their keys; have the first give
        them to it. Raises `NotYet` if there were any: who asks, asks again.

        The heir does not just take them: it would have heard nobody claim them (`remind`).
        """
        if not heirs:
            return
        if self._bequeathing.locked():
            raise NotYet("slots are being inherited")
        async with self._bequeathing:
            for pair in sorted(set(heirs.values())):
                some = [slot for slot, wanted in heirs.items() if wanted == pair]
                giver, heir = (masters[name] for name in pair)
                log.info("slots inherited", node=heir.address.ip, slots=len(some))
                if giver is heir:  # there is nobody else who could claim them
                    check((await self.tell(heir, [_BUMP, *_mine(some, heir)]))[1:])
                    continue
                known = [assign(slot, "NODE", giver) for slot in some]
                check(await self.tell(heir, [*(assign(slot, "IMPORTING", giver) for slot in some), *known]))
                away = [assign(slot, "MIGRATING", heir) for slot in some]
                check((await self.tell(giver, [_MULTI, *known, *away, _EXEC]))[-len(some) :])
                await self.remind(heir, giver, some[0])
                for first in range(0, len(some), TAKEN_AT_ONCE):
                    await self.hand_over(giver, heir, some[first : first + TAKEN_AT_ONCE])
                told = [assign(slot, "NODE", heir) for slot in some]
                others = masters.keys() - {giver.shard, heir.shard}
                await asyncio.gather(*(self.tell(masters[name], told) for name in others))
        raise NotYet("slots have a master again")

    def given_back(self, slot: int) -> None:
        """The slot is not any more whose we had it be."""
        self._taken.pop(slot, None)

    async def ask(self, master: Master, blocks: Sequence[bytes]) -> list[bytes]:
        """The answers to blocks of commands, as they came."""
        if self._closed:
            raise ConnectionError("the connections were closed")
        if master.address not in self._pipes:
            self._pipes[master.address] = Pipe(master.address, self.secret, self._trust)
        return await self._pipes[master.address].ask(blocks, ANSWER_SECONDS)

    async def tell(self, master: Master, commands: Iterable[bytes]) -> list[bytes]:
        """The answers to commands that are answered with a line each."""
        block = b"".join(commands)
        return lines((await self.ask(master, [block]))[0]) if block else []

    async def _introduce(self, master: Master, other: Master) -> None:
        """Have one tell the other now what they would come to talk of within some seconds."""
        async with self._connect(master.address) as link:
            await tell_epoch(link, other.address)

    async def counts(self, master: Master) -> dict[int, int]:
        """How many keys the master has in each slot, whosever it is; nothing of those without."""
        async with self._connect(master.address) as link:
            return await key_counts(link)

    async def views(self) -> dict[Address, list[Member]]:
        """What each node, master or replica, sees; nothing of those that do not answer."""
        found: dict[Address, list[Member]] = {}

        async def ask(node: Node) -> None:
            address = Address(node.ip, node.port)
            with suppress(RedisError, OSError):
                async with self._connect(address) as link:
                    found[address] = await cluster.members(link)

        await asyncio.gather(*(ask(node) for shard in self.shards.values() for node in shard))
        return found

    async def follow(self, address: Address, master: Master) -> None:
        """A node of no slots becomes the replica of that master. What it has is older than what that has."""
        async with self._connect(address) as link:
            me = cluster.myself(await cluster.members(link))
            for slot in (*me.importing, *me.migrating):
                await link.call("CLUSTER", "SETSLOT", slot, "STABLE")
            if me.role is Role.MASTER and not me.slots:
                await link.call("FLUSHALL", "ASYNC")
                await link.call("CLUSTER", "REPLICATE", master.me.engine_id)

    def _nodes(self, name: str) -> Sequence[Node]:
        return [self._seconds[name]] if name in self._seconds else self.shards[name]

    async def _of(self, name: str) -> tuple[list[Master], bool]:
        """Who claims to be its master, the newest claim first, and whether all its nodes have answered."""
        asked = {asyncio.create_task(self._claim(name, node)) for node in self._nodes(name)}
        answers: list[Master | bool] = []
        try:
            for seconds in (LOOK_AGAIN_SECONDS, LOOK_SECONDS):
                done, asked = await asyncio.wait(asked, timeout=seconds)
                answers += [task.result() for task in done]
                if any(isinstance(answer, Master) for answer in answers) or not asked:
                    break
        finally:
            for task in asked:
                task.cancel()
        claims = [answer for answer in answers if isinstance(answer, Master)]
        # one that has just come back may not have heard yet that it was replaced
        claims.sort(key=lambda master: master.me.epoch, reverse=True)
        return claims, not asked and all(answers)

    async def _claim(self, name: str, node: Node) -> Master | bool:
        """The node, if it is a master; else whether it has answered."""
        address = Address(node.ip, node.port)
        with suppress(RedisError, OSError):
            async with self._connect(address) as link:
                seen = await cluster.members(link)
                me = cluster.myself(seen)
                if me.role is not Role.MASTER:
                    return True
                return Master(name, address, me, seen, (await epochs(link)).current)
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Patience:
    """Waits between tries, each time a little longer, and at last no more."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._pause = PAUSES[0]

    async def after(self, error: Exception) -> None:
        """A try has failed for that reason. Raises `NotMoved`."""
        if time.monotonic() - self._since > PATIENCE_SECONDS:
            raise NotMoved(f"no progress in {PATIENCE_SECONDS:g} s: {error}") from error
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 1.5, PAUSES[1])


async def patiently(act: Callable[[], Awaitable[T]]) -> T:
    """Try until it works. Raises `NotMoved`."""
    patience = Patience()
    while True:
        try:
            return await act()
        except PASSING as error:
            await patience.after(error)


async def key_counts(link: Link) -> dict[int, int]:
    """How many keys a node has in each slot, whosever it is; nothing of those without."""
    found: dict[int, int] = {}
    for first in range(0, slots.SLOTS, COUNTED):
        said = str(await link.call("EVAL", _COUNT, 0, first, first + COUNTED - 1)).split()
        found |= zip(map(int, said[::2]), map(int, said[1::2]), strict=True)
    return found


def _orphans(masters: Mapping[str, Master]) -> set[int]:
    """The slots that none of them claims."""
    return set(range(slots.SLOTS)) - {
        slot for master in masters.values() for slot in slots.of(master.me.slots)
    }


def _other(masters: Iterable[str], name: str) -> str:
    """Another one, if there is one."""
    return next((other for other in masters if other != name), name)


def _owners(masters: Iterable[Master]) -> dict[int, Master]:
    """Who has each slot; of two that claim one, the newer claim counts."""
    owner: dict[int, Master] = {}
    for master in sorted(masters, key=lambda master: master.me.epoch):
        owner.update(dict.fromkeys(slots.of(master.me.slots), master))
    return owner


def owned_by(masters: Mapping[str, Master]) -> dict[str, list[int]]:
    """The slots of each. Raises `NotYet` when nobody claims one."""
    owners = _owners(masters.values())
    if len(owners) < slots.SLOTS:
        raise NotYet(f"{slots.SLOTS - len(owners)} slots have no master")
    owned: dict[str, list[int]] = {name: [] for name in masters}
    for slot, master in owners.items():
        owned[master.shard].append(slot)
    return owned


def assign(slot: int, state: str, other: Master) -> bytes:
    """CLUSTER SETSLOT: IMPORTING from, MIGRATING to, or now of that NODE."""
    return packed("CLUSTER", "SETSLOT", slot, state, other.me.engine_id)


def stable(slot: int) -> bytes:
    """CLUSTER SETSLOT: neither imported nor migrated."""
    return packed("CLUSTER", "SETSLOT", slot, "STABLE")


def _mine(these: Iterable[int], master: Master) -> list[bytes]:
    """What a master is told that has these slots from now on, and is to tell nobody yet."""
    return [part for slot in these for part in (stable(slot), assign(slot, "NODE", master))]


def check(answers: Iterable[bytes]) -> None:
    """Raise `NotYet` unless all are OK."""
    for answer in answers:
        if answer != b"+OK":
            raise NotYet(text(answer))
