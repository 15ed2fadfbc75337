"""The name server goes on, whatever becomes of one query."""

import asyncio
import socket
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from dns import message, rcode

from cacheyard.dns import server
from cacheyard.dns.answer import answer
from cacheyard.dns.server import NameServer
from cacheyard.dns.zone import Zone
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate

ZONE = "dcs.yard-1.internal"
SECONDS = 5.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    migrate(tmp_path / "db.sqlite")
    store = Store(tmp_path / "db.sqlite")
    yield store
    store.close()


def with_server(store: Store, talk: Callable[[int], list[Any]]) -> tuple[list[Any], list[BaseException]]:
    """What `talk` found, in a thread, at the server's port; and the failures that were left to the loop."""
    failures: list[BaseException] = []

    async def live() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
        with socket.create_server(("127.0.0.1", 0)) as streams, socket.socket(type=socket.SOCK_DGRAM) as one:
            one.bind(streams.getsockname())
            one.setblocking(False)
            streams.setblocking(False)
            names = NameServer(store, ZONE, one, streams)
            await names.start()
            try:
                return await asyncio.to_thread(talk, streams.getsockname()[1])
            finally:
                await names.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(live()), failures


def by_datagram(port: int, query: bytes) -> bytes | None:
    """The answer; None: there was none, for which the one to a bad query is not waited for as long."""
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(0.2 if b"bad" in query else SECONDS)
        client.sendto(query, ("127.0.0.1", port))
        try:
            return client.recv(4096)
        except TimeoutError:
            return None


def by_stream(port: int, query: bytes) -> bytes | None:
    """The same by TCP."""
    with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
        client.sendall(struct.pack("!H", len(query)) + query)
        return client.recv(4096)[2:] or None


def test_a_query_that_breaks_the_server_costs_no_other_its_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (message.make_query(name, "SOA").to_wire() for name in (ZONE, f"bad.{ZONE}"))

    def brittle(query: bytes, zone: Zone, *, stream: bool) -> bytes | None:
        if b"bad" in query:
            raise ZeroDivisionError
        return answer(query, zone, stream=stream)

    monkeypatch.setattr(server, "answer", brittle)

    def talk(port: int) -> list[Any]:
        return [
            ask(port, query) for _ in range(2) for ask in (by_datagram, by_stream) for query in (bad, good)
        ]

    answers, failures = with_server(store, talk)
    assert [reply is not None for reply in answers] == [False, True] * 4
    assert [type(failure) for failure in failures] == [ZeroDivisionError] * 4


def test_while_rows_cannot_be_read_it_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    query = message.make_query(ZONE, "SOA").to_wire()
    broken = True
    sound = store.data_version

    def version() -> int:
        if broken:
            raise sqlite3.OperationalError("disk I/O error")
        return sound()

    monkeypatch.setattr(store, "data_version", version)

    def talk(port: int) -> list[Any]:
        nonlocal broken
        found = [by_datagram(port, query), by_stream(port, query)]
        broken = False
        return [*found, by_datagram(port, query), by_stream(port, query)]

    answers, failures = with_server(store, talk)
    codes = [message.from_wire(reply).rcode() for reply in answers]
    assert codes == [rcode.SERVFAIL] * 2 + [rcode.NOERROR] * 2
    assert failures == []
