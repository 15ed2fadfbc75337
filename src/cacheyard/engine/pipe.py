"""A connection for many commands at once, whose answers are left as the bytes they came as.

The mover sends on what it was answered: keys are bytes of any kind, millions of them, and the way in which
GETKEYSINSLOT answers keys is the way in which MIGRATE wants them. So nothing here reads a key.
"""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from ssl import SSLContext

from cacheyard.domain.nodes import Address
from cacheyard.engine.redis_conf import INTERNAL_USER
from cacheyard.engine.source import near
from cacheyard.streams import hang_up, sending

_BUFFER = 1 << 30  # bytes of answers; asyncio gives up on a line that is longer than its buffer


class Pipe:
    """One connection to a server as the internal user. It opens itself; after any failure, anew; once it was
    closed, no more: who was still waiting to ask would leave it open."""

    def __init__(self, address: Address, secret: str, trust: SSLContext | None = None) -> None:
        """`trust`: speak TLS, with servers of that."""
        self.address = address
        self._trust = trust
        self._login = packed("AUTH", INTERNAL_USER, secret)
        self._busy = asyncio.Lock()
        self._closed = False
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, blocks: Sequence[bytes], seconds: float) -> list[bytes]:
        """The answers to blocks of commands, made by `packed`, that are sent all at once.

        Raises `OSError` when they do not come in time; the server may then have done any of it.
        """
        async with self._busy:
            if self._closed:
                raise ConnectionError("the connection was closed")
            with ExitStack() as failed:  # or cancelled: what is still to come would answer the next question
                failed.callback(self._hang_up)
                try:
                    async with asyncio.timeout(seconds):
                        answers = await self._exchange(blocks)
                except EOFError as error:
                    raise ConnectionError("the server closed the connection") from error
                failed.pop_all()
            return answers

    async def close(self) -> None:
        """Close the connection, once it has its answer."""
        self._closed = True
        async with self._busy:
            self._hang_up()

    async def _exchange(self, blocks: Sequence[bytes]) -> list[bytes]:
        reader, writer = self._streams or await self._open()
        # The answers to a block end where the server echoes a mark that nobody could know before: no key can
        # look like the end of an answer, and what follows in it be taken for a command.
        marks = [secrets.token_hex(16).encode() for _ in blocks]
        with sending():
            writer.writelines(
                part
                for block, mark in zip(blocks, marks, strict=True)
                for part in (block, b"*2\r\n$4\r\nECHO\r\n$32\r\n%b\r\n" % mark)
            )
        await writer.drain()
        said = await reader.readuntil(_echo(marks[-1]))
        answers, begin = [], 0
        for mark in marks:
            end = said.index(_echo(mark), begin)
            answers.append(said[begin:end])
            begin = end + len(_echo(mark))
        return answers

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            self.address.ip,
            self.address.port,
            limit=_BUFFER,
            local_addr=near(self.address.ip),
            ssl=self._trust,
        )
        self._streams = reader, writer
        with sending():
            writer.write(self._login)
        said = await reader.readuntil(b"\r\n")
        if said != b"+OK\r\n":
            raise ConnectionError(said.decode(errors="replace").strip())
        return reader, writer

    def _hang_up(self) -> None:
        if self._streams is not None:
            hang_up(self._streams[1])
            self._streams = None


def _echo(mark: bytes) -> bytes:
    return b"$32\r\n%b\r\n" % mark


def packed(*words: str | int | bytes) -> bytes:
    """A command as servers read it."""
    return b"*%d\r\n%b" % (len(words), joined(*words))


def joined(*words: str | int | bytes) -> bytes:
    """The words of a command, or some of them, without their number in front."""
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in map(_bytes, words))


def _bytes(word: str | int | bytes) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def lines(answer: bytes) -> list[bytes]:
    """The answers to commands that are answered with a line each."""
    return answer.split(b"\r\n")[:-1]


def text(line: bytes) -> str:
    """What a refusal says."""
    return line.decode(errors="replace").strip().removeprefix("-")
