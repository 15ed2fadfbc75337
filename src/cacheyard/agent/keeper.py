"""Follows who is master, and helps where it knows more than the engines do.

Sentinel and the cluster protocol decide which node is a shard's master; nothing here votes. The keeper
tells the Sentinels whom to watch; when a master's process is dead it says so at once, instead of their
waiting until they believe it; and it writes into the rows what was decided. The rows then make
the rest of the agent move the address that clients use, and start the old master as a replica.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

import structlog

from cacheyard.agent.loops import forever, tell_failure
from cacheyard.agent.sentinels import Sentinel, Sentinels
from cacheyard.agent.watched import Watched
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.engine import cluster, redis, sentinel
from cacheyard.engine.redis import Link, RedisError, ResponseError
from cacheyard.engine.replication import epochs, take_over, tell_epoch
from cacheyard.store import instances, nodes, shards
from cacheyard.store.db import Store
from cacheyard.store.shards import Guarded, name_of
from cacheyard.waiting import happens

log = structlog.get_logger()

T = TypeVar("T")

LOOK_SECONDS = 1.0  # how often to look without being woken
ASK_ANEW_SECONDS = 30.0  # after which a Sentinel is asked again whom it watches
SHARE = 4  # after reading rows for a time, rest so many times as long
SURE_SECONDS = 1.0
PROMOTED_SECONDS = 3.0  # how long a failover that was asked for may take; else the master is started again
AGAIN_SECONDS = 0.2
ALONE_SECONDS = 3.0  # how long Sentinels that all find a master silent may take to tell each other
DECLINED_SECONDS = 3.0  # how long Sentinels may decline to replace a dead master that has no data
DRAIN_SECONDS = 0.5
SETTLED_SECONDS = 2.0
HEARD_SECONDS = 0.2
STALE_SECONDS = 10  # a replica that lost its master longer ago is not put in its place by us
STOPPED_SECONDS = 0.5  # how often to look for processes that are stopped

_OUT_OF_REACH = (RedisError, OSError)


class Keeper:
    """`run` until it is cancelled; `replaced` and `differs` are for the supervisor and the observer."""

    def __init__(
        self,
        store: Store,
        watched: Mapping[str, Watched],
        plain: Sentinels,
        encrypted: Sentinels,
        *,
        open_secret: Callable[[str], str],
        binary: str | None,
    ) -> None:
        self._store = store
        self._watched = watched
        self._sets = (plain, encrypted)
        self._open_secret = open_secret
        self._binary = binary
        self._asked_at = 0.0
        self._watching = frozenset[str]()  # ids of the shards that are watched
        self._ready = asyncio.Event()  # the Sentinels that ran have been found
        self._declined: dict[str, float] = {}  # since when Sentinels replace none of these dead masters
        self._following: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """The loop: whom rows want watched is watched, and nobody else."""
        with self._store.changes() as self._happened:
            try:
                await forever(self._turn, "watch")
            finally:
                for task in self._following.values():
                    task.cancel()
                for one_set in self._sets:
                    await one_set.let_go()

    # --- The watch -------------------------------------------------------------------------------

    async def _turn(self) -> None:
        self._happened.clear()
        began = time.monotonic()
        await self._look()
        await asyncio.sleep(min(LOOK_SECONDS, SHARE * (time.monotonic() - began)))
        await happens(self._happened, LOOK_SECONDS)

    async def _look(self) -> None:
        guarded = await self._store.run(self._read)
        self._watching = frozenset(shard.id for shard in guarded if shard.watched)
        followed = [shard for shard in guarded if not shard.clustered]
        if not self._ready.is_set():
            for one_set in self._sets:
                one_set.adopt()  # those of an earlier agent, which may not be wanted any more
        for one_set in self._sets:
            if any(self._watching_set(shard) is one_set for shard in followed):
                if self._binary is not None:
                    one_set.there(self._binary)
            elif one_set.living:
                await one_set.gone()
        if time.monotonic() - self._asked_at > ASK_ANEW_SECONDS:
            self._asked_at = time.monotonic()
            for one_set in self._sets:
                for one in one_set.all:
                    one.told = None
        self._ready.set()
        wanted: dict[int, dict[str, Guarded]] = {id(one_set): {} for one_set in self._sets}
        for shard in followed:
            if shard.watched:
                wanted[id(self._watching_set(shard))][name_of(shard)] = shard
        await asyncio.gather(
            *(self._tell(one, wanted[id(one_set)]) for one_set in self._sets for one in one_set.living)
        )
        seen = {shard.id: self._seen(shard) for shard in guarded}
        changed = {shard.id: seen[shard.id] for shard in guarded if shard.seen_watch != seen[shard.id]}
        if changed:
            await self._store.run(self._write_seen, changed)

    def _watching_set(self, shard: Guarded) -> Sentinels:
        """The Sentinels that watch it, if it is watched."""
        return self._sets[1 if shard.encrypted else 0]

    def _read(self) -> list[Guarded]:
        with self._store.read() as tx:
            return shards.guarded(tx)

    def _write_seen(self, seen: dict[str, int]) -> None:
        with self._store.write() as tx:
            shards.seen_watch(tx, seen)

    async def _tell(self, one: Sentinel, wanted: Mapping[str, Guarded]) -> None:
        """Have one Sentinel watch those and nobody else."""
        try:
            if one.told is None:
                there = await sentinel.watched(one.link)
                one.told = {name: watched.master for name, watched in there.items()}
                for name, shard in wanted.items():
                    if name in there and there[name].master.ip != shard.master_ip:
                        self.differs(shard.id)
            for name in one.told.keys() - wanted.keys():
                await sentinel.unwatch(one.link, name)
                del one.told[name]
            for name in wanted.keys() - one.told.keys():
                shard = wanted[name]
                master = Address(shard.master_ip, shard.port)
                await sentinel.watch(one.link, name, master, self._open_secret(shard.internal_secret))
                one.told[name] = master
        except _OUT_OF_REACH as error:
            one.told = None
            if not isinstance(error, ConnectionError):
                log.warning("sentinel does not listen", port=one.address.port, why=str(error))

    def _seen(self, shard: Guarded) -> int:
        """Which watch is on. None is only when no Sentinel watches any more."""
        if shard.clustered:
            return shard.watch if shard.watched else 0
        name = name_of(shard)
        if shard.watched:
            told = [one.told for one in self._watching_set(shard).living]
            on = sum(names is not None and name in names for names in told) >= sentinel.QUORUM
            return shard.watch if on else 0
        mine = f"{shard.id}."
        told = [one.told for one_set in self._sets for one in one_set.living]
        off = all(names is not None and not any(one.startswith(mine) for one in names) for names in told)
        return 0 if off else shard.seen_watch

    # --- A master that is dead -------------------------------------------------------------------

    async def replaced(self, watched: Watched) -> bool:
        """Before a master that died is started again: whether another node is master now, so that it is not
        to be started as one. If a replica can take its place, it does."""
        node = watched.node
        if node.role is not Role.MASTER or not watched.was_up:
            return False
        shard = await self._store.run(self._guarded, node.shard_id)
        if shard is None or not shard.watched:
            return False
        if shard.master_id != node.id:
            await asyncio.sleep(0.005)  # the new rows have not been read yet
            return True
        replicas = self._replicas(shard)
        await self._sure_of(replicas)
        if not any(one.answering for one in replicas):
            return False
        began = time.monotonic()
        able: list[Watched] = []
        master = await (self._decided(shard) if shard.clustered else self._elected(shard, replicas))
        if master is None and (able := await self._able(replicas)):
            if shard.clustered:
                master = await self._take_over(able)
            else:
                master = await self._fail_over(shard, replicas)
        if master is None:
            log.warning("no replica takes the master's place", shard=shard.id, node=node.id)
            if not able or watched.server.has_data(node.settings):
                return False
            # it would come back empty, and the replicas copy that
            if not await self._promote(shard, node.id, able[0], began):
                await asyncio.sleep(AGAIN_SECONDS)
            return True
        self._declined.pop(node.id, None)
        await self._adopt(shard, master, began)
        return True

    async def outdated(self, watched: Watched) -> bool:
        """Before a running server is changed to what its row says: whether its row is from before a failover
        that nobody has written down yet. Then it is written now, and there is something else to do."""
        node = watched.node
        if node.settings.clustered or not watched.was_up:
            return False
        shard = await self._store.run(self._guarded, node.shard_id)
        if shard is None or not shard.watched or await self._follows_its_row(watched):
            return False
        await self._sure_of(self._replicas(shard))
        decided = await self._decided(shard)
        if decided is not None:
            await self._adopt(shard, decided, time.monotonic())
        return decided is not None

    async def _sure_of(self, replicas: list[Watched]) -> None:
        """An agent that has just begun knows neither Sentinels nor whether the servers it found answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SURE_SECONDS):
                await self._ready.wait()
                while any(one.server.alive and not one.sure for one in replicas):
                    await asyncio.sleep(0.005)

    def _guarded(self, shard_id: str) -> Guarded | None:
        with self._store.read() as tx:
            return shards.guarded_one(tx, shard_id)

    def _replicas(self, shard: Guarded) -> list[Watched]:
        return [
            one
            for one in self._watched.values()
            if one.node.shard_id == shard.id and one.node.id != shard.master_id and one.node.run is Run.UP
        ]

    async def _elected(self, shard: Guarded, replicas: list[Watched]) -> Node | None:
        """The replica that Sentinels have put in the master's place, or are about to: they find a master dead
        by themselves, when we were not there or it hung first. If they were told so again meanwhile, they
        would promote a second one. Who is master in fact counts: they say so a moment later."""
        deadline = time.monotonic() + PROMOTED_SECONDS
        while True:
            under_way = any(one.failing_over for one in await self._known(shard))
            master = await self._promoted(replicas, 0.0)
            if master is not None or not under_way or time.monotonic() > deadline:
                return master
            await asyncio.sleep(0.005)

    async def _fail_over(self, shard: Guarded, replicas: list[Watched]) -> Node | None:
        """Tell the Sentinels that the master is dead, and see whom they put in its place."""
        name, told, under_way = name_of(shard), False, False
        for one in self._watching_set(shard).living:
            try:
                await sentinel.fail_over(one.link, name)
                told = True
                break
            except ResponseError as error:
                log.info("sentinel declines", shard=shard.id, why=str(error))
                under_way = under_way or "INPROG" in str(error)
            except _OUT_OF_REACH:
                one.told = None
        if not (told or under_way):
            # It hung before it died. They may decline now, as they have not asked replicas lately, and yet
            # be about to replace it: if it were started again, what it takes until then would be lost
            under_way = any(one.given_up for one in await self._known(shard))
        return await self._promoted(replicas, PROMOTED_SECONDS if told or under_way else 0.0)

    async def _promote(self, shard: Guarded, node_id: str, able: Watched, began: float) -> bool:
        """Put a replica in the place of a dead master without data of which the Sentinels know no replica: as
        they learn of those from the master alone, they would decline for ever. They begin anew with it."""
        since = self._declined.setdefault(node_id, time.monotonic())
        if shard.clustered or time.monotonic() - since < DECLINED_SECONDS:
            return False
        del self._declined[node_id]
        try:
            await _link(able).call("REPLICAOF", "NO", "ONE")
        except _OUT_OF_REACH:
            return False
        await self._adopt(shard, able.node, began, anew=True)
        return True

    async def _promoted(self, replicas: list[Watched], seconds: float) -> Node | None:
        """The replica that becomes master, soon."""
        deadline = time.monotonic() + seconds
        while True:
            for one in replicas:
                if await self._is_master(one):
                    return one.node
            if time.monotonic() > deadline or not any(one.server.alive for one in replicas):
                return None
            await asyncio.sleep(0.005)

    async def _is_master(self, one: Watched) -> bool:
        return await self._role(one) == ("master", None)

    async def _follows_its_row(self, one: Watched) -> bool:
        said = await self._role(one)
        return said is not None and said[1] == one.node.settings.replica_of

    async def _role(self, one: Watched) -> tuple[str, Address | None] | None:
        if one.server.link is None or not one.server.alive:
            return None
        return await _asked(redis.role(one.server.link))

    async def _take_over(self, able: list[Watched]) -> Node | None:
        """Have a replica of a cluster take the slots without a vote: the master is known to be dead."""
        for one in able:
            try:
                await self._told_epoch(one)
                await take_over(_link(one))
            except _OUT_OF_REACH as error:
                log.warning("replica does not take over", node=one.node.id, why=str(error))
            else:
                return one.node
        return None

    async def _told_epoch(self, one: Watched) -> None:
        """A replica's claim must be newer than its master's was, or both claim the slots when that is back:
        so it hears first of the newest epoch that anybody knows."""
        said: list[tuple[int, Watched]] = []
        for other in list(self._watched.values()):  # nodes come and go meanwhile
            if other.node.instance_id == one.node.instance_id and other.answering and other.server.alive:
                found = await _asked(epochs(_link(other)))
                if found is not None:
                    said.append((found.current, other))
        newest, who = max(said, key=lambda pair: pair[0], default=(0, one))
        deadline = time.monotonic() + HEARD_SECONDS
        while (await epochs(_link(one))).current < newest and time.monotonic() < deadline:
            await tell_epoch(_link(who), Address(one.node.ip, one.node.port))
            await asyncio.sleep(0.005)

    async def _able(self, replicas: list[Watched]) -> list[Watched]:
        """The replicas that may take the master's place, best first: those that have its data, most of it
        first, then by priority. One that is still being given its first copy must not."""
        standing = await asyncio.gather(*(self._standing(one) for one in replicas))
        found = [(rank, one) for rank, one in zip(standing, replicas, strict=True) if rank is not None]
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    async def _standing(self, one: Watched) -> tuple[int, int] | None:
        if not one.server.alive or not one.answering or one.node.priority == 0:
            return None
        said = await self._drained(one)
        if said is None:
            return None
        if said.get("role") != "slave" or said.get("master_sync_in_progress") != "0":
            return None
        # -1: it never had the master's data
        if not -1 < int(said.get("master_link_down_since_seconds", "0")) <= STALE_SECONDS:
            return None
        return -int(said["slave_repl_offset"]), one.node.priority

    async def _drained(self, one: Watched) -> dict[str, str] | None:
        """What a replica says of replication, once it has read all that its dead master had sent. One that is
        promoted earlier throws the rest away."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while (info := await _asked(_link(one).call("INFO", "replication"))) is not None:
            said = redis.parse_info(info)
            if said.get("master_link_status") != "up" or time.monotonic() > deadline:
                return said
            await asyncio.sleep(0.002)
        return None

    # --- Decisions that were made without us -----------------------------------------------------

    def differs(self, shard_id: str) -> None:
        """A node is not in the role that its row says, or a master is silent: see what becomes of it."""
        if shard_id not in self._following:
            task = self._following[shard_id] = asyncio.create_task(self._follow(shard_id))
            task.add_done_callback(partial(self._followed, shard_id))

    def _followed(self, shard_id: str, task: "asyncio.Task[None]") -> None:
        del self._following[shard_id]
        tell_failure(task, shard=shard_id)

    async def _follow(self, shard_id: str) -> None:
        """Until the shard's master by rows is its master in fact, ask who is."""
        doubted = heard = time.monotonic()
        while True:
            shard = await self._store.run(self._guarded, shard_id)
            if shard is None or (not shard.clustered and not shard.watched):
                return
            decided = await self._decided(shard)
            if decided is not None:
                await self._adopt(shard, decided, time.monotonic())
                return
            master = self._watched.get(shard.master_id)
            if master is None or not master.server.alive:
                return  # `replaced` sees to it
            known = await self._known(shard) if not shard.clustered else []
            if sum(one.silent for one in known) < sentinel.QUORUM:
                heard = time.monotonic()
            if any(one.given_up for one in known) or time.monotonic() - heard > ALONE_SECONDS:
                # it will be replaced: if it comes back before it hears so, it must not take writes.
                # (Sentinels that began while it hung do not hear of each other: they never give it up)
                log.warning("silent master ended", node=master.node.id)
                await master.server.kill()
                return
            if not master.answering or any(one.silent for one in known):
                doubted = time.monotonic()
            elif time.monotonic() - doubted > SETTLED_SECONDS:
                return  # all is well. (That a script is busy is an answer to us, and none to Sentinel.)
            await asyncio.sleep(0.05)

    async def _decided(self, shard: Guarded) -> Node | None:
        """The node that the engine made master, if it is another one than the rows say."""
        if shard.clustered:
            return await self._decided_by_cluster(shard)
        known = await self._known(shard)
        newest = max((found.epoch for found in known), default=0)
        # the one that carries a failover out names the old master until all replicas follow the new one
        named = {found.master.ip for found in known if found.epoch == newest}
        for one in self._replicas(shard):
            if one.node.ip in named and await self._is_master(one):
                return one.node
        return None

    async def _known(self, shard: Guarded) -> list[sentinel.Watched]:
        """What each Sentinel that watches the shard says of it."""
        name = name_of(shard)
        said = await asyncio.gather(
            *(_asked(sentinel.watched_as(one.link, name)) for one in self._watching_set(shard).living)
        )
        return [found for found in said if found is not None]

    async def _decided_by_cluster(self, shard: Guarded) -> Node | None:
        """The node of the shard that says it is the master, of several the one with the highest epoch: one
        that has just been started again may not have heard yet that it was replaced."""
        claims: list[tuple[int, Node]] = []
        for one in list(self._watched.values()):  # nodes come and go meanwhile
            link = one.server.link
            if one.node.shard_id != shard.id or link is None or not one.answering:
                continue
            if (seen := await _asked(cluster.members(link))) is None:
                continue
            me = cluster.myself(seen)
            if me.role is Role.MASTER and (me.slots or _follows(seen, me)):
                claims.append((me.epoch, one.node))
        best = max(claims, key=lambda claim: claim[0], default=None)
        return best[1] if best is not None and best[1].id != shard.master_id else None

    async def _adopt(self, shard: Guarded, master: Node, began: float, *, anew: bool = False) -> None:
        """Write into the rows who is master now; an old one that hangs is ended, to free its address. `anew`:
        the Sentinels have not heard of it."""
        done = await self._store.run(self._write_master, shard, master.id, anew)
        if not done:
            return
        took = round((time.monotonic() - began) * 1000, 1)
        log.warning("master replaced", shard=shard.id, old=shard.master_id, new=master.id, took_ms=took)
        old = self._watched.get(shard.master_id)
        if old is not None and old.server.alive and not old.answering:
            await old.server.kill()

    def _write_master(self, shard: Guarded, master_id: str, anew: bool) -> bool:
        with self._store.write() as tx:
            now = shards.guarded_one(tx, shard.id)
            instance = instances.get(tx, shard.instance_id)
            there = nodes.of_shard(tx, shard.id)
            if now is None or instance is None or master_id not in {node.id for node in there}:
                return False
            if (now.master_id, now.watch) != (shard.master_id, shard.watch):
                return False  # a task has moved it meanwhile
            nodes.hand_over(tx, instance, there, master_id)
            if anew:
                shards.watch_anew(tx, shard.id)
        return True

    # --- Stopped processes -----------------------------------------------------------------------

    async def end_stopped(self) -> None:
        """A chore: a server that somebody stopped (SIGSTOP) serves nothing and holds its address: if its
        shard has another node, it is ended, and so becomes a dead one like any other."""
        for one in self._watched.values():
            process = one.server.process
            if process is None or not process.alive or one.node.shard_id not in self._watching:
                continue
            was, one.stopped = one.stopped, process.is_stopped
            if was and one.stopped and one.node.run is Run.UP and self._has_siblings(one.node):
                log.warning("stopped server ended", node=one.node.id, pid=process.pid)
                process.signal(signal.SIGKILL)
        for one_set in self._sets:
            one_set.end_stopped()

    def _has_siblings(self, node: Node) -> bool:
        return any(
            other.node.shard_id == node.shard_id and other.node.id != node.id and other.answering
            for other in self._watched.values()
        )


async def _asked(question: Awaitable[T]) -> T | None:
    with suppress(*_OUT_OF_REACH):
        return await question
    return None


def _link(one: Watched) -> Link:
    """To a server that is there."""
    assert one.server.link is not None  # noqa: S101
    return one.server.link


def _follows(seen: Iterable[cluster.Member], me: cluster.Member) -> bool:
    """Whether somebody is the replica of that one: a shard that has just no slots."""
    return any(member.master_id == me.engine_id for member in seen)
