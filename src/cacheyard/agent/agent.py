"""The agent of one host, as `cacheyard up` and `cacheyard agent` run it. Servers outlive it."""

import asyncio
import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from cacheyard.agent import hosts
from cacheyard.agent.certifier import Certifier
from cacheyard.agent.firewall import Firewall
from cacheyard.agent.halt import halt
from cacheyard.agent.keeper import STOPPED_SECONDS, Keeper
from cacheyard.agent.observe import Observer
from cacheyard.agent.parameters import Parameters
from cacheyard.agent.proxies import Proxies
from cacheyard.agent.sentinels import Sentinels
from cacheyard.agent.supervisor import Supervisor
from cacheyard.agent.traffic import Traffic
from cacheyard.agent.traffic import remove as remove_caps
from cacheyard.agent.watched import Chore, Watched
from cacheyard.domain.engines import Engine
from cacheyard.engine import find, nft, ours, sentinel
from cacheyard.settings import Settings
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.store.sentinels import sentinel_facts

log = structlog.get_logger()

__all__ = ["Agent", "AgentRuns", "stop_all"]


class AgentRuns(Exception):  # noqa: N818 - read as "an agent runs"
    """An agent looks after {data} already; `cacheyard down --data {data}` stops the service it is part of."""

    def __init__(self, data: Path) -> None:
        super().__init__((type(self).__doc__ or "").format(data=data))


class Agent:
    """`run` until `stop`; both in one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        az_codes: tuple[str, ...],
        host_id: str = hosts.LOCAL,
    ) -> None:
        self._settings = settings
        self._store = store
        self._az_codes = az_codes
        self._host_id = host_id
        self._task: asyncio.Task[None] | None = None
        self._versions: dict[str, tuple[int, int, int]] = {}
        self.ready = asyncio.Event()  # set when the host is registered and all that ran is adopted

    async def run(self) -> None:
        """Register the host, adopt what runs, then keep at it. Raises `AgentRuns` when another one does."""
        lock = _only_one(self._settings.nodes)
        try:
            self._task = asyncio.create_task(self._work())
            with suppress(asyncio.CancelledError):
                await self._task
        finally:
            if self._task is not None and not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])
            os.close(lock)

    async def stop(self) -> None:
        """Let go of all servers, which go on; `run` returns."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        engines = await asyncio.to_thread(find.engines)
        self._versions = {engine.binary: engine.version for engine in engines}
        proxy = await asyncio.to_thread(find.proxy)
        version = await asyncio.to_thread(find.proxy_version, proxy) if proxy is not None else None
        proxy = proxy if version is not None else None  # it is there and does not run
        fault = await asyncio.to_thread(nft.fault)
        if fault is None and not ours.joined():
            fault = "cacheyard runs in another group than its own"
        host = await hosts.register(
            self._store,
            engines,
            proxy,
            version,
            self._az_codes,
            self._host_id,
            fault,
            self._settings.bandwidth_caps,
        )
        log.info("agent runs", host=host.id, engines=[f"{e.name} {e.version_text}" for e in engines])
        sealer = await asyncio.to_thread(Sealer.of, self._settings.secret_key)
        certifier = await self._store.run(Certifier.of, self._store, sealer, self._settings)
        supervisor = Supervisor(
            self._store,
            self._settings,
            self._host_id,
            open_secret=sealer.open,
            version_of=self._version_of,
            certifier=certifier,
        )
        keeper = await self._keeper(sealer, supervisor.watched, engines, certifier)
        supervisor.replaced, supervisor.outdated = keeper.replaced, keeper.outdated
        supervisor.differs = keeper.differs
        firewall = Firewall(self._store, self._host_id, self._settings.data, fault)
        supervisor.closed = firewall.settled
        seconds = self._settings.observe_seconds
        observer = Observer(
            self._store, self._host_id, supervisor.watched, supervisor.silent, keeper.differs, seconds / 2
        )
        supervisor.chores.append(Chore("observe", seconds, observer.look))
        parameters = Parameters(self._store, supervisor.watched)
        supervisor.chores.append(Chore("parameters", self._settings.drift_seconds, parameters.look))
        supervisor.chores.append(Chore("end stopped", STOPPED_SECONDS, keeper.end_stopped))
        proxies = Proxies(
            self._store,
            self._settings.proxies,
            self._host_id,
            open_secret=sealer.open,
            program=proxy,
            observe_seconds=seconds,
            closed=firewall.settled,
            certifier=certifier,
        )
        traffic = Traffic(self._store, self._settings, self._host_id)
        began = time.monotonic()
        async with asyncio.TaskGroup() as loops:
            for loop in (firewall, traffic, supervisor, keeper, proxies):
                loops.create_task(loop.run())
            await firewall.ready.wait()
            await traffic.ready.wait()
            await supervisor.ready.wait()
            await proxies.ready.wait()
            self.ready.set()
            took = round((time.monotonic() - began) * 1000, 1)
            adopted = supervisor.adopted + proxies.adopted
            log.info("agent ready", adopted=adopted, took_ms=took)

    async def _keeper(
        self,
        sealer: Sealer,
        watched: Mapping[str, Watched],
        engines: Sequence[Engine],
        certifier: Certifier,
    ) -> Keeper:
        newest = max(engines, key=lambda engine: engine.version, default=None)
        address, secret = await self._store.run(sentinel_facts, self._store, sealer)
        plain, encrypted = (
            Sentinels(
                self._settings.sentinels,
                address,
                secret,
                self._store.wake,
                chooses_source=newest is not None and newest.version >= sentinel.SOURCE_SINCE,
                certifier=issuer,
            )
            for issuer in (None, certifier)
        )
        return Keeper(
            self._store,
            watched,
            plain,
            encrypted,
            open_secret=sealer.open,
            binary=newest.binary if newest is not None else None,
        )

    def _version_of(self, binary: str) -> tuple[int, int, int]:
        if binary not in self._versions:  # installed since
            engine = find.ask(Path(binary))
            if engine is None:
                raise OSError(f"{binary} is not a server that runs here")
            self._versions[binary] = engine.version
        return self._versions[binary]


async def stop_all(settings: Settings) -> int:
    """End every server of this data directory, so that the next agent finds their data again; what is wanted
    of them stays as it is. Answers how many ran. Raises `AgentRuns` while an agent would start them again."""
    lock = _only_one(settings.nodes)
    try:
        ended = await halt(settings)
        with suppress(nft.NftError):  # without the right to it there is none of ours
            nft.remove(nft.table_of(settings.data))
        remove_caps(settings)
        return ended
    finally:
        os.close(lock)


def _only_one(nodes: Path) -> int:
    nodes.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(nodes / ".agent", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AgentRuns(nodes.parent) from None
    return lock
