"""Rows of users, projects, roles, keys, tokens, seen signatures, and facts. Called by `services`."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, bindparam, delete, insert, select, union, union_all, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain.identity import AccessKey, Project, User
from cacheyard.domain.permissions import Policy
from cacheyard.store.rows import all_of, one_of
from cacheyard.store.tables import (
    access_keys,
    domains,
    facts,
    policies,
    projects,
    role_assignments,
    seen_signatures,
    tokens,
    user_group_grants,
    user_group_members,
    users,
)

_USER = (
    users.c.id,
    users.c.name,
    users.c.domain_id,
    domains.c.name.label("domain_name"),
    users.c.enabled,
    users.c.created_at,
)


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `tokens`, by the token's hash."""

    user_id: str
    project_id: str | None
    issued_at: int
    expires_at: int


class _Signer(User, frozen=True, kw_only=True):
    """A user with the secret of one of their keys; never leaves this module as such."""

    secret_sealed: str

    @property
    def user(self) -> User:
        return User(**{name: getattr(self, name) for name in User.__struct_fields__})


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """All that a request with a token needs to know; of a user with several grants there are several."""

    expires_at: int
    user_id: str
    user_name: str
    domain_id: str
    domain_name: str
    project_id: str | None
    project_name: str | None
    role: str | None
    policy: Policy | None


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A role that a user, or a group of the user, has on a project; of a custom policy, what it says."""

    project_id: str
    role: str
    policy: Policy | None


# --- Domains and projects -------------------------------------------------------------------------


def add_domain(tx: Connection, domain_id: str, name: str) -> None:
    """A domain: the account that users and projects belong to."""
    tx.execute(insert(domains).values(id=domain_id, name=name))


def domain(
    tx: Connection, *, domain_id: str | None = None, name: str | None = None
) -> tuple[str, str] | None:
    """Id and name of the domain with this id and (where given) this name."""
    query = select(domains.c.id, domains.c.name)
    if domain_id is not None:
        query = query.where(domains.c.id == domain_id)
    if name is not None:
        query = query.where(domains.c.name == name)
    row = tx.execute(query).first()
    return (row.id, row.name) if row else None


def add_project(tx: Connection, project: Project) -> None:
    """A project."""
    tx.execute(insert(projects).values(**msgspec.to_builtins(project)))


def project(tx: Connection, *, project_id: str | None = None, name: str | None = None) -> Project | None:
    """The project with this id or this name."""
    query = select(projects).where(
        projects.c.id == project_id if project_id is not None else projects.c.name == name
    )
    return one_of(Project, tx.execute(query))


def all_projects(tx: Connection) -> list[Project]:
    """Every project, by name."""
    return all_of(Project, tx.execute(select(projects).order_by(projects.c.name)))


def projects_of(tx: Connection, user_id: str) -> list[Project]:
    """The enabled projects on which the user has a role, by name."""
    mine = {grant.project_id for grant in grants_of(tx, user_id)}
    query = select(projects).where(projects.c.id.in_(mine), projects.c.enabled).order_by(projects.c.name)
    return all_of(Project, tx.execute(query))


# --- Users and roles ------------------------------------------------------------------------------


def add_user(tx: Connection, user: User, password_hash: str) -> None:
    """A user."""
    values = {name: value for name, value in msgspec.to_builtins(user).items() if name != "domain_name"}
    tx.execute(insert(users).values(**values, password_hash=password_hash))


def user(tx: Connection, *, user_id: str | None = None, name: str | None = None) -> User | None:
    """The user with this id or this name."""
    query = select(*_USER).join(domains, domains.c.id == users.c.domain_id)
    query = query.where(users.c.id == user_id if user_id is not None else users.c.name == name)
    return one_of(User, tx.execute(query))


def all_users(tx: Connection) -> list[User]:
    """Every user, by name."""
    query = select(*_USER).join(domains, domains.c.id == users.c.domain_id).order_by(users.c.name)
    return all_of(User, tx.execute(query))


def password_hash(tx: Connection, user_id: str) -> str:
    """The argon2 hash of the user's password."""
    return str(tx.execute(select(users.c.password_hash).where(users.c.id == user_id)).scalar_one())


def change_user(tx: Connection, user_id: str, **values: Any) -> None:
    """Set columns of a user."""
    tx.execute(update(users).where(users.c.id == user_id).values(**values))


def remove_user(tx: Connection, user_id: str) -> None:
    """Delete a user and every row that is the user's own."""
    for table in (tokens, access_keys, role_assignments, user_group_members):
        tx.execute(delete(table).where(table.c.user_id == user_id))
    tx.execute(delete(users).where(users.c.id == user_id))


def grant(tx: Connection, user_id: str, project_id: str, role: str) -> None:
    """Give a role on a project; giving it twice is no error."""
    values = {"user_id": user_id, "project_id": project_id, "role": role}
    tx.execute(upsert(role_assignments).values(**values).on_conflict_do_nothing())


def revoke(tx: Connection, user_id: str, project_id: str, role: str) -> bool:
    """Take a role away. Whether there was one."""
    mine = role_assignments.c
    where = (mine.user_id == user_id, mine.project_id == project_id, mine.role == role)
    return tx.execute(delete(role_assignments).where(*where)).rowcount > 0


_GRANTED = (policies.c.document.label("policy"),)
_OWN = (
    select(role_assignments.c.project_id, role_assignments.c.role, *_GRANTED)
    .outerjoin(policies, policies.c.name == role_assignments.c.role)
    .where(role_assignments.c.user_id == bindparam("user_id"))
)
_BY_GROUP = (
    select(user_group_grants.c.project_id, user_group_grants.c.role, *_GRANTED)
    .join(user_group_members, user_group_members.c.group_id == user_group_grants.c.group_id)
    .outerjoin(policies, policies.c.name == user_group_grants.c.role)
    .where(user_group_members.c.user_id == bindparam("user_id"))
)
_GRANTS = union(_OWN, _BY_GROUP).order_by("project_id", "role")


def grants_of(tx: Connection, user_id: str) -> list[Grant]:
    """All that the user has been granted anywhere, also by groups; each once."""
    return all_of(Grant, tx.execute(_GRANTS, {"user_id": user_id}))


def grants_on(tx: Connection, user_id: str, project_id: str) -> list[Grant]:
    """What the user has been granted on a project; nothing when the project is disabled."""
    enabled = select(projects.c.id).where(projects.c.id == project_id, projects.c.enabled)
    if tx.execute(enabled).first() is None:
        return []
    return [grant for grant in grants_of(tx, user_id) if grant.project_id == project_id]


def own_roles(tx: Connection, user_id: str) -> list[tuple[str, str]]:
    """The user's own roles, without those of groups, as (project id, role)."""
    query = select(role_assignments.c.project_id, role_assignments.c.role)
    query = query.where(role_assignments.c.user_id == user_id).order_by(*role_assignments.primary_key)
    return [(row.project_id, row.role) for row in tx.execute(query)]


# --- Access keys ----------------------------------------------------------------------------------


def add_key(tx: Connection, access: str, user_id: str, secret_sealed: str, created_at: int) -> None:
    """An access key."""
    tx.execute(
        insert(access_keys).values(
            access=access, user_id=user_id, secret_sealed=secret_sealed, enabled=True, created_at=created_at
        )
    )


def live_key(tx: Connection, access: str) -> tuple[User, str] | None:
    """The user and the sealed secret of an enabled key of an enabled user."""
    query = (
        select(*_USER, access_keys.c.secret_sealed)
        .join(domains, domains.c.id == users.c.domain_id)
        .join(access_keys, access_keys.c.user_id == users.c.id)
        .where(access_keys.c.access == access, access_keys.c.enabled, users.c.enabled)
    )
    found = one_of(_Signer, tx.execute(query))
    return (found.user, found.secret_sealed) if found else None


def keys(tx: Connection, user_id: str | None = None) -> list[AccessKey]:
    """Access keys without their secrets, oldest first."""
    query = select(
        access_keys.c.access,
        access_keys.c.user_id,
        users.c.name.label("user_name"),
        access_keys.c.enabled,
        access_keys.c.created_at,
    ).join(users, users.c.id == access_keys.c.user_id)
    if user_id is not None:
        query = query.where(access_keys.c.user_id == user_id)
    return all_of(AccessKey, tx.execute(query.order_by(access_keys.c.created_at, access_keys.c.access)))


def remove_key(tx: Connection, access: str) -> bool:
    """Delete a key. Whether there was one."""
    return tx.execute(delete(access_keys).where(access_keys.c.access == access)).rowcount > 0


# --- Tokens ---------------------------------------------------------------------------------------


def add_token(tx: Connection, digest: str, token: Token) -> None:
    """A token, and off with those that have expired."""
    tx.execute(delete(tokens).where(tokens.c.expires_at <= token.issued_at))
    tx.execute(insert(tokens).values(hash=digest, **msgspec.to_builtins(token)))


def token(tx: Connection, digest: str) -> Token | None:
    """The token with this hash, expired or not."""
    query = select(tokens.c.user_id, tokens.c.project_id, tokens.c.issued_at, tokens.c.expires_at)
    return one_of(Token, tx.execute(query.where(tokens.c.hash == digest)))


def _session(role: Any, *, by_group: bool) -> Select[Any]:
    found = (
        select(
            tokens.c.expires_at,
            users.c.id.label("user_id"),
            users.c.name.label("user_name"),
            domains.c.id.label("domain_id"),
            domains.c.name.label("domain_name"),
            tokens.c.project_id,
            projects.c.name.label("project_name"),
            role.c.role,
            *_GRANTED,
        )
        .join(users, users.c.id == tokens.c.user_id)
        .join(domains, domains.c.id == users.c.domain_id)
        .where(tokens.c.hash == bindparam("digest"), users.c.enabled)
    )
    on_project = (projects.c.id == tokens.c.project_id) & projects.c.enabled
    granted = role.c.project_id == projects.c.id
    if by_group:
        mine = (role.c.group_id == user_group_members.c.group_id) & granted
        found = found.join(user_group_members, user_group_members.c.user_id == users.c.id)
        found = found.join(projects, on_project).join(role, mine)
    else:
        mine = (role.c.user_id == users.c.id) & granted
        found = found.outerjoin(projects, on_project).outerjoin(role, mine)
    return found.outerjoin(policies, policies.c.name == role.c.role)


_SESSION = union_all(
    _session(role_assignments, by_group=False), _session(user_group_grants, by_group=True)
).order_by("role")


def sessions(tx: Connection, digest: str) -> list[Session]:
    """The token with this hash, once for each grant and once more if the user has none of their own; none
    when it is unknown or its user is disabled.

    One query, made ready beforehand: it is asked for every request.
    """
    return all_of(Session, tx.execute(_SESSION, {"digest": digest}))


def remove_token(tx: Connection, digest: str) -> None:
    """Revoke a token."""
    tx.execute(delete(tokens).where(tokens.c.hash == digest))


def remove_tokens_of(tx: Connection, user_id: str) -> None:
    """Revoke all of a user's tokens."""
    tx.execute(delete(tokens).where(tokens.c.user_id == user_id))


# --- Signatures -----------------------------------------------------------------------------------


def first_sight(tx: Connection, digest: str, now: int) -> bool:
    """Remember a signature. False when it was there before."""
    row = upsert(seen_signatures).values(digest=digest, seen_at=now).on_conflict_do_nothing()
    return tx.execute(row).rowcount > 0


def forget_signatures(tx: Connection, before: int) -> None:
    """Drop signatures seen before a time from which none can still be inside its window."""
    tx.execute(delete(seen_signatures).where(seen_signatures.c.seen_at < before))


# --- Facts ----------------------------------------------------------------------------------------


def fact(tx: Connection, name: str) -> Any:
    """One of the few things of which there is one; None when it is not known."""
    return tx.execute(select(facts.c.value).where(facts.c.name == name)).scalar_one_or_none()


def set_fact(tx: Connection, name: str, value: Any) -> None:
    """Remember a fact, in place of what was known."""
    row = upsert(facts).values(name=name, value=value)
    tx.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value}))


def facts_of(tx: Connection, names: Sequence[str]) -> dict[str, Any]:
    """Several facts; absent ones are absent."""
    rows = tx.execute(select(facts.c.name, facts.c.value).where(facts.c.name.in_(names)))
    return {row.name: row.value for row in rows}
