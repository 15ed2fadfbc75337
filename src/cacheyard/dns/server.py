"""Answers for the region's zone over UDP and TCP. Started by `cli.serve` beside the API.

Every answer comes from the rows as they are when the query comes in. All names are kept, and read again
only when the database says that something was written since, by this process or by another: asking that
takes some microseconds.
"""

import asyncio
import socket
import time
from contextlib import suppress
from typing import cast

import structlog

from cacheyard.dns.answer import answer, unable
from cacheyard.dns.zone import Zone
from cacheyard.store import names
from cacheyard.store.db import FAULTS, Store
from cacheyard.streams import sending

log = structlog.get_logger()

READ_PAUSE = 0.02  # seconds between two readings of all names, while rows change all the time
WAITING = 100  # datagrams that wait for a reading; what comes then is dropped, and its client asks again
STREAMS = 50  # connections at once
IDLE_SECONDS = 10.0  # how long a connection may take for a query, or for the answer
LONGEST = 4096  # bytes of a query by TCP; real ones have a hundred


class NameServer:
    """One per process that serves the API. `zone` is the zone's name."""

    def __init__(self, store: Store, zone: str, datagrams: socket.socket, streams: socket.socket) -> None:
        self._name = zone
        self._zones = _Zones(store, zone, _reachable(streams))
        self._datagrams, self._streams = datagrams, streams
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._talking: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Answer from now on."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._zones), sock=self._datagrams
        )
        self._server = await asyncio.start_server(self._talk, sock=self._streams)
        log.info("names are answered", zone=self._name, port=self._streams.getsockname()[1])

    async def stop(self) -> None:
        """Answer nobody any more."""
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        for writer in self._talking.values():
            writer.transport.abort()
        if self._talking:
            await asyncio.wait(list(self._talking))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: queries in turn, each with its length before it."""
        me = asyncio.current_task()
        assert me is not None  # noqa: S101
        self._talking[me] = writer
        me.add_done_callback(self._talking.pop)
        if len(self._talking) > STREAMS:
            writer.close()
            return
        try:
            while True:
                await asyncio.sleep(0)  # who has sent many queries at once keeps nobody waiting
                async with asyncio.timeout(IDLE_SECONDS):
                    length = int.from_bytes(await reader.readexactly(2))
                    if length > LONGEST:
                        return
                    query = await reader.readexactly(length)
                zone = await self._zones.renewed()
                reply = unable(query) if zone is None else answer(query, zone, stream=True)
                if reply is None:
                    return
                with sending():
                    writer.write(len(reply).to_bytes(2) + reply)
                async with asyncio.timeout(IDLE_SECONDS):
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError):  # gone, or too slow
            return
        finally:
            writer.close()


class _Zones:
    """The zone as the rows have it."""

    def __init__(self, store: Store, name: str, address: str) -> None:
        self._store, self._name, self._address = store, name, address
        self._zone: Zone | None = None
        self._version = -1
        self._not_before = 0.0
        self._reading = asyncio.Lock()

    def current(self) -> Zone | None:
        """What was read last, if nothing has been written since."""
        with suppress(*FAULTS):  # `renewed` says so
            return self._zone if self._store.data_version() == self._version else None
        return None

    async def renewed(self) -> Zone | None:
        """The same, read again if need be; None when the rows cannot be read."""
        async with self._reading:
            try:
                if (zone := self.current()) is not None:
                    return zone
                await asyncio.sleep(self._not_before - time.monotonic())
                version = self._store.data_version()
                self._zone = await self._store.run(self._read)
            except FAULTS:
                log.exception("names cannot be read")
                return None
            self._version, self._not_before = version, time.monotonic() + READ_PAUSE
            return self._zone

    def _read(self) -> Zone:
        with self._store.read() as tx:
            return Zone(self._name, self._address, int(time.time()), names.every(tx))


class _Datagrams(asyncio.DatagramProtocol):
    """Answers at once while nothing changes; else all that wait are answered after one reading."""

    def __init__(self, zones: _Zones) -> None:
        self._zones = zones
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[tuple[bytes, tuple[str, int]]] = []
        self._catching_up: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        # by itself: a query that breaks us must not close the socket
        asyncio.get_running_loop().call_soon(self._take, data, addr)

    def _take(self, data: bytes, addr: tuple[str, int]) -> None:
        if (zone := self._zones.current()) is not None:
            self._reply(data, addr, zone)
            return
        if len(self._waiting) < WAITING:
            self._waiting.append((data, addr))
        if self._catching_up is None:
            self._catching_up = asyncio.create_task(self._catch_up())
            self._catching_up.add_done_callback(self._caught_up)

    async def _catch_up(self) -> None:
        while self._waiting and self._transport is not None:
            zone = await self._zones.renewed()
            waiting, self._waiting = self._waiting, []
            for data, addr in waiting:
                asyncio.get_running_loop().call_soon(self._reply, data, addr, zone)

    def _caught_up(self, task: "asyncio.Task[None]") -> None:
        self._catching_up = None
        if not task.cancelled():
            task.result()

    def _reply(self, data: bytes, addr: tuple[str, int], zone: Zone | None) -> None:
        reply = unable(data) if zone is None else answer(data, zone, stream=False)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


def _reachable(bound: socket.socket) -> str:
    """The address of a socket; of one that listens on all addresses, this machine's own."""
    address = str(bound.getsockname()[0])
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
