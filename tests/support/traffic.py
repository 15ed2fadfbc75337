"""How fast an instance sends and takes data, measured from outside, and what the kernel was told to allow."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import MovedError
from support.caches import PASSWORD, Cache, first_ip
from support.proxied import servers
from support.waiting import until

from cacheyard.engine import tc

VALUE = 200_000  # bytes
AHEAD = 4  # requests that a connection has under way
_PIECE = 1 << 18


class Measured(NamedTuple):
    """What went over, and how busy the machine was meanwhile."""

    mbit: float  # a second
    idle: float  # of all processors, 0 to 1

    def is_held_to(self, mbit: int) -> None:
        """Not more than that; not much less either, unless the machine had no time for it."""
        assert self.mbit <= 1.1 * mbit, f"{self} where {mbit} Mbit/s are allowed"
        if self.idle > 0.3:
            assert self.mbit >= 0.9 * mbit, f"{self} where {mbit} Mbit/s are allowed"


def sent(cache: Cache, seconds: float = 1.5, *, ip: str | None = None, connections: int = 2) -> Measured:
    """What clients get: a large value, again and again."""
    name = _filled(cache, ip)
    request = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)
    return _measured(cache, ip, seconds, connections, request, b"$%d\r\n" % VALUE, VALUE + 2)


def taken(cache: Cache, seconds: float = 1.5, *, ip: str | None = None, connections: int = 2) -> Measured:
    """What clients send: the same value, again and again."""
    name = _filled(cache, ip)
    request = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, VALUE, b"v" * VALUE)
    return _measured(cache, ip, seconds, connections, request, b"+OK\r\n", 0)


def rates(cache: Cache) -> list[int]:
    """Mbit/s of the classes that the kernel has for the service of this cache, each once for each way."""
    with tc._alone():
        places, classes = tc._maps().get(tc.table_of(cache.service.data), {}), tc._classes()
    return sorted(classes[number] for way in places.values() for number in set(way.values()))


def is_clean(data: Path) -> bool:
    """Whether nothing of a service is left in the kernel: no table, and no class that no table names."""
    with tc._alone():
        return _is_clean(tc.table_of(data))


def _is_clean(table: str) -> bool:
    there = tc._maps()
    named = {number for maps in there.values() for number in tc._numbers(maps)}
    return table not in there and named >= set(tc._classes()) and (bool(named) or not tc._is_ours())


def _filled(cache: Cache, ip: str | None) -> bytes:
    """The name of a key with the value, at that node if it is one of a cluster; all replicas have it."""
    name = _filled_at(cache, ip)
    if cache.show()["cache_mode"] == "ha_rw_split":
        for server in servers(cache):
            with cache.client(host=server["node_ip"], port=int(server["node_port"])) as link:
                until(partial(link.exists, name), seconds=10, what=f"{server['node_ip']} to have the value")
    return name.encode()


def _filled_at(cache: Cache, ip: str | None) -> str:
    with cache.client(**({"host": ip, "port": cache.show()["port"]} if ip else {})) as link:
        for number in range(1000):
            name = f"k{number}"
            try:
                link.set(name, "v" * VALUE)
            except MovedError:
                continue
            return name
    raise AssertionError(f"no key is at {ip}")


def _measured(
    cache: Cache, ip: str | None, seconds: float, connections: int, request: bytes, head: bytes, body: int
) -> Measured:
    """Ask for so long, and count the larger of each request and its reply: a head, and what follows."""
    reply = len(head) + body
    shown = cache.show()
    place = (ip or first_ip(shown), shown["port"])
    counts = [0] * connections
    begin = threading.Barrier(connections + 1, timeout=30)
    over = threading.Event()

    def run(number: int) -> None:
        with socket.create_connection(place, timeout=10) as link:
            link.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n" % (len(PASSWORD), PASSWORD.encode()))
            assert link.recv(100) == b"+OK\r\n"
            begin.wait()
            for _ in range(AHEAD):
                link.sendall(request)
            left = reply
            while not over.is_set():
                got = link.recv(min(left, _PIECE))
                assert got, "the server hung up"
                if left == reply:
                    assert got[: len(head)] == head[: len(got)], got[:100]
                left -= len(got)
                if body:
                    counts[number] += len(got)
                if not left:
                    left = reply
                    if not body:
                        counts[number] += len(request)
                    link.sendall(request)

    with ThreadPoolExecutor(connections) as pool:
        running = [pool.submit(run, number) for number in range(connections)]
        begin.wait()
        time.sleep(0.3)  # buffers fill, and what was saved up is spent
        before, began, busy = sum(counts), time.monotonic(), _ticks()
        time.sleep(seconds)
        after, took, busier = sum(counts), time.monotonic() - began, _ticks()
        over.set()
    for one in running:
        one.result()
    idle = (busier[0] - busy[0]) / max(1, busier[1] - busy[1])
    return Measured((after - before) * 8 / 1e6 / took, idle)


def _ticks() -> tuple[int, int]:
    """Idle, and all."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return words[3] + words[4], sum(words)
