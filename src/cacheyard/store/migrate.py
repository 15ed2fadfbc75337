"""Brings the database to the newest shape. Called once at start, before any `Store` is opened."""

import sqlite3
from pathlib import Path

_HERE = Path(__file__).parent / "migrations"
HEAD = "0001"  # a test holds this to the newest file in migrations/versions


def migrate(database: Path) -> None:
    """Create or upgrade `database`. When it is up to date, Alembic is not even imported."""
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _revision(database) == HEAD:
        return
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
    if not database.exists():
        return None
    connection = sqlite3.connect(database)
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        return None
    finally:
        connection.close()
    return row[0] if row else None
