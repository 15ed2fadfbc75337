"""What the rest of the house counts on from `Store`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.tables import facts


@pytest.fixture
def database(tmp_path: Path) -> Path:
    migrate(tmp_path / "db.sqlite")
    return tmp_path / "db.sqlite"


@pytest.fixture
def store(database: Path) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


def names(store: Store) -> list[str]:
    with store.read() as tx:
        return [row.name for row in tx.execute(select(facts.c.name))]


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    def half() -> None:
        with store.write() as tx:
            tx.execute(insert(facts).values(name="half", value=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert names(store) == []


def test_another_process_sees_that_something_was_written(store: Store, database: Path) -> None:
    other = Store(database)
    before = store.data_version()
    assert store.data_version() == before
    with other.write() as tx:
        tx.execute(insert(facts).values(name="theirs", value=1))
    other.close()
    assert store.data_version() != before


def test_a_write_wakes_who_waits_and_a_note_does_not(store: Store) -> None:
    async def woken(*, quietly: bool) -> bool:
        with store.changes() as happened:

            def write() -> None:
                with store.note() if quietly else store.write() as tx:
                    tx.execute(insert(facts).values(name=str(quietly), value=1))

            await store.run(write)
            await asyncio.sleep(0)
            return happened.is_set()

    assert asyncio.run(woken(quietly=False))
    assert not asyncio.run(woken(quietly=True))


def test_writers_of_one_process_take_turns(store: Store) -> None:
    async def many() -> None:
        def write(number: int) -> None:
            with store.write() as tx:
                tx.execute(insert(facts).values(name=f"{number:03d}", value=number))

        await asyncio.gather(*(store.run(write, number) for number in range(100)))

    asyncio.run(many())
    assert sorted(names(store)) == [f"{number:03d}" for number in range(100)]
