"""Writing to a connection that the other side may just have reset, and ending one, on any event loop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sending() -> Iterator[None]:
    """Around a write to an asyncio stream: a connection that is gone is an `OSError`, as everywhere.
    uvloop has a bare `RuntimeError` for that, where asyncio's own loop says nothing before the next read."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionResetError(str(error)) from error


def hang_up(writer: asyncio.StreamWriter) -> None:
    """End a connection on which nothing more is to be said. With TLS, closing it would first wait for the
    other side to take its leave, for half a minute if that one hangs."""
    writer.transport.abort()
