"""Rows of `templates`: the custom ones. Those of the service are in no table."""

from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from cacheyard.clock import now_ms
from cacheyard.domain.templates import Template
from cacheyard.store import rows
from cacheyard.store.tables import templates

_COLUMNS = [templates.c[name] for name in Template.__struct_fields__]


def add(tx: Connection, template: Template) -> None:
    """Insert a template."""
    tx.execute(insert(templates).values(**msgspec.to_builtins(template), updated_at=template.created_at))


def of_project(tx: Connection, project_id: str) -> list[Template]:
    """The project's, in the order in which they were made."""
    query = select(*_COLUMNS).where(templates.c.project_id == project_id)
    return rows.all_of(Template, tx.execute(query.order_by(templates.c.created_at, templates.c.id)))


def get(tx: Connection, project_id: str, template_id: str) -> Template | None:
    """The one with that id, if it is the project's."""
    query = select(*_COLUMNS).where(templates.c.project_id == project_id, templates.c.id == template_id)
    return rows.one_of(Template, tx.execute(query))


def change(tx: Connection, template_id: str, **values: Any) -> None:
    """Set columns of a template."""
    tx.execute(update(templates).where(templates.c.id == template_id).values(**values, updated_at=now_ms()))


def remove(tx: Connection, template_id: str) -> None:
    """Delete it; instances keep what they got from it."""
    tx.execute(delete(templates).where(templates.c.id == template_id))
