"""What the agent hears from servers that do not answer yet. The server here is a few lines of a fake one."""

import asyncio
from collections.abc import Iterator

import pytest

from cacheyard.agent import pulse
from cacheyard.domain.nodes import LOADING, Address
from cacheyard.engine.redis import Link

Said = list[tuple[bool, str | None]]


async def heard(answers: Iterator[bytes], monkeypatch: pytest.MonkeyPatch) -> Said:
    """What a pulse told of a server that answers PING so, one answer after the other, and then PONG."""
    monkeypatch.setattr(pulse, "SILENT_SECONDS", 0.0)
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())  # type: ignore[arg-type]
        while words := await reader.read(1000):
            writer.write(next(answers, b"+PONG\r\n") if b"PING" in words else b"+OK\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        ip, port = server.sockets[0].getsockname()
        said: Said = []
        link = Link(Address(ip, port), "secret")
        beating = pulse.Pulse(link, lambda answers, why: said.append((answers, why)))
        await beating.first_answer(5)
        await link.close()
        await asyncio.wait(serving)
    return said


def test_a_server_that_reads_its_data_is_told_from_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loading, away = b"-LOADING Redis is loading the dataset in memory\r\n", b"-NOAUTH no\r\n"
    said = asyncio.run(heard(iter([away, away, loading, loading, away]), monkeypatch))
    assert [answers for answers, _ in said] == [False, False, False, True]
    whys = [why for _, why in said]
    assert whys[1] == LOADING
    assert LOADING not in (whys[0], whys[2])
    assert whys[3] is None
