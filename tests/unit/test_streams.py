"""A connection that the other side has reset is lost, for whoever writes to it next; nothing else."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from cacheyard.domain.nodes import Address
from cacheyard.engine.pipe import Pipe, packed
from cacheyard.engine.redis import Link, RedisError

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
LOOPS = [pytest.param(uvloop.new_event_loop, id="uvloop"), pytest.param(asyncio.new_event_loop, id="asyncio")]


async def pipe_asks(pipe: Pipe) -> None:
    await pipe.ask([packed("PING")], 5)


async def link_asks(link: Link) -> None:
    await link.ping()


def pipe_to(address: Address) -> tuple[Pipe, Callable[[], Awaitable[None]], Callable[[], Any]]:
    pipe = Pipe(address, "secret")
    return pipe, lambda: pipe_asks(pipe), lambda: pipe._streams and pipe._streams[1]


def link_to(address: Address) -> tuple[Link, Callable[[], Awaitable[None]], Callable[[], Any]]:
    link = Link(address, "secret")
    return link, lambda: link_asks(link), lambda: link._connection._writer


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("opened", [pipe_to, link_to])
def test_who_writes_to_a_connection_that_was_reset_is_told_so(loop: Any, opened: Any) -> None:
    async def live() -> None:
        served: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.append(writer)
            while said := await reader.read(1000):
                mark = said[said.index(b"$32") :] if b"$32" in said else b""
                writer.write(mark or (b"+OK\r\n" if b"AUTH" in said else b"+PONG\r\n"))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            one, ask, writer = opened(Address(*server.sockets[0].getsockname()))
            await ask()
            served[0].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            served[0].transport.abort()
            async with asyncio.timeout(5):
                while not writer().transport.is_closing():
                    await asyncio.sleep(0.001)
            with pytest.raises((OSError, RedisError)):
                await ask()
            await ask()
            await one.close()
            for other in served:
                other.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(live())
