"""Makes the proxies of this host equal to its rows.

Level-triggered, as the supervisor is for nodes: rows say which proxies there are and what each is
configured with (`store.proxies`). Each proxy is tended by a task of its own: started, told when its
settings change, started again when it dies, ended when it hangs. Proxies outlive the agent, and
another one adopts them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog

from cacheyard.agent.certifier import Certifier
from cacheyard.agent.decide import STEADY, backoff
from cacheyard.agent.loops import forever
from cacheyard.agent.process import AlreadyRuns, Process
from cacheyard.agent.proxy import ProxyProcess, held
from cacheyard.agent.server import end_and_remove
from cacheyard.clock import now_ms
from cacheyard.domain.nodes import Address, NodeState
from cacheyard.domain.proxies import Proxy, ProxyFigures, ProxySettings, digest, places
from cacheyard.engine.proxy import ProxyError, State
from cacheyard.store import proxies
from cacheyard.store.db import Store
from cacheyard.store.proxies import ProxyReport, Wanted
from cacheyard.waiting import happens

log = structlog.get_logger()

LOOK_SECONDS = 0.5  # how often to look for processes that are stopped, and for rows that others wrote
SHARE = 4  # after reading rows for a time, rest so many times as long
SOON_SECONDS = 0.02  # how often to look at a proxy that is about to serve, or at an address that is held
ASK_SECONDS = 2.0  # how often to ask one that serves whether it still does
START_SECONDS = 10.0  # one that has said nothing for so long since its start hangs
SILENT_SECONDS = 2.5  # one that says nothing for so long when it is asked, and then again, hangs

_EXPECTED = (OSError, AlreadyRuns)  # these say enough without a traceback


class _Watched:
    """A proxy, its process, and what is remembered of it."""

    def __init__(self, row: Proxy, running: ProxyProcess) -> None:
        self.id = row.id
        self.instance_id = row.instance_id
        self.running = running
        self.settings: ProxySettings | None = None
        self.digest = ""  # of the settings
        self.vanished = False  # its row is no longer there
        self.removed = False  # and neither is anything of it
        self.woken = asyncio.Event()
        self.said: State | None = None  # by the process that runs, when it was last asked
        self.heard = time.monotonic()  # when it last said something, or was started
        self.was_up = row.seen_state is not NodeState.CREATING
        self.silences = 0  # in a row
        self.stopped = False  # when it was last looked at
        self.failures = 0
        self.not_before = 0.0
        self.error: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.reported = ProxyReport(
            proxy_id=row.id,
            state=row.seen_state,
            since=row.seen_since,
            digest=row.seen_digest,
            pid=row.seen_pid,
            error=row.seen_error,
            version=row.seen_version,
            expires=row.seen_expires,
        )

    def want(self, settings: ProxySettings | None) -> None:
        """What the row wants now."""
        wanted = digest(settings) if settings is not None else ""
        if wanted != self.digest:
            self.failures, self.not_before = 0, 0.0  # what failed may do with other settings
        if wanted != self.digest or settings is None:
            self.woken.set()
        self.settings, self.digest = settings, wanted

    def report(self) -> ProxyReport:
        """What the row should say."""
        serves = self.running.alive and self.said is not None and self.said.ready
        self.was_up = self.was_up or serves
        if serves:
            state = NodeState.ACTIVE
        elif self.settings is None and not self.running.there:
            state = NodeState.STOPPED
        else:
            state = NodeState.INACTIVE if self.was_up else NodeState.CREATING
        process = self.running.process
        return ProxyReport(
            proxy_id=self.id,
            state=state,
            since=self.reported.since if state is self.reported.state else now_ms(),
            digest=(self.said.config_digest or "") if self.said is not None else "",
            pid=process.pid if process is not None and process.alive else None,
            error=self.error,
            version=self.running.version if self.running.alive else "",
            expires=self.running.expires if self.settings is not None and self.settings.tls else None,
        )


class Proxies:
    """`run` until it is cancelled; the proxies stay."""

    def __init__(
        self,
        store: Store,
        root: Path,
        host_id: str,
        *,
        open_secret: Callable[[str], str],
        program: str | None,
        observe_seconds: float,
        closed: Callable[[str], Awaitable[None]],
        certifier: Certifier,
    ) -> None:
        """`closed`: returns when the whitelist of an instance is in force."""
        self._store = store
        self._root = root
        self._host_id = host_id
        self._open_secret = open_secret
        self._program = program
        self._observe_seconds = observe_seconds
        self._closed = closed
        self._certifier = certifier
        self._observed_at = time.monotonic()
        self._watched: dict[str, _Watched] = {}
        self._version = -1
        self.adopted = 0
        self.ready = asyncio.Event()  # all that ran has been adopted

    async def run(self) -> None:
        """The loop."""
        with self._store.changes() as self._happened:
            try:
                await forever(self._turn, "proxies")
            finally:
                for one in self._watched.values():
                    if one.task is not None:
                        one.task.cancel()
                    one.running.let_go()

    async def _turn(self) -> None:
        began, version = time.monotonic(), self._store.data_version()
        if self._happened.is_set() or version != self._version:
            self._happened.clear()
            self._version = version
            self._note(await self._store.run(self._read))
        if not self.ready.is_set():
            await self._remove_orphans()
            self.ready.set()
        self._forget_removed()
        self._end_stopped()
        if began - self._observed_at >= self._observe_seconds:
            self._observed_at = began
            await self._observe()
        await asyncio.sleep(min(LOOK_SECONDS, SHARE * (time.monotonic() - began)))
        await happens(self._happened, LOOK_SECONDS)

    # --- Rows ------------------------------------------------------------------------------------

    def _read(self) -> list[Wanted]:
        with self._store.read() as tx:
            return proxies.of_host(tx, self._host_id)

    def _note(self, rows: list[Wanted]) -> None:
        for row in rows:
            one = self._watched.get(row.proxy.id) or self._begin(row.proxy)
            one.want(row.settings)
        for proxy_id in self._watched.keys() - {row.proxy.id for row in rows}:
            self._watched[proxy_id].vanished = True
            self._watched[proxy_id].want(None)

    def _begin(self, row: Proxy) -> _Watched:
        running = ProxyProcess(self._root / row.id, partial(self._exited, row.id), self._certifier)
        one = self._watched[row.id] = _Watched(row, running)
        if running.adopt():
            self.adopted += 1
        one.task = asyncio.create_task(forever(partial(self._tend, one), f"proxy {row.id}"))
        return one

    async def _remove_orphans(self) -> None:
        """Proxies and directories whose rows went while no agent was there."""
        if not self._root.is_dir():
            return
        for directory in sorted(self._root.iterdir()):
            if directory.is_dir() and directory.name not in self._watched:
                await end_and_remove(directory)
                log.info("orphan removed", proxy=directory.name)

    def _forget_removed(self) -> None:
        for one in [one for one in self._watched.values() if one.removed]:
            del self._watched[one.id]
            if one.task is not None:
                one.task.cancel()

    # --- One proxy -------------------------------------------------------------------------------

    async def _tend(self, one: _Watched) -> None:
        """A turn: what is to be done for one proxy is done, it is reported, and then there is a pause."""
        one.woken.clear()
        try:
            pause = await self._act(one)
        except _EXPECTED as error:
            one.failures += 1
            one.error = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            pause = backoff(one.failures)
            one.not_before = time.monotonic() + pause
            log.warning("proxy act failed", proxy=one.id, why=one.error)
        await self._report(one)
        await happens(one.woken, pause)

    async def _act(self, one: _Watched) -> float:
        """The next thing, and how long to wait after it."""
        now = time.monotonic()
        if one.settings is None:
            if one.running.there:
                await one.running.remove()
                log.info("proxy removed", proxy=one.id)
            one.said, one.error = None, None
            if one.vanished:
                one.removed = True
                self._happened.set()
            return ASK_SECONDS
        if not one.running.alive:
            if now < one.not_before:
                return one.not_before - now
            return await self._start(one, one.settings)
        return await self._ask(one, one.settings)

    async def _start(self, one: _Watched, settings: ProxySettings) -> float:
        if self._program is None:
            raise OSError("the native proxy is not installed on this machine")
        if any(self._held(one, address) for address in places(settings)):
            return SOON_SECONDS
        await self._closed(one.instance_id)
        await one.running.start(self._program, settings, self._open_secret(settings.internal_secret))
        one.heard, one.silences, one.said, one.error = time.monotonic(), 0, None, None
        assert one.running.process is not None  # noqa: S101
        log.info("proxy started", proxy=one.id, pid=one.running.process.pid)
        return SOON_SECONDS / 2

    async def _ask(self, one: _Watched, settings: ProxySettings) -> float:
        try:
            said = await one.running.state(SILENT_SECONDS)
        except ProxyError as error:
            one.silences += 1  # once may mean that it was this agent which did not run
            patience = SILENT_SECONDS if one.said is not None else START_SECONDS
            if one.silences == 1 or time.monotonic() - one.heard < patience:
                return SOON_SECONDS
            log.warning("silent proxy ended", proxy=one.id, why=str(error))
            one.running.kill()
            return SOON_SECONDS
        one.heard, one.silences, one.said, one.error = time.monotonic(), 0, said, None
        if said.mode is not settings.mode:
            await one.running.end()
            return 0.0
        if said.config_digest != one.digest or not one.running.is_certified(settings):
            new = [address for address in places(settings) if not said.listens(address)]
            if any(self._held(one, address) for address in new):
                return SOON_SECONDS
            await self._closed(one.instance_id)
            await self._change(one, settings)
            return 0.0
        if not said.ready:
            one.error = "it does not know yet who serves"
            return SOON_SECONDS
        return ASK_SECONDS

    async def _change(self, one: _Watched, settings: ProxySettings) -> None:
        try:
            await one.running.reload(settings, SILENT_SECONDS)
        except ProxyError as error:
            if not await one.running.is_outdated(self._program):
                raise
            log.info("outdated proxy ended", proxy=one.id, why=str(error))
            await one.running.end()  # it may not know what it was told: what is installed now does
        else:
            log.info("proxy changed", proxy=one.id)

    def _held(self, one: _Watched, address: Address) -> bool:
        """Whether its address is not free yet, as when a server is about to give it up."""
        if not held(address):
            return False
        one.error = f"somebody else listens at {address.ip}:{address.port}"
        return True

    def _exited(self, proxy_id: str, process: Process) -> None:
        one = self._watched.get(proxy_id)
        if one is None or one.running.process is not process:
            return
        served, one.said = one.said is not None and one.said.ready, None
        if not process.expected:
            one.failures = one.failures + 1 if process.age < STEADY else 0
            # the first time it goes at once, if it was any good
            one.not_before = time.monotonic() + backoff(max(0, one.failures - served))
            one.error = f"{process.ended}: {one.running.last_words()}"
            log.warning("proxy died", proxy=proxy_id, pid=process.pid, why=one.error)
        one.woken.set()

    def _end_stopped(self) -> None:
        """One that somebody stopped (SIGSTOP) keeps its clients waiting, and takes new ones."""
        for one in self._watched.values():
            process = one.running.process
            was, one.stopped = one.stopped, process is not None and process.is_stopped
            if was and one.stopped:
                log.warning("stopped proxy ended", proxy=one.id)
                one.running.kill()

    # --- Reports ---------------------------------------------------------------------------------

    async def _report(self, one: _Watched) -> None:
        report = one.report()
        if report != one.reported and not one.vanished:
            await self._store.run(self._write, report)
            one.reported = report

    def _write(self, report: ProxyReport) -> None:
        with self._store.write() as tx:
            proxies.report_all(tx, [report])

    async def _observe(self) -> None:
        figures = [
            ProxyFigures(
                proxy_id=one.id,
                seen_at=now_ms(),
                clients=one.said.clients,
                commands=one.said.commands,
                commands_per_second=one.said.commands_per_second,
                input_bytes=one.said.input_bytes,
                output_bytes=one.said.output_bytes,
                input_kbps=one.said.input_kbps,
                output_kbps=one.said.output_kbps,
                cpu_seconds=one.said.cpu_seconds,
                memory=one.said.memory,
            )
            for one in self._watched.values()
            if one.said is not None
        ]
        if figures:
            await self._store.run(self._write_figures, figures)

    def _write_figures(self, figures: list[ProxyFigures]) -> None:
        with self._store.note() as tx:
            proxies.write_figures(tx, figures)
