"""Rows of enterprise projects. Called by `services.enterprise`."""

import msgspec
from sqlalchemy import Connection, delete, insert, select

from cacheyard.store.rows import all_of
from cacheyard.store.tables import enterprise_projects, instances


class EnterpriseProject(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `enterprise_projects`."""

    id: str
    name: str
    created_at: int


def add(tx: Connection, made: EnterpriseProject) -> None:
    """An enterprise project without instances."""
    tx.execute(insert(enterprise_projects).values(**msgspec.to_builtins(made)))


def every(tx: Connection) -> list[EnterpriseProject]:
    """All of them, by name."""
    return all_of(
        EnterpriseProject, tx.execute(select(enterprise_projects).order_by(enterprise_projects.c.name))
    )


def is_used(tx: Connection, enterprise_project_id: str) -> bool:
    """Whether any instance is in it."""
    query = select(instances.c.id).where(instances.c.enterprise_project_id == enterprise_project_id).limit(1)
    return tx.execute(query).first() is not None


def remove(tx: Connection, enterprise_project_id: str) -> None:
    """Delete one."""
    tx.execute(delete(enterprise_projects).where(enterprise_projects.c.id == enterprise_project_id))
