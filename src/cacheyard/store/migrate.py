"""Brings the database to the newest shape. Called once at start, before any `Store` is opened."""

import sqlite3
from contextlib import closing
from pathlib import Path

_HERE = Path(__file__).parent / "migrations"
HEAD = "0002"  # a test holds this to the newest file in migrations/versions


def migrate(database: Path) -> None:
    """Create or upgrade `database`. Only an upgrade imports Alembic, which is slow to import and large."""
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not database.exists():
        _create(database)
    elif _revision(database) != HEAD:
        _upgrade(database)


def _create(database: Path) -> None:
    """The newest shape at once, under another name until it is whole."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    from cacheyard.store.tables import metadata

    fresh = database.with_name(database.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)  # it has hashes of passwords, and the directory may have been there before us
    metadata.create_all(create_engine(f"sqlite:///{fresh}", poolclass=NullPool))
    with closing(sqlite3.connect(fresh)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", [HEAD])
    fresh.rename(database)


def _upgrade(database: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    engine = create_engine(f"sqlite:///{database}", poolclass=NullPool)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _revision(database: Path) -> str | None:
    with closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
    return row[0] if row else None
