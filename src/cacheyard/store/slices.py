"""Which slice of 127.0.0.0/8 is this yard's: two on one machine must not share one.

Claims are files in one directory of the machine, whoever's yards they are; each names the data
directory that it is for, and that directory's `slice.json` names the claim. Called by
`services.bootstrap` at each start.

Anybody may write into the claims' directory, so nothing in it is trusted further than that: files
are made and opened without following links, and the worst that a forged claim does is to make a
yard take another slice.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from cacheyard.domain.network import LOOPBACK

CLAIMS = Path("/var/tmp/cacheyard-slices")  # noqa: S108 - survives a restart of the machine, as slices do
CANDIDATES = tuple(IPv4Network(f"127.{second}.0.0/16") for second in range(64, 128))
NARROWEST = 24  # prefix of the smallest slice that a region can live in
_LOCALHOST = IPv4Address("127.0.0.1")
_MARK = "slice.json"
_LOCK_SECONDS = 10.0
_CLAIM_BYTES = 4096
_LISTEN = "0A"  # a state in /proc/net/tcp


class SliceRefused(Exception):  # noqa: N818 - reads as it is meant
    """The region cannot have this slice; the message says why. For the operator, at start."""


class _Claim(msgspec.Struct, frozen=True):
    cidr: str
    data: str


def claim(data: Path, wanted: str = "", kept: str = "", claims: Path = CLAIMS) -> str:
    """The slice of the yard in `data`, as CIDR: `kept` (of an earlier start), else `wanted`, else the
    first free one. Raises `SliceRefused`."""
    data = data.resolve()
    if kept and wanted and IPv4Network(kept) != _valid(wanted):
        raise SliceRefused(f"instances have addresses in {kept}: it cannot become {wanted} any more")
    try:
        with _locked(claims) as directory:
            text = _choose(directory, data, kept or wanted)
    except (PermissionError, IsADirectoryError) as error:
        raise SliceRefused(f"no claim can be made in {claims}: {error.strerror}") from None
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data / _MARK).write_text(text)
    return msgspec.json.decode(text, type=_Claim).cidr


def _choose(directory: int, data: Path, fixed: str) -> str:
    """Make the claim, and say what is in it."""
    held = dict(_live(directory, data))
    if fixed:
        chosen = _valid(fixed)
        for other, owner in held.items():
            if chosen.overlaps(other):
                raise SliceRefused(f"{chosen} is in use by {owner}; set another cidr in settings.toml")
        return _write(directory, chosen, data)
    listening = listeners()
    for candidate in CANDIDATES:
        if any(candidate.overlaps(other) for other in held):
            continue
        if any(address in candidate for address in listening):
            continue
        with suppress(
            PermissionError, IsADirectoryError
        ):  # somebody else's file that is no claim is in the way
            return _write(directory, candidate, data)
    raise SliceRefused("no /16 from 127.64.0.0 to 127.127.0.0 is free; set cidr in settings.toml")


def listeners(tables: tuple[str, ...] = ("/proc/net/tcp",)) -> set[IPv4Address]:
    """The addresses of 127.0.0.0/8 on which anything listens now."""
    found = set()
    for table in tables:
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == _LISTEN:
                    found.add(IPv4Address(bytes.fromhex(local.split(":")[0])[::-1]))
    return {address for address in found if address in LOOPBACK}


def _valid(cidr: str) -> IPv4Network:
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        raise SliceRefused(f"cidr {cidr}: {error}") from None
    ours = network.subnet_of(LOOPBACK) and _LOCALHOST not in network
    if not ours or network.prefixlen > NARROWEST:
        raise SliceRefused(f"cidr {cidr} must be a /{NARROWEST} or wider part of {LOOPBACK}, not 127.0.0.1's")
    return network


def _live(directory: int, data: Path) -> Iterator[tuple[IPv4Network, str]]:
    """The claims of others that still hold, by range; those that hold no more are removed."""
    for name in os.listdir(directory):
        if not name.endswith(".json"):
            continue
        found = _read(directory, name)
        if found is None or Path(found.data) == data:
            continue
        network = IPv4Network(found.cidr)
        if _holds(found):
            yield network, found.data
        else:
            try:
                os.unlink(name, dir_fd=directory)
            except OSError:  # another user's: only they can take it away
                yield network, found.data


def _holds(found: _Claim) -> bool:
    """Whether the yard of a claim is still there. What we may not look at is."""
    mark = Path(found.data) / _MARK
    try:
        return msgspec.json.decode(mark.read_bytes(), type=_Claim).cidr == found.cidr
    except FileNotFoundError:
        return False
    except (OSError, msgspec.MsgspecError):
        return True


def _read(directory: int, name: str) -> _Claim | None:
    """A claim; None for what is no claim."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        found = msgspec.json.decode(os.read(descriptor, _CLAIM_BYTES), type=_Claim)
        IPv4Network(found.cidr)
    except (msgspec.MsgspecError, ValueError):
        return None
    else:
        return found
    finally:
        os.close(descriptor)


def _write(directory: int, network: IPv4Network, data: Path) -> str:
    name = f"{network.network_address}-{network.prefixlen}.json"
    text = json.dumps({"cidr": str(network), "data": str(data)})
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=directory)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    return text


@contextmanager
def _locked(claims: Path) -> Iterator[int]:
    """The claims' directory, open, with nobody else choosing."""
    with suppress(FileExistsError):
        claims.mkdir()
        claims.chmod(0o1777)  # everybody's, and only its owner may remove a file
    directory = os.open(claims, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with suppress(FileExistsError):
            os.close(os.open(".lock", os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory))
        lock = os.open(".lock", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            _wait_for(lock, claims)
            yield directory
        finally:
            os.close(lock)
    finally:
        os.close(directory)


def _wait_for(lock: int, claims: Path) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SliceRefused(f"{claims}/.lock has been held for {_LOCK_SECONDS:.0f} s") from None
            time.sleep(0.02)
        else:
            return
