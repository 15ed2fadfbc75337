"""The Sentinels of this host: three processes, as long as there is a master/standby instance, and three more
if there is one that speaks TLS.

They are the agent's own equipment, not nodes: no row wants them. They outlive the agent, like
servers do, so that a master that dies meanwhile is replaced. Each has a directory under
`sentinels/`; a new process starts from a fresh file and is told anew whom to watch.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog

from cacheyard.agent import process
from cacheyard.agent.certifier import Certifier, in_memory
from cacheyard.agent.process import AlreadyRuns, Process, Record
from cacheyard.domain.nodes import Address
from cacheyard.engine import ours, sentinel
from cacheyard.engine.redis import Link

log = structlog.get_logger()

LIFE = timedelta(days=20 * 365)
PAUSE_SECONDS = 0.5  # between two starts of one that does not stay
TERM_SECONDS = 2.0
KILL_SECONDS = 10.0


class Sentinel:
    """One of them."""

    def __init__(
        self,
        directory: Path,
        address: Address,
        password: str,
        on_exit: Callable[[], None],
        chooses_source: bool,
        certifier: Certifier | None,
    ) -> None:
        self.address = address
        self.link = Link(address, password, user=None, trust=certifier.trust if certifier else None)
        self._certifier = certifier
        self.told: dict[str, Address] | None = None  # whom it watches, as far as we know; None: ask it
        self._directory = directory
        self._password = password
        self._chooses_source = chooses_source
        self._on_exit = on_exit
        self._process: Process | None = None
        self._started = -PAUSE_SECONDS
        self._stopped = False

    @property
    def may_start(self) -> bool:
        """Whether it was not started just now."""
        return time.monotonic() - self._started >= PAUSE_SECONDS

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.alive

    def adopt(self) -> bool:
        """Take over the process of an earlier agent, if it runs."""
        found = process.find(self._directory) if self._directory.is_dir() else None
        if found is None:
            return False
        self._process, self.told = Process(*found, self._exited), None
        if ours.joined() and not ours.is_ours(self._process.pid):  # whitelists would shut it out
            self._process.signal(signal.SIGKILL)
        return True

    def start(self, binary: str) -> None:
        """Start its process. Raises `OSError`, `AlreadyRuns`."""
        self._started = time.monotonic()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = process.take(self._directory)
        if lock is None:
            raise AlreadyRuns(str(self._directory))
        held = [lock]
        try:
            key = None
            if self._certifier is not None:
                held.append(key := self._certify(self._certifier))
            file = self._directory / sentinel.CONF
            file.unlink(missing_ok=True)
            file.touch(mode=0o600)
            file.write_text(sentinel.conf(self.address, self._password, self._chooses_source, key))
            record = Record(boot="", pid=0, started=0, incarnation=1, generation=1)
            started = process.spawn(
                self._directory, tuple(held), [binary, sentinel.CONF, "--sentinel"], "", record
            )
        finally:
            for descriptor in held:
                os.close(descriptor)
        self._process, self.told = Process(*started, self._exited), None
        log.info("sentinel started", pid=self._process.pid, port=self.address.port)

    def _certify(self, certifier: Certifier) -> int:
        """Certificates as files, and the key in memory alone. Nothing is renewed, so it lasts long."""
        pair = certifier.issue([self.address.ip], life=LIFE)
        (self._directory / sentinel.CERTIFICATE).write_text(pair.certificate)
        (self._directory / sentinel.AUTHORITY).write_text(certifier.authority)
        return in_memory(pair.key)

    async def end(self) -> bool:
        """End its process and remove its directory. Whether it ran."""
        running = self._process
        ran = running is not None and running.alive
        if running is not None and ran:
            running.expected = True
            running.signal(signal.SIGTERM)
            if not await running.wait(TERM_SECONDS):
                running.signal(signal.SIGKILL)
                await running.wait(KILL_SECONDS)
        await self.link.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        return ran

    def end_if_stopped(self) -> None:
        """One that was stopped the last time, too."""
        was, self._stopped = self._stopped, self._process is not None and self._process.is_stopped
        if was and self._stopped and self._process is not None:
            self._process.signal(signal.SIGKILL)

    async def let_go(self) -> None:
        """Leave the process running."""
        if self._process is not None:
            self._process.forget()
        await self.link.close()

    def _exited(self, ended: Process) -> None:
        self.told = None
        if not ended.expected:
            log.warning("sentinel died", pid=ended.pid, why=ended.ended)
        self._on_exit()


class Sentinels:
    """All of them."""

    def __init__(
        self,
        root: Path,
        ip: str,
        secret: str,
        on_exit: Callable[[], None],
        *,
        chooses_source: bool,
        certifier: Certifier | None = None,
    ) -> None:
        """`chooses_source`: whether the program can be told from where to talk to servers. With a certifier
        they are those for servers that speak TLS."""
        password = sentinel.password_of(secret)
        self.all = [
            Sentinel(
                root / str(address.port - sentinel.PORT),
                address,
                password,
                on_exit,
                chooses_source,
                certifier,
            )
            for address in sentinel.addresses(ip, encrypted=certifier is not None)
        ]

    @property
    def living(self) -> list[Sentinel]:
        """Those whose processes are there."""
        return [one for one in self.all if one.alive]

    def adopt(self) -> None:
        """Take over those that an earlier agent left running."""
        for one in self.all:
            one.adopt()

    def there(self, binary: str) -> None:
        """All are running, or have been started. Raises `OSError`."""
        for one in self.all:
            if not one.alive and not one.adopt() and one.may_start:
                with suppress(AlreadyRuns):  # it has just died, and the kernel still has its lock
                    one.start(binary)

    async def gone(self) -> int:
        """None is running. Answers how many did."""
        for one in self.all:
            if not one.alive:
                one.adopt()
        return sum(await asyncio.gather(*(one.end() for one in self.all)))

    def end_stopped(self) -> None:
        """End those that somebody stopped (SIGSTOP), so that they are started anew."""
        for one in self.living:
            one.end_if_stopped()

    async def let_go(self) -> None:
        """Leave them running."""
        for one in self.all:
            await one.let_go()
