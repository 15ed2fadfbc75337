"""The database: many readers, one writer, and word to whoever waits for a change.

SQLite in WAL mode. All writes of a process go through one connection, one at a time: with more
writers SQLite makes them queue by sleeping, which costs a hundred times more. Everything here is
synchronous; asyncio code calls it through `Store.run`.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

T = TypeVar("T")

READERS = 4  # threads; more make SQLite slower
BUSY_SECONDS = 30.0  # how long to wait for a writer in another process
FAULTS = (SQLAlchemyError, sqlite3.Error)  # what is raised when the database cannot be read or written


class Store:
    """One open database. Use `read()` and `write()` in threads, `run()` and `changed()` in asyncio."""

    def __init__(self, path: Path) -> None:
        """Open the database at `path`, which `store.migrate` has made."""
        url = f"sqlite:///{path}"
        self._readers = _engine(url, pool_size=READERS)
        self._writer = _engine(url, pool_size=1)
        self._writing = threading.Lock()
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="store")
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        # Outside SQLAlchemy, which would open a transaction: in one, the version never changes.
        self._probe = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._probe_lock = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view. Nothing written through it is kept."""
        with self._readers.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: kept whole when the block ends, not at all when it raises. Wakes waiters."""
        with self._writing, self._writer.begin() as connection:
            yield connection
        self.wake()

    @contextmanager
    def note(self) -> Iterator[Connection]:
        """As `write`, for figures that nobody waits for: wakes nobody."""
        with self._writing, self._writer.begin() as connection:
            yield connection

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run synchronous `work` in one of the store's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def wake(self) -> None:
        """Wake everyone who waits in `changes`."""
        for loop, happened in list(self._waiters):
            with suppress(RuntimeError):  # its loop has just been closed
                loop.call_soon_threadsafe(happened.set)

    @contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """An event that is set after each write of this process; clear it before you look."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._waiters.add(entry)
        try:
            yield entry[1]
        finally:
            self._waiters.discard(entry)

    def data_version(self) -> int:
        """A number that changes when another process has written: the cheapest question SQLite answers."""
        with self._probe_lock:
            return int(self._probe.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close all connections; the store is of no use afterwards."""
        self._threads.shutdown(wait=True)
        self._probe.close()
        self._readers.dispose()
        self._writer.dispose()


@contextmanager
def taken_back(tx: Connection) -> Iterator[None]:
    """What is written inside is seen inside, and then was never written."""
    point = tx.begin_nested()
    try:
        yield
    finally:
        point.rollback()


def _engine(url: str, pool_size: int) -> Engine:
    pool: dict[str, Any] = (
        {"poolclass": StaticPool}
        if pool_size == 1
        else {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 8}
    )
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        json_serializer=lambda value: msgspec.json.encode(value).decode(),
        json_deserializer=msgspec.json.decode,
        **pool,
    )
    writer = pool_size == 1

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: pysqlite's own comes too late
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")

    return engine
