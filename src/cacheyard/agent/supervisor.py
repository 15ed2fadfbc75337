"""Makes the processes of this host equal to its rows: the agent's loop.

Level-triggered: it reads the rows of its host, looks at the processes, and removes the difference.
Changes of this process wake it, an ending server does, and ten times a second it asks the
database whether another process has written; once a second it looks in any case. A look at nothing
new costs one query of a few columns.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial

import msgspec
import structlog

from cacheyard.agent.certifier import Certifier
from cacheyard.agent.decide import STEADY, Act, backoff, decide
from cacheyard.agent.loops import forever
from cacheyard.agent.process import AlreadyRuns, Process
from cacheyard.agent.pulse import CHECK_SECONDS, Pulse, check, listens
from cacheyard.agent.server import NotSaved, Server, end_and_remove
from cacheyard.agent.watched import Chore, Watched
from cacheyard.domain import slots
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.engine.cluster import (
    Member,
    adopting_nodes_conf,
    brought_up_to_date,
    first_nodes_conf,
    members,
)
from cacheyard.engine.redis import Link, RedisError, Refusal, role
from cacheyard.settings import Settings
from cacheyard.store import instances, nodes
from cacheyard.store.db import Store
from cacheyard.waiting import happens, until

log = structlog.get_logger()

AT_ONCE = 16  # acts at a time; more only make each slower
POLL_SECONDS = 0.1  # how often to ask whether another process has written; each wake costs 0.3 ms
LOOK_SECONDS = 1.0  # how often to look without being woken
SHARE = 4  # after reading rows for a time, pause so many times as long: at most a fifth of a core
MASTER_SECONDS = 0.5  # how long a replica's start waits for its master, which may be starting too
TOLD_SECONDS = 0.2  # how long one of several nodes has to answer before the next is asked
SLOT_SECONDS = 1.0  # how long a starting server counts as an act; loading much data must not hold up others

_EXPECTED = (OSError, RedisError, AlreadyRuns, NotSaved, TimeoutError)  # these say enough without a traceback


class Supervisor:
    """Runs until it is cancelled; the servers stay."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        host_id: str,
        *,
        open_secret: Callable[[str], str],
        version_of: Callable[[str], tuple[int, int, int]],
        certifier: Certifier,
    ) -> None:
        self.watched: dict[str, Watched] = {}
        self._store = store
        self._settings = settings
        self._host_id = host_id
        self._open_secret = open_secret
        self._version_of = version_of
        self._certifier = certifier
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._woken = asyncio.Event()
        self._dirty: set[str] = set()
        self._reports: dict[str, nodes.Report] = {}
        self._reporting: asyncio.Task[None] | None = None
        self._outlines: dict[str, nodes.Outline] = {}
        self._version = -1
        self._stale = True  # rows may have changed since they were read
        self._read_at = 0.0
        self._read_took = 0.0
        self.adopted = 0
        self.replaced: Callable[[Watched], Awaitable[bool]] | None = None  # the keeper's, as the next two
        self.outdated: Callable[[Watched], Awaitable[bool]] | None = None
        self.differs: Callable[[str], None] | None = None
        self.closed: Callable[[str], Awaitable[None]] | None = None  # the firewall's
        self.chores = [
            Chore("check", CHECK_SECONDS, self._check),
            Chore("certificates", certifier.look_seconds, self._renew),
        ]
        self.ready = asyncio.Event()  # all that ran has been adopted

    async def run(self) -> None:
        """The loop."""
        with self._store.changes() as self._woken:
            try:
                await forever(self._turn, "nodes")
            finally:
                await self._let_go()

    async def _turn(self) -> None:
        if self._must_read():
            await self._read()
        if not self.ready.is_set():
            await self._remove_orphans()
            self.ready.set()
        for chore in self.chores:
            chore.start_if_due()
        dirty, self._dirty = self._dirty, set()
        for node_id in dirty:
            if (watched := self.watched.get(node_id)) is not None:
                self._consider(watched)
        if not self._dirty:
            await self._pause()

    def _must_read(self) -> bool:
        now, version = time.monotonic(), self._store.data_version()
        if self._woken.is_set() or version != self._version or now - self._read_at > LOOK_SECONDS:
            self._stale = True
        self._woken.clear()
        self._version = version
        return self._stale and self._rest(now) <= 0

    def _rest(self, now: float) -> float:
        """Seconds until rows may be read again."""
        return self._read_at + SHARE * self._read_took - now

    async def _pause(self) -> None:
        seconds = min(POLL_SECONDS, self._rest(time.monotonic())) if self._stale else POLL_SECONDS
        await happens(self._woken, max(0.0, seconds))

    def look(self, node_id: str) -> None:
        """Have the loop consider a node."""
        self._dirty.add(node_id)
        self._woken.set()

    # --- Rows ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        began, self._stale = time.monotonic(), False
        outlines, changed = await self._store.run(self._read_changed, dict(self._outlines))
        for node in changed:
            self._note_row(node)
        for node_id in self._outlines.keys() - outlines.keys():
            watched = self.watched[node_id]
            watched.vanished = True
            watched.node = msgspec.structs.replace(watched.node, run=Run.GONE)
            self._dirty.add(node_id)
        self._outlines = outlines
        self._read_at = time.monotonic()
        self._read_took = self._read_at - began

    def _read_changed(
        self, known: dict[str, nodes.Outline]
    ) -> tuple[dict[str, nodes.Outline], Iterable[Node]]:
        with self._store.read() as tx:
            outlines = {outline.id: outline for outline in nodes.outlines_of_host(tx, self._host_id)}
            changed = [node_id for node_id, outline in outlines.items() if known.get(node_id) != outline]
            return outlines, nodes.by_ids(tx, changed) if changed else ()

    def _note_row(self, node: Node) -> None:
        watched = self.watched.get(node.id)
        if watched is None:
            server = Server(self._settings.nodes / node.id, partial(self._exited, node.id), self._certifier)
            watched = self.watched[node.id] = Watched(node, server)
            if watched.directory and server.adopt(node, self._open_secret(node.settings.internal_secret)):
                watched.sure = False
                self.adopted += 1
                self._feel(watched)
        watched.node = node
        watched.vanished = False
        watched.failures, watched.not_before = 0, 0.0  # what failed may do with other settings
        self._dirty.add(node.id)

    async def _remove_orphans(self) -> None:
        """Servers and directories of nodes whose rows went while no agent was there."""
        if not self._settings.nodes.is_dir():
            return
        for directory in sorted(self._settings.nodes.iterdir()):
            if directory.is_dir() and directory.name not in self.watched:
                await end_and_remove(directory)
                log.info("orphan removed", node=directory.name)

    # --- Acts ------------------------------------------------------------------------------------

    def _consider(self, watched: Watched) -> None:
        if watched.sure or not watched.server.alive:
            self._report(watched)
        if watched.task is not None:
            return  # considered again when it is done
        now = time.monotonic()
        act = decide(watched.node, watched.seen, now)
        if act is Act.WAIT:
            delay = watched.not_before - now
            asyncio.get_running_loop().call_later(delay, self.look, watched.node.id)
        elif act is not None:
            watched.task = asyncio.create_task(self._carry_out(watched))
            watched.task.add_done_callback(lambda task: self._done(watched, task))
        elif watched.vanished:
            del self.watched[watched.node.id]

    async def _carry_out(self, watched: Watched) -> None:
        if watched.node.run is Run.UP and not watched.server.alive:
            if self.replaced is not None and await self.replaced(watched):
                self._stale = True
                return
            await self._master_first(watched.node)
        elif self.outdated is not None and await self.outdated(watched):
            self._stale = True
            return
        async with self._slots:
            # more may have changed while it waited its turn
            act = decide(watched.node, watched.seen, time.monotonic())
            node, began = watched.node, time.monotonic()
            facts: dict[str, object] = {}
            match act:
                case Act.START:
                    done = "node started"
                    await self._start(watched)
                case Act.RESTART:
                    done = "node restarted"
                    known = watched.seen.incarnation > 0
                    await watched.server.stop(node, keep=node.keep_data or not known)
                    await self._start(watched)
                case Act.APPLY:
                    done = "node changed"
                    secret = self._open_secret(node.settings.internal_secret)
                    try:
                        facts["changed"] = await watched.server.apply(node, secret)
                    except Refusal:
                        watched.refused = node.generation
                        raise
                    watched.failures, watched.error, watched.refused = 0, None, 0
                case Act.STOP:
                    done = "node stopped"
                    await watched.server.stop(node, keep=node.keep_data)
                case Act.REMOVE:
                    done = "node removed"
                    self._report(watched)
                    await watched.server.remove()
                    watched.directory = False
                case _:
                    return
            took = round((time.monotonic() - began) * 1000, 1)
            pid = watched.server.process.pid if watched.server.process else None
            log.info(done, node=node.id, role=node.role.value, pid=pid, took_ms=took, **facts)

    async def _master_first(self, node: Node) -> None:
        """A replica that does not find its master tries again a second later: better to wait a little."""
        if (master := node.settings.replica_of) is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(MASTER_SECONDS):
                while not await listens(master):
                    await asyncio.sleep(0.003)

    async def _start(self, watched: Watched) -> None:
        node = watched.node
        if self.closed is not None:  # nobody is to get in before the whitelist is in force
            await self.closed(node.instance_id)
        watched.directory = True
        secret = self._open_secret(node.settings.internal_secret)
        nodes_conf = None
        if node.settings.clustered:
            nodes_conf = await self._nodes_conf(watched, secret)
        await watched.server.start(node, secret, self._version_of(node.binary), nodes_conf)
        pulse = self._feel(watched)
        await pulse.first_answer(SLOT_SECONDS)

    async def _nodes_conf(self, watched: Watched, secret: str) -> str:
        """How a member of a Redis Cluster that does not know the others comes to know them. One of those says
        who has which slots: a master that lost its directory has them still."""
        node = watched.node
        if node.settings.replica_of is not None:
            return adopting_nodes_conf(node, node.settings.replica_of)
        instance, everyone = await self._store.run(self._family, node)
        if (mine := watched.server.nodes_conf()) is not None:
            return brought_up_to_date(mine, everyone, await self._replaced_by(node, everyone))
        shares = slots.balanced(len({one.shard_id for one in everyone}))
        if instance is not None and instance.launched_at is None:
            return first_nodes_conf(node, everyone, shares)
        others = [one for one in everyone if one.id != node.id]
        if not any(self._knows_cluster(one) for one in others):
            return first_nodes_conf(node, everyone, shares, again=True)
        told = await until(
            partial(_told, others, secret, self._certifier),
            seconds=SLOT_SECONDS,
            what="a node to say which slots are whose",
        )
        return first_nodes_conf(node, everyone, None, told=told)

    async def _replaced_by(self, node: Node, everyone: Iterable[Node]) -> str | None:
        """The engine id of the node that is master in this one's place, by its row and in fact."""
        for one in everyone:
            watched = self.watched.get(one.id)
            if one.id == node.id or one.shard_id != node.shard_id or one.role is not Role.MASTER:
                continue
            if watched is not None and watched.answering and watched.server.link is not None:
                with suppress(RedisError, OSError):
                    if (await role(watched.server.link))[0] == "master":
                        return one.engine_id
        return None

    def _family(self, node: Node) -> tuple[Instance | None, list[Node]]:
        with self._store.read() as tx:
            everyone = nodes.of_instance(tx, node.instance_id)
            return instances.get(tx, node.instance_id), [one for one in everyone if one.settings.clustered]

    def _knows_cluster(self, node: Node) -> bool:
        watched = self.watched.get(node.id)
        return watched is None or watched.server.knows_cluster  # of other hosts' nodes it is believed

    def _done(self, watched: Watched, task: asyncio.Task[None]) -> None:
        watched.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            watched.failures += 1
            watched.error = f"{type(error).__name__}: {error}"
            watched.not_before = time.monotonic() + backoff(watched.failures)
            whole = None if isinstance(error, _EXPECTED) else error
            log.warning("node act failed", node=watched.node.id, why=watched.error, exc_info=whole)
        self.look(watched.node.id)

    def _exited(self, node_id: str, process: Process) -> None:
        watched = self.watched.get(node_id)
        if watched is None or watched.server.process is not process:
            return
        if watched.pulse is not None:
            watched.pulse.stop()
        answered, watched.answering = watched.answering, False
        if not process.expected:
            watched.failures = watched.failures + 1 if process.age < STEADY else 0
            # the first time it goes at once, if it was any good
            watched.not_before = time.monotonic() + backoff(max(0, watched.failures - answered))
            watched.error = f"{process.ended}: {watched.server.last_words()}"
            log.warning(
                "node died", node=node_id, pid=process.pid, why=watched.error, failures=watched.failures
            )
        self.look(node_id)

    async def _renew(self) -> None:
        """New certificates for servers that speak TLS and whose own has not long to go."""
        for watched in list(self.watched.values()):
            if watched.task is not None or not watched.answering:
                continue
            try:
                done = await watched.server.renew(
                    watched.node, self._open_secret(watched.node.settings.internal_secret)
                )
            except (RedisError, OSError) as error:
                log.warning("certificate not renewed", node=watched.node.id, why=str(error))
                continue
            if done:
                log.info("certificate shown", node=watched.node.id)
                self._report(watched)

    # --- Pulse -----------------------------------------------------------------------------------

    def _feel(self, watched: Watched) -> Pulse:
        assert watched.server.link is not None  # noqa: S101
        watched.pulse = Pulse(watched.server.link, partial(self._felt, watched, watched.server.process))
        return watched.pulse

    async def _check(self) -> None:
        silent = time.monotonic() - CHECK_SECONDS / 2
        await check(
            (
                watched.server.link,
                partial(self._felt, watched, watched.server.process),
                partial(self._feel, watched),
            )
            for watched in self.watched.values()
            if watched.answering
            and watched.server.link is not None
            and watched.server.link.heard < silent  # the observer has not heard it either
            and not (watched.pulse is not None and watched.pulse.beats)
        )

    def silent(self, watched: Watched, why: str) -> None:
        """The observer says that a server did not answer in time."""
        self._felt(watched, watched.server.process, False, why)

    def _felt(self, watched: Watched, process: Process | None, answering: bool, why: str | None) -> None:
        if process is None or process is not watched.server.process or not process.alive:
            return  # the answer of one that is gone
        if answering:
            watched.was_up = True
            watched.server.settle()
        else:
            if watched.answering:
                log.warning("node does not answer", node=watched.node.id, why=why)
                if self.differs is not None:
                    self.differs(watched.node.shard_id)
            if watched.pulse is None or not watched.pulse.beats:
                self._feel(watched)
        watched.answering, watched.sure, watched.error = answering, True, why
        self._report(watched)  # somebody waits for it: not after the next reading of rows
        self.look(watched.node.id)

    # --- Reports ---------------------------------------------------------------------------------

    def _report(self, watched: Watched) -> None:
        report = watched.report()
        if report != watched.reported:
            watched.reported = report
            self._reports[report.node_id] = report
            self._write_soon()

    def _write_soon(self) -> None:
        if self._reports and self._reporting is None:
            reports, self._reports = self._reports, {}  # what comes meanwhile goes with the next transaction
            self._reporting = asyncio.create_task(self._store.run(self._write, list(reports.values())))
            self._reporting.add_done_callback(partial(self._written, reports))

    def _written(self, reports: dict[str, nodes.Report], task: "asyncio.Task[None]") -> None:
        self._reporting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("agent cannot report", nodes=len(reports), exc_info=error)
            self._reports = reports | self._reports
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._write_soon)
        else:
            self._write_soon()

    def _write(self, reports: list[nodes.Report]) -> None:
        with self._store.write() as tx:
            nodes.report_all(tx, reports)

    async def _let_go(self) -> None:
        for chore in self.chores:
            chore.stop()
        for watched in list(self.watched.values()):
            if watched.task is not None:
                watched.task.cancel()
            if watched.pulse is not None:
                watched.pulse.stop()
            if watched.server.process is not None:
                watched.server.process.forget()
            await watched.server.hang_up()
        if self._reporting is not None:
            await asyncio.wait([self._reporting])


async def _told(others: Iterable[Node], secret: str, certifier: Certifier) -> list[Member] | None:
    """What the first of these nodes of a cluster that answers says of all."""
    for other in others:
        with suppress(RedisError, OSError):
            trust = certifier.trust if other.settings.tls else None
            address = Address(other.ip, other.port)
            async with Link(address, secret, seconds=TOLD_SECONDS, trust=trust) as link:
                return await members(link)
    return None
