"""Whoever waits can be told to stop, at any moment."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cacheyard.domain.nodes import Address
from cacheyard.engine.redis import Link
from cacheyard.waiting import happens, heeding

TURNS = 12  # of the loop, in one of which a cancellation could be lost


async def heeded(event: asyncio.Event) -> None:
    with heeding():
        await asyncio.wait_for(event.wait(), 60)  # noqa: TID251 - as libraries do


async def waited(event: asyncio.Event) -> None:
    await happens(event, 60)


@pytest.mark.parametrize("wait", [waited, heeded])
@pytest.mark.parametrize("turns", range(TURNS))
def test_who_is_cancelled_just_as_it_happens_ends(
    wait: Callable[[asyncio.Event], Awaitable[None]], turns: int
) -> None:
    async def run() -> None:
        event = asyncio.Event()

        async def forever() -> None:
            while True:
                await wait(event)
                event.clear()

        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        event.set()
        await cancelled(task, turns)

    asyncio.run(run())


async def cancelled(task: "asyncio.Task[None]", turns: int) -> None:
    """After so many turns of the loop it is told to end, and does."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


def test_it_happens_in_time_or_not() -> None:
    async def run() -> None:
        event = asyncio.Event()
        async with asyncio.timeout(5):
            await happens(event, 0.01)
            assert not event.is_set()
            event.set()
            await happens(event, 60)

    asyncio.run(run())


async def late() -> None:
    async with asyncio.timeout(0.01):
        with heeding():
            await asyncio.sleep(60)


def test_a_deadline_within_and_around_is_no_cancellation() -> None:
    async def run() -> None:
        with heeding(), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        with pytest.raises(TimeoutError):
            await late()

    asyncio.run(run())


class Answers(asyncio.Protocol):
    """A server that is there."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"+PONG\r\n")


@pytest.mark.parametrize("turns", range(TURNS))
def test_who_is_cancelled_while_a_server_is_asked_ends(turns: int) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
        async with server, Link(Address("127.0.0.1", server.sockets[0].getsockname()[1]), None) as link:

            async def forever() -> None:
                while True:
                    await link.ping()

            await cancelled(asyncio.create_task(forever()), turns)

    asyncio.run(run())
