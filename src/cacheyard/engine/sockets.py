"""Open connections of this machine, as the kernel lists them, and how to end one from outside.

The filter (`engine.nft`) looks at new connections alone, so that it costs those that are there nothing;
what is open and may no longer be is ended here. Both ends are told: the server's socket is aborted, and
the client is sent a reset.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from cacheyard.domain.whitelist import Fence
from cacheyard.engine import ours

ROUNDS = 5  # of looking for connections that were being made when the filter came
# What follows is of linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
_SOCK_DIAG = 4  # the netlink family
_LIST, _DESTROY = 20, 21  # SOCK_DIAG_BY_FAMILY, SOCK_DESTROY
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # of a message: its length, kind, flags, number, and who sent it
_PLACE = struct.Struct("!HH4s12x4s12x")  # ports, then room for addresses of IPv6
_BUFFER = 1 << 16
# established, and all on the way to it and from it; not listening, not asking, not over
_OPEN = sum(1 << state for state in (1, 3, 4, 5, 8, 9, 11))


class End(NamedTuple):
    """Where one end of a connection is."""

    ip: str
    port: int


Guarded = dict[tuple[str, int | None], tuple[IPv4Network, ...]]  # by address and port; no port: all of them


class Open(NamedTuple):
    """A socket of a connection."""

    here: End
    there: End
    inode: int
    name: bytes  # as the kernel has it: the ends, and a number that no other socket has


def every() -> list[Open]:
    """All sockets of connections over IPv4. Raises `OSError`."""
    wanted = struct.pack("=BBxxI48x", socket.AF_INET, socket.IPPROTO_TCP, _OPEN)
    return [_open(answer) for answer in _asked(_LIST, _REQUEST | _DUMP, wanted)]


def cut(fences: Iterable[Fence]) -> int:
    """End all connections to fenced instances from where nobody may come; how many there were.

    Raises `OSError` when the kernel does not do it.
    """
    guarded: Guarded = {}
    for fence in fences:
        allowed = _ranges(fence)
        guarded |= {(ip, None): allowed for ip in fence.addresses}
        guarded |= {(place.ip, place.port): allowed for place in fence.places}
    ended = 0
    for _ in range(ROUNDS):
        strangers = _strangers(guarded)
        for one in strangers:
            ended += destroy(one)
        if not strangers:
            break
    return ended


def destroy(one: Open) -> bool:
    """End a connection; False when it is over already. Raises `OSError`.

    By its name: for the ends of a connection that is over the kernel finds the socket that listens there.
    """
    body = struct.pack("=BBxxI", socket.AF_INET, socket.IPPROTO_TCP, 0) + one.name
    try:
        for _ in _asked(_DESTROY, _REQUEST | _ACK, body):
            pass
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
    return True


def fault() -> str | None:
    """Why connections cannot be ended here; None: they can, it has been tried."""
    with socket.socket() as listening, socket.socket() as client:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        client.connect(listening.getsockname())
        with closing(listening.accept()[0]) as taken:
            try:
                there = {one.inode: one for one in every()}
                destroy(there[os.fstat(taken.fileno()).st_ino])
            except OSError as error:
                return error.strerror or str(error)
    return None


def _strangers(guarded: Guarded) -> list[Open]:
    there = every()  # before the files of our processes: what they open meanwhile is not in it
    asked = [one for one in there if not _may(one, guarded)]
    if not asked:
        return []
    mine = _inodes()
    trusted = {(one.here, one.there) for one in there if one.inode in mine}
    return [one for one in asked if (one.there, one.here) not in trusted]


def _may(one: Open, guarded: Guarded) -> bool:
    allowed = guarded.get((one.here.ip, None)) or guarded.get((one.here.ip, one.here.port))
    if allowed is None:
        return True
    address = IPv4Address(one.there.ip)
    return any(address in network for network in allowed)


def _ranges(fence: Fence) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(text) for text in fence.allowed)


def _inodes() -> set[int]:
    """Of the sockets of all processes that are ours."""
    found = set()
    for pid in ours.pids():
        with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:  # it has just ended
            for entry in entries:
                with suppress(FileNotFoundError):
                    name = os.readlink(entry.path)  # noqa: PTH115 - there may be thousands
                    if name.startswith("socket:["):
                        found.add(int(name[8:-1]))
    return found


def _asked(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """What the kernel answers. Raises `OSError`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            said, at = kernel.recv(_BUFFER), 0
            while at < len(said):
                length, what, *_ = _HEADER.unpack_from(said, at)
                answer, at = said[at + _HEADER.size : at + length], at + (length + 3 & ~3)
                if what in (_ERROR, _DONE):
                    number = -int(struct.unpack_from("=i", answer)[0]) if answer else 0
                    if number > 0:
                        raise OSError(number, os.strerror(number))
                    return
                yield answer


def _open(answer: bytes) -> Open:
    """An `inet_diag_msg`: the name behind four bytes, the inode last."""
    name = answer[4:52]
    here, there, source, target = _PLACE.unpack_from(name)
    inode = int(struct.unpack_from("=I", answer, 68)[0])
    return Open(End(socket.inet_ntoa(source), here), End(socket.inet_ntoa(target), there), inode, name)
