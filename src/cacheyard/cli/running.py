"""What runs on a data directory: written by the service when it is ready, read by `down` and `call`."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

STOP_SECONDS = 20.0  # how long the service may take to end before it is killed


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A running service: where it is, and its process, told from a later one by its start."""

    pid: int
    started: int  # clock ticks since boot
    boot: str
    endpoint: str  # as clients are told
    local: str = ""  # the same for who is on this machine, where names need not be known
    ca_file: str = ""  # whom clients have to trust; empty: whom they trust anyway, or nobody with plain HTTP


class AlreadyRuns(Exception):  # noqa: N818 - read as what it says
    """cacheyard runs on {data} already; `cacheyard down --data {data}` stops it."""

    def __init__(self, data: Path) -> None:
        super().__init__((type(self).__doc__ or "").format(data=data))


@contextmanager
def alone(run: Path, role: str) -> Iterator[None]:
    """Be the only one in this role on a data directory, until the block ends or the process dies."""
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(run / f"{role}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AlreadyRuns(run.parent) from None
    try:
        yield
    finally:
        os.close(lock)


def announce(run: Path, endpoint: str, local: str, ca_file: str) -> None:
    """Say that this process serves at `endpoint`."""
    me = Running(
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        boot=_boot(),
        endpoint=endpoint,
        local=local,
        ca_file=ca_file,
    )
    fresh = run / "up.json.new"
    fresh.write_bytes(msgspec.json.encode(me))
    fresh.replace(run / "up.json")


def running(run: Path) -> Running | None:
    """The service that runs on a data directory; None when there is none."""
    try:
        found = msgspec.json.decode((run / "up.json").read_bytes(), type=Running)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return found if found.boot == _boot() and _started(found.pid) == found.started else None


def stop(run: Path) -> bool:
    """End the service and wait for it; whether there was one. Servers go on."""
    found = running(run)
    if found is None:
        return False
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _started(found.pid) == found.started:
        if time.monotonic() > deadline:
            os.kill(found.pid, signal.SIGKILL)
            deadline += STOP_SECONDS
        time.sleep(0.02)
    return True


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    """When a living process began, in clock ticks since boot; a zombie lives no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
