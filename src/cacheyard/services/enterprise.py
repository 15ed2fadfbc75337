"""Enterprise projects: labels by which a company sorts its instances across projects.

Administered by `cli`. Instances are created in one and show its name; no rights depend on it.
"""

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.errors import Invalid
from cacheyard.ids import new_id
from cacheyard.services.accounts import Exists, Needed, Unknown, checked_name
from cacheyard.store import enterprise as rows
from cacheyard.store.db import Store
from cacheyard.store.enterprise import EnterpriseProject

DEFAULT = EnterpriseProject(id="0", name="default", created_at=0)


def chosen(tx: Connection, given: str | None) -> str:
    """The id of a request, or the default's. Raises `Invalid` for one that there is not."""
    wanted = given or DEFAULT.id
    if name_of(tx, wanted) is None:
        raise Invalid(parameter="enterprise_project_id", why=f"there is no enterprise project {wanted}")
    return wanted


def name_of(tx: Connection, enterprise_project_id: str) -> str | None:
    """What it is called."""
    if enterprise_project_id == DEFAULT.id:
        return DEFAULT.name
    return next((each.name for each in rows.every(tx) if each.id == enterprise_project_id), None)


def add(store: Store, name: str) -> EnterpriseProject:
    """A new one."""
    made = EnterpriseProject(id=new_id(), name=checked_name(name), created_at=now_ms())
    with store.write() as tx:
        if name in (DEFAULT.name, *(each.name for each in rows.every(tx))):
            raise Exists(what="enterprise project", name=name)
        rows.add(tx, made)
    return made


def every(store: Store) -> list[EnterpriseProject]:
    """All of them, the default first."""
    with store.read() as tx:
        return [DEFAULT, *rows.every(tx)]


def delete(store: Store, name: str) -> None:
    """Delete one that no instance is in."""
    with store.write() as tx:
        found = next((each for each in rows.every(tx) if each.name == name), None)
        if found is None:
            raise Unknown(what="enterprise project", name=name)
        if rows.is_used(tx, found.id):
            raise Needed(what="enterprise project", name=name, why="instances are in it")
        rows.remove(tx, found.id)
