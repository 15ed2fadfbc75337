"""A node's server on this host: its directory, its process, the connection to it.

The supervisor says when to start, change and stop it; here is how. A server's directory holds
`lock` and `pid` (see `agent.process`), redis.conf and users.acl, written at each start and free of
secrets, and its data: the append-only file, which every restart keeps, or for a memory-only server
a dump.rdb between a graceful stop and the next start. `keep` beside it says that the dump is meant
to be loaded, `loading` that it is being; a dump without either is old data, and is removed.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from cacheyard.agent import process
from cacheyard.agent.certifier import Certifier
from cacheyard.agent.process import AlreadyRuns, Process, Record
from cacheyard.agent.pulse import listens
from cacheyard.domain import certificates
from cacheyard.domain.nodes import Address, Node, NodeSettings
from cacheyard.engine import redis, redis_conf, tls
from cacheyard.engine.cluster import legible
from cacheyard.engine.redis import Link, RedisError, ResponseError
from cacheyard.waiting import until

log = structlog.get_logger()

STOP_SECONDS = 10.0  # for a graceful stop, on top of what writing the data takes
SAVED_PER_SECOND = 50_000_000  # bytes of memory a server surely writes to its dump in a second
REWRITE_SECONDS = 60.0
TERM_SECONDS = 5.0  # from SIGTERM to SIGKILL
KILL_SECONDS = 30.0  # the kernel may take long to take a large process apart
LOG_BYTES = 8_000_000  # a server's log that is larger at its start is put aside, over the one before

KEEP = "keep"
LOADING = "loading"
_APPEND_ONLY = ("appendonlydir", "appendonly.aof")  # 7.0's and 6.2's


class NotSaved(Exception):  # noqa: N818 - read as "it was not saved"
    """The server cannot write its data down, as on a full disk; it goes on rather than lose them."""


class Server:
    """One server. `process` is None as long as there is none."""

    def __init__(self, directory: Path, on_exit: Callable[[Process], None], certifier: Certifier) -> None:
        self.directory = directory
        self._certifier = certifier
        self._certificate: str | None = None  # in its file, as last read or written
        self._told: str | None = None  # the one that the process has been told of; None: not known
        self.process: Process | None = None
        self.link: Link | None = None
        self._on_exit = on_exit

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.alive

    def adopt(self, node: Node, secret: str) -> bool:
        """Take over the process that runs in the directory, if one does."""
        found = process.find(self.directory) if self.directory.is_dir() else None
        if found is None:
            return False
        record, pidfd = found
        if node.seen_pid == record.pid and record.incarnation in (0, node.seen_incarnation):
            # what was changed since its start is only in the row
            record = msgspec.structs.replace(
                record, incarnation=node.seen_incarnation, generation=node.seen_generation
            )
        if not record.port:
            record = msgspec.structs.replace(record, ip=node.ip, port=node.port)
        if record != process.read_record(self.directory):
            process.write_record(self.directory, record)
        self._take_over(record, pidfd, secret)
        return True

    def has_data(self, settings: NodeSettings) -> bool:
        """Whether it would start with its keys, unless it never had any: there is an append-only file, and it
        is to be read."""
        return redis_conf.append_only(settings) and self._append_only_file()

    @property
    def knows_cluster(self) -> bool:
        """Whether it has been a member of a Redis Cluster, and knew the others."""
        return (self.directory / redis_conf.NODES_CONF).exists()

    def nodes_conf(self) -> str | None:
        """What it knows of its Redis Cluster; None: nothing that can be read."""
        try:
            return legible((self.directory / redis_conf.NODES_CONF).read_text(errors="replace"))
        except FileNotFoundError:
            return None

    async def start(
        self, node: Node, secret: str, version: tuple[int, int, int], nodes_conf: str | None = None
    ) -> None:
        """Start the process; it runs when this returns, but does not answer yet. `nodes_conf`: for a member
        of a Redis Cluster that does not know the others.

        Raises `OSError`, `AlreadyRuns`.
        """
        started = await asyncio.to_thread(self._start, node, secret, version, nodes_conf)
        self._take_over(*started, secret)

    async def stop(self, node: Node, *, keep: bool) -> None:
        """End the process, gracefully as long as it lets us. `keep`: a memory-only server's data too.

        Raises `NotSaved`.
        """
        running = self.process
        if running is None or not running.alive:
            return
        running.expected = True
        try:
            seconds = await self._ask_to_end(node, keep=keep)
        except NotSaved:
            running.expected = False
            raise
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("node does not stop when asked", node=node.id, pid=running.pid, why=str(error))
            seconds = 0.0
        if not await running.wait(seconds):
            running.signal(signal.SIGTERM)
            if not await running.wait(TERM_SECONDS):
                await self.kill()
        await self.hang_up()

    async def kill(self) -> None:
        """End the process at once."""
        if self.process is not None and self.process.alive:
            self.process.expected = True
            self.process.signal(signal.SIGKILL)
            if not await self.process.wait(KILL_SECONDS):
                raise OSError(f"process {self.process.pid} does not end")
        await self.hang_up()

    async def apply(self, node: Node, secret: str) -> list[str]:
        """Change the running server to the node's settings; says what changed.

        Raises `RedisError`, `OSError`.
        """
        running = self.process
        if running is None:
            return []
        assert self.link is not None  # noqa: S101
        encrypted = bool(node.settings.tls)
        if encrypted:
            await asyncio.to_thread(self._certify, node.settings, secret)
        renewed = encrypted and self._told != self._certificate
        # by the connection that is there: a server that could not take an address may listen nowhere
        changed = await redis.apply(self.link, node.settings, secret, renewed=renewed)
        self._told = self._certificate
        if running.record.tls is not encrypted:
            await redis.send_clients_away(self.link)  # they speak the other way, or may
            running.record = msgspec.structs.replace(running.record, tls=encrypted)
            process.write_record(self.directory, running.record)
        if not encrypted:
            self._forget_certificate()
        own = Address(ip=node.settings.bind[0], port=running.record.port)
        if not await listens(own):
            with suppress(ResponseError):
                await redis.listen(self.link, node.settings.bind)
            if not await listens(own):
                await self.kill()
                raise OSError("it does not listen any more")
        running.record = msgspec.structs.replace(running.record, generation=node.generation)
        return changed

    @property
    def expires(self) -> int | None:
        """Until when its certificate is valid; None: it has none."""
        found = self._read_certificate()
        return None if found is None else certificates.expires(found)

    async def renew(self, node: Node, secret: str) -> bool:
        """Have a server that speaks TLS show a new certificate, if it is time for one, or if it may not know
        of the last. Whether that was so.

        Raises `RedisError`, `OSError`.
        """
        if self.link is None or not node.settings.tls:
            return False
        await asyncio.to_thread(self._certify, node.settings, secret)
        if self._told == self._certificate:
            return False
        await redis.renew(self.link, node.settings, secret)
        self._told = self._certificate
        return True

    async def remove(self) -> None:
        """End the process and remove the directory, children of the server included."""
        await self.kill()
        if self.directory.exists():
            await asyncio.to_thread(_remove_directory, self.directory)

    def settle(self) -> None:
        """Its data are loaded: a dump they came from must not come back after a later crash."""
        if (self.directory / LOADING).exists():
            (self.directory / LOADING).unlink()
            (self.directory / redis_conf.DUMP).unlink(missing_ok=True)

    async def hang_up(self) -> None:
        """Close the connection, leave the process."""
        if self.link is not None:
            await self.link.close()

    def last_words(self) -> str:
        """The last line of its log, for people who ask why it ended."""
        try:
            with (self.directory / redis_conf.LOG).open("rb") as out:
                out.seek(max(0, out.seek(0, os.SEEK_END) - 2000))
                lines = out.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _take_over(self, record: Record, pidfd: int, secret: str) -> None:
        self.process = Process(record, pidfd, self._on_exit)
        self.link = self._open_link(secret)

    def _open_link(self, secret: str) -> Link:
        assert self.process is not None  # noqa: S101
        record = self.process.record
        trust = self._certifier.trust
        return Link(
            Address(ip=record.ip, port=record.port),
            secret,
            renamed=self._renames(),
            trust=trust if record.tls else None,
            switched=trust,
        )

    def _certify(self, settings: NodeSettings, secret: str) -> None:
        """Its files have a certificate that fits."""
        authority = self.directory / tls.AUTHORITY
        if not authority.exists() or authority.read_text() != self._certifier.authority:
            self._write(tls.AUTHORITY, self._certifier.authority)
        there = self._read_certificate()
        if there is not None and self._certifier.fits(there, settings.tls):
            return
        pair = self._certifier.issue(settings.tls, tls.password(secret))
        self._write(tls.PAIR, pair.certificate + pair.key)
        self._certificate = pair.certificate

    def _forget_certificate(self) -> None:
        self._certificate = None
        for name in (tls.PAIR, tls.AUTHORITY):
            (self.directory / name).unlink(missing_ok=True)

    def _read_certificate(self) -> str | None:
        if self._certificate is None:
            with suppress(FileNotFoundError):
                self._certificate = (self.directory / tls.PAIR).read_text()
        return self._certificate

    def _renames(self) -> dict[str, str]:
        try:
            return redis_conf.renames_in((self.directory / redis_conf.CONF).read_text())
        except FileNotFoundError:
            return {}

    # --- Starting: in a thread -------------------------------------------------------------------

    def _start(
        self, node: Node, secret: str, version: tuple[int, int, int], nodes_conf: str | None
    ) -> tuple[Record, int]:
        self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        lock = _take(self.directory)
        try:
            if nodes_conf is not None:
                self._write(redis_conf.NODES_CONF, nodes_conf)
            return self._spawn(node, secret, version, lock)
        finally:
            os.close(lock)

    def _spawn(self, node: Node, secret: str, version: tuple[int, int, int], lock: int) -> tuple[Record, int]:
        settings, incarnation, generation = node.settings, node.incarnation, node.generation
        appends = redis_conf.append_only(settings)
        from_dump = self._has_dump_for(node)
        if from_dump and appends:
            generation = 0  # it starts without AOF, to read the dump; applying the settings turns it on
        if appends and not from_dump and self._append_only_file() and self._flushes_renamed(node):
            # the file may hold FLUSHALL by the old name: start so, and anew when the file is rewritten
            settings, incarnation = msgspec.structs.replace(settings, rename_commands=self._renames()), 0
        if not appends:
            self._remove_append_only()
        if settings.tls:
            self._certify(settings, secret)
        else:
            self._forget_certificate()
        self._told = self._certificate
        rendered = redis_conf.render(settings, secret, version, self.directory, from_dump=from_dump)
        self._write(redis_conf.CONF, rendered.file)
        self._write(redis_conf.ACL, rendered.acl)
        self._put_log_aside()
        record = Record(
            boot="",
            pid=0,
            started=0,
            incarnation=incarnation,
            generation=generation,
            ip=node.ip,
            port=settings.port,
            tls=bool(settings.tls),
        )
        return self._run(node.binary, lock, rendered.gate, record)

    def _run(self, binary: str, lock: int, gate: str, record: Record) -> tuple[Record, int]:
        """The server reads its configuration by a descriptor. So CONFIG REWRITE, which Sentinel sends and
        tenants may, fails: it would write down the port and the secrets that the gate alone has."""
        conf = os.open(self.directory / redis_conf.CONF, os.O_RDONLY)
        try:
            command = [binary, f"/proc/self/fd/{conf}", "-"]
            return process.spawn(self.directory, (lock, conf), command, gate, record)
        finally:
            os.close(conf)

    def _has_dump_for(self, node: Node) -> bool:
        """Whether there is a dump that this start shall load; one that it shall not is removed."""
        keep, loading, dump = (self.directory / name for name in (KEEP, LOADING, redis_conf.DUMP))
        with suppress(FileNotFoundError):
            keep.replace(loading)
        try:
            saved_by = int(loading.read_text())
        except (FileNotFoundError, ValueError):
            saved_by = None
        # a later restart may have been asked for without the data
        wanted = saved_by is not None and (saved_by == node.incarnation or node.keep_data)
        if wanted and dump.exists():
            return True
        loading.unlink(missing_ok=True)
        dump.unlink(missing_ok=True)
        return False

    def _flushes_renamed(self, node: Node) -> bool:
        if not (self.directory / redis_conf.CONF).exists():
            return False
        old, new = self._renames(), node.settings.rename_commands
        return any(old.get(name) != new.get(name) for name in ("flushall", "flushdb"))

    def _append_only_file(self) -> bool:
        return any((self.directory / name).exists() for name in _APPEND_ONLY)

    def _remove_append_only(self) -> None:
        shutil.rmtree(self.directory / _APPEND_ONLY[0], ignore_errors=True)
        (self.directory / _APPEND_ONLY[1]).unlink(missing_ok=True)

    def _put_log_aside(self) -> None:
        file = self.directory / redis_conf.LOG
        with suppress(FileNotFoundError):
            if file.stat().st_size > LOG_BYTES:
                file.replace(file.with_suffix(".log.1"))

    def _write(self, name: str, text: str) -> None:
        made = self.directory / f"{name}.new"
        made.touch(mode=0o600)
        made.write_text(text)
        made.replace(self.directory / name)

    # --- Stopping --------------------------------------------------------------------------------

    async def _ask_to_end(self, node: Node, *, keep: bool) -> float:
        """Ask the server to end. Answers how many seconds it may take."""
        assert self.link is not None  # noqa: S101
        link = self.link
        if (self.directory / LOADING).exists():  # it still reads the last dump, which stays as it is
            if keep:
                (self.directory / LOADING).replace(self.directory / KEEP)
            await redis.shutdown(link, save=False, seconds=STOP_SECONDS)
            return STOP_SECONDS
        appends = (await link.call("CONFIG", "GET", "appendonly"))[1] == "yes"
        wants = redis_conf.append_only(node.settings)
        if appends and wants and self._flushes_renamed(node):
            await self._rewrite(link)
        elif appends:  # a replica that has just synced refuses to end while it writes its first file
            await _appends_alone(link, STOP_SECONDS)
        save = keep and not (appends and wants)
        seconds = STOP_SECONDS
        if save:
            used = int(redis.parse_info(await link.call("INFO", "memory"))["used_memory"])
            seconds += used / SAVED_PER_SECOND
            (self.directory / redis_conf.DUMP).unlink(missing_ok=True)
            self._write(KEEP, str(node.incarnation if node.keep_data else self._incarnation()))
        try:
            await redis.shutdown(link, save=save, seconds=seconds)
        except ResponseError as error:
            if save:
                (self.directory / KEEP).unlink(missing_ok=True)
                raise NotSaved(str(error)) from error
            raise
        return seconds

    def _incarnation(self) -> int:
        return self.process.record.incarnation if self.process is not None else 0

    async def _rewrite(self, link: Link) -> None:
        """Have the append-only file written anew, without the commands by which the data came about."""
        await link.call("CLIENT", "PAUSE", 60_000, "WRITE")
        await link.call("BGREWRITEAOF")
        await _appends_alone(link, REWRITE_SECONDS)
        # nothing of the old names is left, so the next start need not look at this file for them
        (self.directory / redis_conf.CONF).unlink()


async def _appends_alone(link: Link, seconds: float) -> None:
    """Wait until no append-only file is being written anew."""

    async def alone() -> bool:
        info = redis.parse_info(await link.call("INFO", "persistence"))
        return info["aof_rewrite_in_progress"] == "0" and info["aof_rewrite_scheduled"] == "0"

    await until(alone, seconds=seconds, what="the append-only file to be rewritten")


async def end_and_remove(directory: Path) -> None:
    """End what runs in a directory that no row asks for, once that is proved to be ours, and remove it.
    A directory that is not there is removed."""
    if not directory.is_dir():
        return
    found = process.find(directory)
    if found is not None:
        running = Process(*found)
        running.signal(signal.SIGKILL)
        if not await running.wait(KILL_SECONDS):
            raise OSError(f"process {running.pid} does not end")
    await asyncio.to_thread(_remove_directory, directory)


def _remove_directory(directory: Path) -> None:
    """Remove a node's directory, once nothing runs in it. Raises `AlreadyRuns` if something does."""
    lock = _take(directory)
    try:
        shutil.rmtree(directory)
    finally:
        os.close(lock)


def _take(directory: Path) -> int:
    """The directory's lock; children of a dead server that still hold it are ended. Raises `AlreadyRuns`."""
    deadline = time.monotonic() + 1.0
    while (lock := process.take(directory)) is None:
        if not process.clear(directory) or time.monotonic() > deadline:
            raise AlreadyRuns(str(directory))
        time.sleep(0.002)
    return lock
