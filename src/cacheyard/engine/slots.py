"""Moves hash slots between the shards of a Redis Cluster while clients read and write.

Everything here asks the servers how things are and goes on from there: after a crash of ours, after a
failover (a promoted replica of 7.0 knows nothing of open slots), with a plan of which half is done. It is
fast because many slots are open at once, their commands go in one write, and sources work side by side.
`engine.lane` has the protocol.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ssl import SSLContext
from typing import Self

import structlog

from cacheyard.domain import slots
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.slots import Move
from cacheyard.engine import cluster
from cacheyard.engine.cluster import Member
from cacheyard.engine.lane import MIGRATE_MS, Lane, migrate, migrate_words, named_in
from cacheyard.engine.masters import Master, Masters, NotMoved, NotYet, assign, check, patiently, stable
from cacheyard.engine.pipe import joined, packed, text
from cacheyard.engine.redis import Link

__all__ = ["Mover", "NotMoved"]

log = structlog.get_logger()

GOSSIP_SECONDS = 1.0  # who does not know of a move by then is told in another way
_BACK_AT_ONCE = 10  # keys


class Mover:
    """`shards`: all nodes of each shard of the cluster, by its name. `trust`: they speak TLS. To be used in
    an `async with`.

    Its methods raise `NotMoved`.
    """

    def __init__(
        self,
        shards: Mapping[str, Sequence[Node]],
        connect: Callable[[Address], Link],
        secret: str,
        trust: SSLContext | None = None,
    ) -> None:
        self._masters = Masters(shards, connect, secret, trust)
        self._names = {str(node.engine_id): name for name, shard in shards.items() for node in shard}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._masters.close()

    async def settle(self, keep: Sequence[str]) -> None:
        """The shards in `keep` have all slots, as equal as can be; none is open; all nodes say the same."""
        await self._close_open()
        while planned := slots.moves(await self._owned(), keep):
            await self.move(planned)
            await self._close_open()
        await self._agree()

    async def move(self, planned: Sequence[Move]) -> None:
        """Make these moves, one source beside the other."""
        began = time.monotonic()
        by_source: dict[str, dict[int, str]] = {}
        for slot, source, target in planned:
            by_source.setdefault(source, {})[slot] = target
        if len(by_source) > 1 and any(target in by_source for _, _, target in planned):
            for one in by_source:  # a target gets a newer epoch, and a source must not while slots leave it
                await self.move([move for move in planned if move[1] == one])
            return
        everybody = await patiently(self._masters.settled)
        lanes = [Lane(self._masters, source, targets, everybody) for source, targets in by_source.items()]
        try:
            async with asyncio.TaskGroup() as running:
                for lane in lanes:
                    running.create_task(lane.run())
        except* NotMoved as failed:
            raise failed.exceptions[0] from None
        log.info(
            "slots moved",
            slots=len(planned),
            keys=sum(lane.keys for lane in lanes),
            took_ms=round((time.monotonic() - began) * 1000, 1),
            longest_ms=round(max(lane.longest for lane in lanes) * 1000, 1),
        )

    async def stable(self) -> None:
        """No slot is open: moves that somebody left undone are done to their end."""
        await self._close_open()
        await self._agree()

    async def turn_back(self) -> None:
        """No slot is open: moves that cannot be done to their end are undone. For a moment the clients of
        such a slot find none of the keys that had gone already. (Those of a second master go on.)"""
        moves = await patiently(self._open_moves)
        if home := [move for move in moves if move[1] not in self._masters.shards]:
            await self.move(home)
        for move in moves:
            if move not in home:
                await patiently(partial(self._turn, *move))
        await self._agree()

    async def equip(self, new: Sequence[str]) -> None:
        """New shards know the functions that clients have loaded into the others, which must be alike."""

        async def equipped() -> None:
            masters = await self._masters.of(self._masters.shards)
            known = next(master for name, master in masters.items() if name not in new)
            [functions] = await self._masters.ask(known, [packed("FUNCTION", "DUMP")])
            if functions[:1] == b"-":
                return  # a server before 7.0
            restore = b"*4\r\n%b%b%b" % (joined("FUNCTION", "RESTORE"), functions, joined("FLUSH"))
            for name in new:
                check(await self._masters.tell(masters[name], [restore]))

        await patiently(equipped)

    async def keys(self) -> dict[str, dict[int, int]]:
        """How many keys there are in each slot, by the shard that has it."""

        async def counted() -> dict[str, dict[int, int]]:
            masters, owned = await self._masters.whole()
            counts = await asyncio.gather(*map(self._masters.counts, masters.values()))
            found: dict[str, dict[int, int]] = {}
            for (name, master), count in zip(masters.items(), counts, strict=True):
                home = found.setdefault(self._home(master), {})
                home |= {slot: count.get(slot, 0) for slot in owned[name]}
            return found

        return await patiently(counted)

    def _home(self, master: Master) -> str:
        """The shard that it is a master of, the first or a second one."""
        return self._names[master.me.engine_id]

    async def _owned(self) -> dict[str, list[int]]:
        """The slots of each shard. Waits until each slot has a master."""

        async def whole() -> dict[str, list[int]]:
            return (await self._masters.whole())[1]

        return await patiently(whole)

    # --- Slots that are open ---------------------------------------------------------------------

    async def _close_open(self) -> None:
        while found := await patiently(self._open_moves):
            await self.move(found)

    async def _open_moves(self) -> list[Move]:
        """The moves that have begun, by what masters say, and by keys that they have of others' slots. What
        is left of moves that are over is taken away."""
        masters, owns = await self._masters.whole()
        counts = await asyncio.gather(*map(self._masters.counts, masters.values()))
        owner = {slot: name for name, owned in owns.items() for slot in owned}
        goes = {slot: home for slot, name in owner.items() if (home := self._home(masters[name])) != name}
        for name, master in masters.items():
            for slot, to in master.me.migrating.items():
                if owner[slot] == name and self._names.get(to, name) != name:
                    goes[slot] = self._names[to]
        for (name, master), count in zip(masters.items(), counts, strict=True):
            for slot in (*master.me.importing, *count):  # who has keys of it, above all
                if owner[slot] != name and name in self._masters.shards:  # others' are old copies
                    goes[slot] = name
        for name, master in masters.items():
            over = [slot for slot in master.me.importing if goes.get(slot) != name]
            over += [slot for slot in master.me.migrating if slot not in goes or owner[slot] != name]
            check(await self._masters.tell(master, map(stable, over)))
        return [(slot, owner[slot], target) for slot, target in sorted(goes.items())]

    async def _turn(self, slot: int, source: str, target: str) -> None:
        """The target's keys of an open slot go back to the source."""
        tell, masters = self._masters.tell, await self._masters.of((source, target))
        back, here = masters[source], masters[target]
        check(await tell(here, [assign(slot, "IMPORTING", back), assign(slot, "NODE", back)]))
        check(await tell(back, [stable(slot)]))
        self._masters.given_back(slot)
        words = migrate_words(back.address, self._masters.secret, MIGRATE_MS, replace=False)
        while True:
            [answer] = await self._masters.ask(
                here, [packed("CLUSTER", "GETKEYSINSLOT", slot, _BACK_AT_ONCE)]
            )
            number, keys = named_in(answer)
            if not number:
                break
            each = _each(keys)
            counted = await tell(back, (packed("EXISTS", key) for key in each))
            for key, there in zip(each, counted, strict=True):
                said = there
                if there == b":0":
                    [said] = await tell(here, [migrate(words, 1, joined(key))])
                if said == b":1" or b"BUSYKEY" in said:  # the source's copy is the one that counts
                    await tell(here, [packed("ASKING"), packed("UNLINK", key)])
                elif said[:1] == b"-":
                    raise NotYet(text(said))
        check(await tell(here, [stable(slot)]))

    # --- Agreement -------------------------------------------------------------------------------

    async def _agree(self) -> None:
        """All nodes that answer know who has which slot, none has one open, and each shard has one master."""
        began = time.monotonic()

        async def agreed() -> None:
            masters, owned = await self._masters.whole()
            views = await self._masters.views()
            await self._reunite(masters, views)
            wanted = {slot: masters[name].me.engine_id for name, has in owned.items() for slot in has}
            odd = set().union(*(_odd(seen, wanted) for seen in views.values()))
            if odd and time.monotonic() - began > GOSSIP_SECONDS:
                owners = (masters[name] for name, has in owned.items() if odd.intersection(has))
                await self._masters.renew(owners)
            if odd:
                raise NotYet(f"not all nodes know who has {len(odd)} slots")

        await patiently(agreed)

    async def _reunite(self, masters: Mapping[str, Master], views: Mapping[Address, list[Member]]) -> None:
        """A master that died and was replaced comes back as one. It becomes a replica by itself if all its
        slots have gone to one node; if they have gone to several, it stays, without slots."""
        for name, master in masters.items():
            if name not in self._masters.shards:
                raise NotYet(f"{master.address.ip} is a second master of its shard, and has slots")
            claims: dict[Address, tuple[bool, int]] = {}
            for node in self._masters.shards[name]:
                if (view := views.get(address := Address(node.ip, node.port))) is not None:
                    me = cluster.myself(view)
                    if me.role is Role.MASTER:
                        claims[address] = bool(me.slots), me.epoch
            for address in claims.keys() - {master.address}:
                if claims[address] < claims.get(master.address, (False, -1)):
                    await self._masters.follow(address, master)
                raise NotYet(f"{address.ip} is a second master of its shard")


def _odd(seen: Sequence[Member], wanted: Mapping[int, str]) -> set[int]:
    """The slots that a node thinks somebody else has, or has open."""
    known = cluster.owners(seen)
    me = cluster.myself(seen)
    return {slot for slot in wanted if known.get(slot) != wanted[slot]} | {*me.importing, *me.migrating}


def _each(keys: bytes) -> list[bytes]:
    """The keys of an answer, one by one."""
    found, at = [], 0
    while at < len(keys):
        begin = keys.index(b"\r\n", at) + 2
        end = begin + int(keys[at + 1 : begin - 2])
        found.append(keys[begin:end])
        at = end + 2
    return found
