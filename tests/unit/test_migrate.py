"""The tables in code, a new database and the migrations are the same."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from cacheyard.store import migrate
from cacheyard.store.tables import metadata


def test_head_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert scripts.get_current_head() == migrate.HEAD


def test_migrations_lead_to_the_tables_in_code(tmp_path: Path) -> None:
    database = tmp_path / "old.sqlite"
    database.touch()  # empty: everything is a migration
    migrate.migrate(database)
    engine = create_engine(f"sqlite:///{database}", poolclass=NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_new_database_has_the_shape_that_migrations_lead_to(tmp_path: Path) -> None:
    new, old = tmp_path / "new.sqlite", tmp_path / "old.sqlite"
    old.touch()
    migrate.migrate(new)
    migrate.migrate(old)
    assert _shape(new) == _shape(old)


def test_a_database_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "db.sqlite"
    migrate.migrate(database)
    before = database.read_bytes()
    migrate.migrate(database)
    assert database.read_bytes() == before


def _shape(database: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(database)) as connection:
        return set(connection.execute("SELECT type, name FROM sqlite_master"))
