"""A pipe never takes the answer to one question for the answer to another."""

import asyncio

import pytest

from cacheyard.domain.nodes import Address
from cacheyard.engine.pipe import Pipe, packed


@pytest.mark.parametrize("how", ["too late", "cancelled", "hung up"])
def test_a_question_that_failed_leaves_no_answer_for_the_next(how: str) -> None:
    async def live() -> None:
        asked = 0
        served: list[asyncio.StreamWriter] = []
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            served.append(writer)
            await reader.readuntil(b"internal-secret\r\n")
            writer.write(b"+OK\r\n")
            while True:
                try:
                    mark = (await reader.readuntil(b"ECHO\r\n$32\r\n") and await reader.readexactly(34))[:32]
                except asyncio.IncompleteReadError:
                    return writer.close()
                asked += 1
                if asked == 1:
                    begun.set()
                    if how == "hung up":
                        return writer.close()
                    await go_on.wait()
                writer.write(b":%d\r\n$32\r\n%b\r\n" % (asked, mark))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            pipe = Pipe(Address(*server.sockets[0].getsockname()), "internal-secret")
            first = asyncio.create_task(pipe.ask([packed("INCR", "x")], 0.05 if how == "too late" else 10))
            await begun.wait()
            if how == "cancelled":
                first.cancel()
            [failure] = await asyncio.gather(first, return_exceptions=True)
            expected = asyncio.CancelledError if how == "cancelled" else OSError
            assert isinstance(failure, expected)
            go_on.set()
            assert await pipe.ask([packed("INCR", "x")], 10) == [b":2\r\n"]
            await pipe.close()
            for writer in served:
                writer.close()
                await writer.wait_closed()

    asyncio.run(live())


def test_who_still_waits_when_it_is_closed_does_not_open_it_again() -> None:
    async def live() -> None:
        opened = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal opened
            opened += 1
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            pipe = Pipe(Address(*server.sockets[0].getsockname()), "internal-secret")
            first, second = (asyncio.create_task(pipe.ask([packed("PING")], 0.2)) for _ in range(2))
            while not opened:
                await asyncio.sleep(0.001)
            await pipe.close()
            for failure in await asyncio.gather(first, second, return_exceptions=True):
                assert isinstance(failure, OSError)
            assert opened == 1

    asyncio.run(live())
