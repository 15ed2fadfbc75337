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
from cacheyard.store import policies
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


class Needed(Refused):
    """The {what} {name} cannot be deleted: {why}."""

    status = 409


def add_user(store: Store, name: str, password: str | None = None) -> tuple[User, str]:
    """A new user in the first domain, and its password (a generated one unless it is given)."""
    secret = _good(password) if password is not None else generate_password()
    hashed = hash_password(secret)
    with store.write() as tx:
        if rows.user(tx, name=checked_name(name)) is not None:
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
        user = user_named(tx, name)
        rows.change_user(tx, user.id, enabled=enabled)
        if not enabled:
            rows.remove_tokens_of(tx, user.id)
        return user_named(tx, name)


def delete_user(store: Store, name: str) -> None:
    """Delete a user with all that is theirs: grants, memberships, tokens, keys. Instances stay, as they are
    the project's, and the audit log keeps the name."""
    with store.write() as tx:
        user = user_named(tx, name)
        first = rows.fact(tx, "bootstrap")
        if first is not None and first["user_id"] == user.id:
            raise Needed(what="user", name=name, why="it is the first user; disable it instead")
        rows.remove_user(tx, user.id)


def set_password(store: Store, sealer: Sealer, name: str, password: str | None = None) -> str:
    """Set a user's password (a generated one unless it is given), and revoke their tokens."""
    secret = _good(password) if password is not None else generate_password()
    hashed = hash_password(secret)
    with store.write() as tx:
        user = user_named(tx, name)
        rows.change_user(tx, user.id, password_hash=hashed)
        rows.remove_tokens_of(tx, user.id)
        first = rows.fact(tx, "bootstrap")
        if first is not None and first["user_id"] == user.id:
            rows.set_fact(tx, "bootstrap", {**first, "password": sealer.seal(secret)})
    return secret


def add_project(store: Store, name: str, description: str = "") -> Project:
    """A new project in the first domain. Nobody has a role on it yet."""
    with store.write() as tx:
        if rows.project(tx, name=checked_name(name)) is not None:
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


def check_role(tx: Connection, role: str) -> str:
    """The name of a system role or of a custom policy, as it is given. Raises `Invalid`."""
    if role not in SYSTEM_ROLES and policies.get(tx, role) is None:
        there = [*SYSTEM_ROLES, *(policy.name for policy in policies.every(tx))]
        raise Invalid(parameter="role", why=f"it must be one of {', '.join(there)}")
    return role


def grant(store: Store, user: str, project: str, role: str) -> None:
    """Give a user (by name) a role or a custom policy on a project (by name)."""
    with store.write() as tx:
        rows.grant(tx, user_named(tx, user).id, project_named(tx, project).id, check_role(tx, role))


def revoke(store: Store, user: str, project: str, role: str) -> None:
    """Take a role away again; it counts from the next request on."""
    with store.write() as tx:
        if not rows.revoke(tx, user_named(tx, user).id, project_named(tx, project).id, role):
            raise Unknown(what="role", name=f"{role} of {user} on {project}")


def list_roles(store: Store, user: str) -> list[tuple[str, str, str]]:
    """What a user has been granted, as (project name, role, group): own ones have no group."""
    with store.read() as tx:
        who = user_named(tx, user)
        names = {project.id: project.name for project in rows.all_projects(tx)}
        own = [(project, role, "") for project, role in rows.own_roles(tx, who.id)]
        mine = [group for group in policies.groups(tx) if who.id in policies.members(tx, group.id)]
        shared = [
            (project, role, group.name) for group in mine for project, role in policies.grants(tx, group.id)
        ]
        return [(names[project], role, group) for project, role, group in own + shared]


def create_access_key(store: Store, sealer: Sealer, user: str) -> NewAccessKey:
    """A new key pair for a user. The secret is never shown again."""
    with store.write() as tx:
        return new_key(tx, sealer, user_named(tx, user).id)


def list_access_keys(store: Store, user: str | None = None) -> list[AccessKey]:
    """Keys without secrets; of one user when named."""
    with store.read() as tx:
        return rows.keys(tx, user_named(tx, user).id if user is not None else None)


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


def user_named(tx: Connection, name: str) -> User:
    """The user of that name. Raises `Unknown`."""
    user = rows.user(tx, name=name)
    if user is None:
        raise Unknown(what="user", name=name)
    return user


def project_named(tx: Connection, name: str) -> Project:
    """The project of that name. Raises `Unknown`."""
    project = rows.project(tx, name=name)
    if project is None:
        raise Unknown(what="project", name=name)
    return project


def checked_name(name: str) -> str:
    """A name for anything here, as it is given."""
    if not 1 <= len(name) <= 64 or name != name.strip():
        raise Invalid(parameter="name", why="it must have 1 to 64 characters and no space around them")
    return name


def _good(password: str) -> str:
    fault = complexity_fault(password)
    if fault is not None:
        raise Invalid(parameter="password", why=fault)
    return password
