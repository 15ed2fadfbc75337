"""A link that its user gives up leaves nothing open."""

import asyncio
from typing import Any

import pytest

from cacheyard.domain.nodes import Address
from cacheyard.engine.redis import Link


class Slow(asyncio.Protocol):
    """A server that takes a turn or two for each answer, and knows who is connected."""

    def __init__(self, connected: set[Any], gone: asyncio.Event) -> None:
        self._connected, self._gone = connected, gone

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connected.add(self)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._transport.write, b"+OK\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connected.discard(self)
        self._gone.set()


@pytest.mark.parametrize("turns", range(30))
def test_who_is_cancelled_while_it_connects_and_logs_in_leaves_nothing_open(turns: int) -> None:
    async def run() -> None:
        connected, gone = set[Any](), asyncio.Event()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Slow(connected, gone), "127.0.0.1", 0)
        async with server:
            link = Link(Address("127.0.0.1", server.sockets[0].getsockname()[1]), "secret")

            async def use() -> None:
                async with link:
                    pass

            task = asyncio.create_task(use())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(5):
                while connected:
                    await gone.wait()
                    gone.clear()

    asyncio.run(run())
