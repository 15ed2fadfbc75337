"""One proxy on this host: its directory, its process, the questions to it.

`agent.proxies` says when to start, change and end it; here is how. The directory holds `lock` and
`pid` (see `agent.process`), the configuration, which has no secret in it, the control socket and what
the process printed. Nothing of it is worth keeping: a proxy that is not wanted has no directory.
"""

import asyncio
import errno
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cacheyard.agent import process
from cacheyard.agent.certifier import Certifier, in_memory
from cacheyard.agent.process import AlreadyRuns, Process, Record
from cacheyard.domain import certificates
from cacheyard.domain.nodes import Address
from cacheyard.domain.proxies import ProxySettings
from cacheyard.engine import find, proxy
from cacheyard.engine.proxy import State

LOG = "proxy.log"
TERM_SECONDS = 2.0  # for commands under way; then SIGKILL
KILL_SECONDS = 10.0


class ProxyProcess:
    """One of them. It belongs to the event loop that made it."""

    def __init__(
        self, directory: Path, on_exit: Callable[[Process], None], certifier: Certifier | None = None
    ) -> None:
        """Without a certifier it can only be ended."""
        self.directory = directory
        self._certifier = certifier
        self._told: str | None = None  # the certificate that the process has been told of; None: not known
        self.process: Process | None = None
        self.version = ""  # of the program that runs; empty: not known
        self._on_exit = on_exit

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.alive

    @property
    def there(self) -> bool:
        """Whether anything of it is there."""
        return self.alive or self.directory.exists()

    def adopt(self) -> bool:
        """Take over the process of an earlier agent, if it runs."""
        found = process.find(self.directory) if self.directory.is_dir() else None
        if found is not None:
            self.process = Process(*found, self._on_exit)
            self.version = self.process.record.version
        return found is not None

    async def start(self, program: str, settings: ProxySettings, secret: str) -> None:
        """Start the process; it runs when this returns, but may not listen yet.

        Raises `OSError`, `AlreadyRuns`.
        """
        self.process = Process(
            *await asyncio.to_thread(self._start, program, settings, secret), self._on_exit
        )

    async def reload(self, settings: ProxySettings, seconds: float) -> None:
        """Have the running process take other settings, a new certificate too. Raises `OSError`."""
        key = self._certify(settings)
        try:
            # ours, for as long as it reads it
            self._write(settings, f"/proc/{os.getpid()}/fd/{key}")
            await proxy.reload(self.directory, seconds)
            self._told = self._certificate()
        finally:
            if key is not None:
                os.close(key)

    @property
    def expires(self) -> int | None:
        """Until when its certificate is valid; None: it has none."""
        found = self._certificate()
        return None if found is None else certificates.expires(found)

    def is_certified(self, settings: ProxySettings) -> bool:
        """Whether it shows a certificate that fits, if it needs one."""
        if not settings.tls or self._certifier is None:
            return True
        return self._told is not None and self._certifier.fits(self._told, settings.tls)

    async def is_outdated(self, program: str | None) -> bool:
        """Whether that program is installed now, in another version than the one that runs."""
        if program is None:
            return False
        return await asyncio.to_thread(find.proxy_version, program) not in (None, self.version)

    async def state(self, seconds: float) -> State:
        """What it says of itself. Raises `ProxyError`."""
        return await proxy.state(self.directory, seconds)

    async def end(self) -> None:
        """End the process, which lets commands under way finish."""
        running = self.process
        if running is None or not running.alive:
            return
        running.expected = True
        running.signal(signal.SIGTERM)
        if not await running.wait(TERM_SECONDS):
            running.signal(signal.SIGKILL)
            if not await running.wait(KILL_SECONDS):
                raise OSError(f"process {running.pid} does not end")

    async def remove(self) -> None:
        """End the process and remove the directory."""
        await self.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End the process at once; that it ends is an accident."""
        if self.process is not None:
            self.process.signal(signal.SIGKILL)

    def let_go(self) -> None:
        """Leave the process running."""
        if self.process is not None:
            self.process.forget()

    def last_words(self) -> str:
        """The last line that it printed, for people who ask why it ended."""
        try:
            lines = (self.directory / LOG).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _start(self, program: str, settings: ProxySettings, secret: str) -> tuple[Record, int]:
        version = find.proxy_version(program)  # it may be another one since the last time
        if version is None:
            raise OSError(f"{program} does not run here")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = process.take(self.directory)
        if lock is None:
            raise AlreadyRuns(str(self.directory))
        held = [lock]
        try:
            key = self._certify(settings)
            if key is not None:
                held.append(key)
            self._told = self._certificate()
            self._write(settings, f"/proc/self/fd/{key}")
            (self.directory / LOG).unlink(missing_ok=True)
            listen = settings.listen
            record = Record(
                boot="",
                pid=0,
                started=0,
                incarnation=1,
                generation=1,
                ip=listen.ip,
                port=listen.port,
                version=version,
            )
            command, gate = [program, proxy.CONF], proxy.gate(secret)
            started = process.spawn(self.directory, tuple(held), command, gate, record, output_name=LOG)
        finally:
            for descriptor in held:
                os.close(descriptor)
        self.version = version
        _let_open_files(started[0].pid)
        return started

    def _certify(self, settings: ProxySettings) -> int | None:
        """A new certificate in its file, each time; and its key, which is in memory alone."""
        file = self.directory / proxy.CERTIFICATE
        if not settings.tls or self._certifier is None:
            file.unlink(missing_ok=True)
            return None
        pair = self._certifier.issue(settings.tls)
        _replace(file, pair.certificate)
        return in_memory(pair.key)

    def _certificate(self) -> str | None:
        try:
            return (self.directory / proxy.CERTIFICATE).read_text()
        except FileNotFoundError:
            return None

    def _write(self, settings: ProxySettings, key: str) -> None:
        _replace(self.directory / proxy.CONF, proxy.conf(settings, key))


def _replace(file: Path, text: str) -> None:
    made = file.with_name(f"{file.name}.new")
    made.write_text(text)
    made.replace(file)


def held(address: Address) -> bool:
    """Whether somebody who does not share it, as proxies do, listens at an address. Raises `OSError` when the
    machine does not have it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((address.ip, address.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
    return False


def _let_open_files(pid: int) -> None:
    """As many as this machine allows: a client is a file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ProcessLookupError):  # it has ended already, and why is in its log
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
