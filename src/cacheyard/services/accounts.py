"""Users, projects, roles and access keys, as the command line administers them.

Called by `cli`, which runs on the machine of the service and needs no permission but the data
directory's.
"""

import secrets
import string

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain.identity import AccessKey, NewAccessKey, Project, User
from cacheyard.domain.passwords import complexity_fault, generate_password, hash_password
from cacheyard.domain.permissions import SYSTEM_ROLES
from cacheyard.errors import Invalid, Refused
from cacheyard.ids import new_id
from cacheyard.store import identity as rows
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

ACCESS_LENGTH, SECRET_LENGTH = 20, 40  # characters, as the cloud's keys have
_ACCESS = string.ascii_uppercase + string.digits
_SECRET = string.ascii_letters + string.digits


class Unknown(Refused):
    """There is no {what} {name}."""

    status = 404


class Exists(Refused):
    """There is a {what} {name} already."""

    status = 409


def add_user(store: Store, name: str, password: str | None = None) -> tuple[User, str]:
    """A new user in the first domain, and its password (a generated one unless it is given)."""
    secret = _good(password) if password is not None else generate_password()
    hashed = hash_password(secret)
    with store.write() as tx:
        if rows.user(tx, name=_named(name)) is not None:
            raise Exists(what="user", name=name)
        domain = rows.domain(tx)
        if domain is None:
            raise Unknown(what="domain", name="to put a user into; start the service once")
        user = User(
            id=new_id().replace("-", ""),
            name=name,
            domain_id=domain[0],
            domain_name=domain[1],
            enabled=True,
            created_at=now_ms(),
        )
        rows.add_user(tx, user, hashed)
    return user, secret


def list_users(store: Store) -> list[User]:
    """All users."""
    with store.read() as tx:
        return rows.all_users(tx)


def enable_user(store: Store, name: str, enabled: bool) -> User:
    """Let a user in again, or shut them out: their tokens are revoked and their keys sign nothing."""
    with store.write() as tx:
        user = _user(tx, name)
        rows.change_user(tx, user.id, enabled=enabled)
        if not enabled:
            rows.remove_tokens_of(tx, user.id)
        return _user(tx, name)


def set_password(store: Store, sealer: Sealer, name: str, password: str | None = None) -> str:
    """Set a user's password (a generated one unless it is given), and revoke their tokens."""
    secret = _good(password) if password is not None else generate_password()
    hashed = hash_password(secret)
    with store.write() as tx:
        user = _user(tx, name)
        rows.change_user(tx, user.id, password_hash=hashed)
        rows.remove_tokens_of(tx, user.id)
        first = rows.fact(tx, "bootstrap")
        if first is not None and first["user_id"] == user.id:
            rows.set_fact(tx, "bootstrap", {**first, "password": sealer.seal(secret)})
    return secret


def add_project(store: Store, name: str, description: str = "") -> Project:
    """A new project in the first domain. Nobody has a role on it yet."""
    with store.write() as tx:
        if rows.project(tx, name=_named(name)) is not None:
            raise Exists(what="project", name=name)
        domain = rows.domain(tx)
        if domain is None:
            raise Unknown(what="domain", name="to put a project into; start the service once")
        project = Project(
            id=new_id().replace("-", ""),
            domain_id=domain[0],
            name=name,
            description=description,
            enabled=True,
        )
        rows.add_project(tx, project)
    return project


def list_projects(store: Store) -> list[Project]:
    """All projects."""
    with store.read() as tx:
        return rows.all_projects(tx)


def grant(store: Store, user: str, project: str, role: str) -> None:
    """Give a user (by name) a role on a project (by name)."""
    if role not in SYSTEM_ROLES:
        raise Invalid(parameter="role", why=f"it must be one of {', '.join(SYSTEM_ROLES)}")
    with store.write() as tx:
        rows.grant(tx, _user(tx, user).id, _project(tx, project).id, role)


def revoke(store: Store, user: str, project: str, role: str) -> None:
    """Take a role away again; it counts from the next request on."""
    with store.write() as tx:
        if not rows.revoke(tx, _user(tx, user).id, _project(tx, project).id, role):
            raise Unknown(what="role", name=f"{role} of {user} on {project}")


def list_roles(store: Store, user: str) -> list[tuple[str, str]]:
    """A user's roles, as (project name, role)."""
    with store.read() as tx:
        names = {project.id: project.name for project in rows.all_projects(tx)}
        return [(names[project], role) for project, role in rows.all_roles(tx, _user(tx, user).id)]


def create_access_key(store: Store, sealer: Sealer, user: str) -> NewAccessKey:
    """A new key pair for a user. The secret is never shown again."""
    with store.write() as tx:
        return new_key(tx, sealer, _user(tx, user).id)


def list_access_keys(store: Store, user: str | None = None) -> list[AccessKey]:
    """Keys without secrets; of one user when named."""
    with store.read() as tx:
        return rows.keys(tx, _user(tx, user).id if user is not None else None)


def delete_access_key(store: Store, access: str) -> None:
    """Delete a key; requests signed with it are refused from now on."""
    with store.write() as tx:
        if not rows.remove_key(tx, access):
            raise Unknown(what="access key", name=access)


def new_key(tx: Connection, sealer: Sealer, user_id: str) -> NewAccessKey:
    """Make and keep a key pair, within a transaction."""
    key = NewAccessKey(
        access="".join(secrets.choice(_ACCESS) for _ in range(ACCESS_LENGTH)),
        secret="".join(secrets.choice(_SECRET) for _ in range(SECRET_LENGTH)),
    )
    rows.add_key(tx, key.access, user_id, sealer.seal(key.secret), now_ms())
    return key


def _user(tx: Connection, name: str) -> User:
    user = rows.user(tx, name=name)
    if user is None:
        raise Unknown(what="user", name=name)
    return user


def _project(tx: Connection, name: str) -> Project:
    project = rows.project(tx, name=name)
    if project is None:
        raise Unknown(what="project", name=name)
    return project


def _named(name: str) -> str:
    if not 1 <= len(name) <= 64 or name != name.strip():
        raise Invalid(parameter="name", why="it must have 1 to 64 characters and no space around them")
    return name


def _good(password: str) -> str:
    fault = complexity_fault(password)
    if fault is not None:
        raise Invalid(parameter="password", why=fault)
    return password
