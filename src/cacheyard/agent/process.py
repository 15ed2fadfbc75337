"""One server process and its directory: start it, find it again, see it end, end it.

Used by the supervisor for nodes and by `agent.halt`. What a process is known by:

- `lock` in the node's directory is locked (flock) before the server starts, and the server inherits
  it. As long as the server, or a child it forked, lives, nobody else can take it: there is never a
  second copy in a directory, whatever happened to the other files.
- `pid` says which process it is: boot id, pid, the kernel's start time. A reused pid has another
  start time. It is written while the server waits for the end of its standard input: before that it
  has read no secret, opened no port and loaded no data, and if the agent dies there, the server sees
  the input end without a port in it and ends too. So no server runs that is not written down, and
  no shell is needed between us and it (measured: 0.7 ms to spawn from a process of 100 MB).
- Its end is seen through a pidfd, which works for children and adopted processes alike.
- If the pid file is lost, whoever holds the lock is found by its open files in /proc.

Nothing is ever found, or killed, by name or command line.
"""

import asyncio
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import msgspec

from cacheyard.waiting import happens

LOCK = "lock"
PID = "pid"
_STARTED, _SESSION = (
    19,
    3,
)  # fields of /proc/<pid>/stat after the name; proc(5) counts from 1, with pid and name
OUTPUT = "redis.log"  # before the configuration is read, and when it is wrong, servers write to stdout


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The pid file."""

    boot: str
    pid: int
    started: int  # clock ticks since boot, as in /proc/<pid>/stat
    incarnation: int
    generation: int
    ip: str = ""
    port: int = 0
    tls: bool = False  # what is spoken there
    version: str = ""  # of the program, where only who started it can tell; empty: not known


class AlreadyRuns(Exception):  # noqa: N818 - read as "it already runs"
    """A process holds this directory."""


class Process:
    """A living server: started by us, or by an agent before us. Belongs to the event loop that made it."""

    def __init__(
        self, record: Record, pidfd: int, on_exit: "Callable[[Process], None] | None" = None
    ) -> None:
        self.pid = record.pid
        self.record = record
        self.expected = False  # its end is wanted: no accident
        self.alive = True
        self.ended = ""  # how, when it has
        self._pidfd = pidfd
        self._on_exit = on_exit
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._exited)

    @property
    def age(self) -> float:
        """Seconds since it was started, by this agent or one before."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.record.started / os.sysconf("SC_CLK_TCK")

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped it, so that it does nothing until it is continued."""
        fields = _stat(self.pid) if self.alive else None
        return fields is not None and fields[0] == "T"

    def signal(self, number: int) -> None:
        """Send a signal; to nobody if it is gone."""
        if self.alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self, seconds: float) -> bool:
        """Whether it ended within `seconds`."""
        await happens(self._gone, seconds)
        return not self.alive

    def forget(self) -> None:
        """Stop looking, leave it running."""
        if self.alive:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._on_exit = None
            self.alive = False

    def _exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.ended = "ended"
        with suppress(ChildProcessError):  # adopted: init reaps it
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                by_itself = result.si_code == os.CLD_EXITED
                self.ended = f"{'exit code' if by_itself else 'signal'} {result.si_status}"
        os.close(self._pidfd)
        self.alive = False
        self._gone.set()
        if self._on_exit is not None:
            self._on_exit(self)


def spawn(
    directory: Path,
    inherited: tuple[int, ...],
    command: list[str],
    gate: str,
    record: Record,
    output_name: str = OUTPUT,
) -> tuple[Record, int]:
    """Start `command` in `directory`; it inherits file descriptors, the `lock` (from `take`) among them.
    `gate` is its standard input; what it prints goes to a file of that name.

    Answers `record` with the pid filled in, and a pidfd for `Process`. May be called in a thread.

    Raises `OSError` when the command cannot be run.
    """
    output = os.open(directory / output_name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=inherited,
        )
    finally:
        os.close(output)
    pidfd = os.pidfd_open(child.pid)
    child.returncode = 0  # it is reaped through the pidfd
    assert child.stdin is not None  # noqa: S101 - PIPE
    with ExitStack() as otherwise:
        otherwise.callback(_abandon, child, pidfd)
        fields = _stat(child.pid)  # it is there, at least as a zombie: only its pidfd reaps it
        started = int(fields[_STARTED]) if fields else 0
        record = msgspec.structs.replace(record, boot=boot_id(), pid=child.pid, started=started)
        write_record(directory, record)
        with suppress(BrokenPipeError), child.stdin as gate_end:
            gate_end.write(gate.encode())
        otherwise.pop_all()
    return record, pidfd


def _abandon(child: "subprocess.Popen[bytes]", pidfd: int) -> None:
    """End a server that could not be written down."""
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)


def find(directory: Path) -> tuple[Record, int] | None:
    """The process that runs in `directory`, with a pidfd for `Process`; None when there is none."""
    record = read_record(directory)
    if (
        record is not None
        and record.boot == boot_id()
        and (pidfd := _open(record.pid, record.started)) is not None
    ):
        return record, pidfd
    if not (directory / LOCK).exists():
        return None
    lock = take(directory)
    if lock is not None:  # nobody holds it
        os.close(lock)
        return None
    for pid in holders(directory):
        started = start_time(pid)
        # a session's leader is the server itself; others are children of one that is dead
        if started and _session(pid) == pid and (pidfd := _open(pid, started)) is not None:
            if record is not None and (record.pid, record.started) == (pid, started):
                return record, pidfd
            # unknown which: the caller may know, else it is started anew
            found = Record(boot=boot_id(), pid=pid, started=started, incarnation=0, generation=0)
            return found, pidfd
    return None


def take(directory: Path) -> int | None:
    """The directory's lock as an open file, or None if another process has it."""
    lock = os.open(directory / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    with ExitStack() as otherwise:
        otherwise.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        otherwise.pop_all()
    return lock


def clear(directory: Path) -> bool:
    """Kill what holds the lock of `directory` without being a server: the children of one that is dead, which
    write its snapshot for nobody. Whether the lock is free now, or will be in a moment."""
    for pid in holders(directory):
        if _session(pid) == pid:
            return False
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if pid in holders(directory):  # still the same process
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
    return True


def holders(directory: Path) -> list[int]:
    """The processes, but this one, that have the directory's lock file open."""
    try:
        wanted = (directory / LOCK).stat()
    except FileNotFoundError:
        return []
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _has_open(pid, wanted)]


def read_record(directory: Path) -> Record | None:
    """The pid file, if it is there and whole."""
    try:
        return msgspec.json.decode((directory / PID).read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_record(directory: Path, record: Record) -> None:
    """Write the pid file, whole or not at all."""
    made = directory / f"{PID}.new"
    made.write_bytes(msgspec.json.encode(record))
    made.rename(directory / PID)


@cache
def boot_id() -> str:
    """Differs after each boot, so that pids of the last one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """When the kernel started the process, in ticks since boot; None when it is gone or a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[_STARTED])


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[_SESSION])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _open(pid: int, started: int) -> int | None:
    """A pidfd of that very process."""
    if start_time(pid) != started:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) != started:  # it went, and its pid was given away, in between
        os.close(pidfd)
        return None
    return pidfd


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
                        return True
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or another user's
        pass
    return False
