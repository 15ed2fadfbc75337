"""Writing to a connection that the other side may just have reset, on any event loop."""

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
