"""Tokens, as Keystone gives them out: what `POST /v3/auth/tokens` and its kin mean.

Called by `api`. A token is 32 random bytes; the store has only its hash. A wrong password and an
unknown user get the same answer after the same time; what limits guessing is argon2's cost.
"""

import secrets
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection

from cacheyard.domain.identity import Principal, Project, User
from cacheyard.domain.passwords import is_password, sha256_hex
from cacheyard.errors import Invalid, NoRoleOnScope, NotFound, Unauthenticated, WrongCredentials
from cacheyard.services.catalog import catalog
from cacheyard.store import identity as rows
from cacheyard.store.db import Store

_BYTES = 32


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token's text, for the X-Subject-Token header, and the body that goes with it."""

    text: str
    body: dict[str, Any]

    def __repr__(self) -> str:
        return "IssuedToken(…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class _Named(msgspec.Struct):
    id: str | None = None
    name: str | None = None


class _ProjectRef(_Named):
    domain: _Named | None = None


class _UserRef(_Named):
    domain: _Named | None = None
    password: str = ""


class _Password(msgspec.Struct):
    user: _UserRef


class _Token(msgspec.Struct):
    id: str


class _Identity(msgspec.Struct):
    methods: list[str]
    password: _Password | None = None
    token: _Token | None = None


class _Scope(msgspec.Struct):
    project: _ProjectRef | None = None
    domain: _Named | None = None
    unscoped: dict[str, Any] | None = None


class _Auth(msgspec.Struct):
    identity: _Identity
    scope: _Scope | Literal["unscoped"] | None = None


class _Body(msgspec.Struct):
    auth: _Auth


def issue_token(
    store: Store, request: object, *, base_url: str, region: str, hours: float, now: int
) -> IssuedToken:
    """Answer `POST /v3/auth/tokens`. `request` is the parsed body, `base_url` what the client used."""
    try:
        auth = msgspec.convert(request, _Body).auth
    except msgspec.ValidationError as error:
        raise Invalid(parameter="auth", why=str(error)) from None
    expires = now + int(hours * 3_600_000)
    method = auth.identity.methods[0] if len(auth.identity.methods) == 1 else ""
    if method == "password" and auth.identity.password is not None:
        user = _by_password(store, auth.identity.password.user)
    elif method == "token" and auth.identity.token is not None:
        # a new scope, not a longer life
        user, expires = _by_token(store, auth.identity.token.id, now)
    else:
        raise Invalid(parameter="auth.identity.methods", why='it must be ["password"] or ["token"]')
    with store.read() as tx:
        project = _project(tx, user, auth.scope)
        roles = _roles(tx, user.id, project)
    scoped_to_domain = isinstance(auth.scope, _Scope) and auth.scope.domain is not None
    text = secrets.token_urlsafe(_BYTES)
    kept = rows.Token(
        user_id=user.id, project_id=project.id if project else None, issued_at=now, expires_at=expires
    )
    with store.note() as tx:
        rows.add_token(tx, sha256_hex(text), kept)
    body = _body(user, project, roles, kept, method)
    if project is not None or scoped_to_domain:
        body["token"]["catalog"] = catalog(base_url, region, project.id if project else None)
    if scoped_to_domain:
        body["token"]["domain"] = {"id": user.domain_id, "name": user.domain_name}
    return IssuedToken(text=text, body=body)


def show_token(
    store: Store, principal: Principal, subject: str | None, *, base_url: str, region: str, now: int
) -> dict[str, Any]:
    """Answer `GET /v3/auth/tokens`: what the token in X-Subject-Token is good for."""
    kept, user = _subject(store, principal, subject, now)
    with store.read() as tx:
        project = rows.project(tx, project_id=kept.project_id) if kept.project_id else None
        roles = _roles(tx, user.id, project)
    body = _body(user, project, roles, kept, "password")
    if project is not None:
        body["token"]["catalog"] = catalog(base_url, region, project.id)
    return body


def revoke_token(store: Store, principal: Principal, subject: str | None, *, now: int) -> None:
    """Answer `DELETE /v3/auth/tokens`: the token in X-Subject-Token is good for nothing any more."""
    _subject(store, principal, subject, now)
    with store.note() as tx:
        rows.remove_token(tx, sha256_hex(subject or ""))


def keystone_time(ms: int) -> str:
    """`2026-11-22T03:00:00.000000Z`, which is how Keystone writes times."""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond:06d}Z"


class NoSuchToken(NotFound):
    """Could not find the token in X-Subject-Token."""


def _by_password(store: Store, given: _UserRef) -> User:
    with store.read() as tx:
        user = None
        if given.id is not None or given.name is not None:
            user = rows.user(tx, user_id=given.id, name=given.name)
        kept = rows.password_hash(tx, user.id) if user is not None else None
    right = is_password(given.password, kept)
    if user is None or not right or not user.enabled or not _in_domain(user, given.domain):
        # for the audit log; the message is the same for all
        raise WrongCredentials(**({"user_id": user.id, "user_name": user.name} if user else {}))
    return user


def _by_token(store: Store, text: str, now: int) -> tuple[User, int]:
    with store.read() as tx:
        kept = rows.token(tx, sha256_hex(text))
        user = rows.user(tx, user_id=kept.user_id) if kept is not None else None
    if kept is None or user is None or kept.expires_at <= now or not user.enabled:
        raise Unauthenticated(why="it has expired, or it was never issued here")
    return user, kept.expires_at


def _in_domain(user: User, given: _Named | None) -> bool:
    if given is None:
        return True
    return given.id in (None, user.domain_id) and given.name in (None, user.domain_name)


def _project(tx: Any, user: User, scope: _Scope | str | None) -> Project | None:
    """The project of a scope. Without a scope: the user's only one, as Keystone's default project."""
    mine = rows.projects_of(tx, user.id)
    if scope is None:
        return mine[0] if len(mine) == 1 else None
    if isinstance(scope, str) or scope.unscoped is not None:
        return None
    if scope.project is None:
        if scope.domain is None or not _in_domain(user, scope.domain):
            raise NoRoleOnScope
        return None
    wanted = scope.project
    if wanted.id is None and wanted.name is None:
        raise Invalid(parameter="auth.scope.project", why="it must have an id or a name")
    for project in mine:
        named = wanted.id in (None, project.id) and wanted.name in (None, project.name)
        if named and _in_domain(user, wanted.domain):
            return project
    raise NoRoleOnScope


def _roles(tx: Connection, user_id: str, project: Project | None) -> tuple[str, ...]:
    return tuple(grant.role for grant in rows.grants_on(tx, user_id, project.id)) if project else ()


def _subject(store: Store, principal: Principal, text: str | None, now: int) -> tuple[rows.Token, User]:
    """The token that a request is about: one's own, or for an administrator anyone's."""
    with store.read() as tx:
        kept = rows.token(tx, sha256_hex(text or ""))
        user = rows.user(tx, user_id=kept.user_id) if kept is not None else None
    allowed = user is not None and (user.id == principal.user_id or "te_admin" in principal.roles)
    if kept is None or user is None or kept.expires_at <= now or not allowed:
        raise NoSuchToken
    return kept, user


def _body(
    user: User, project: Project | None, roles: tuple[str, ...], kept: rows.Token, method: str
) -> dict[str, Any]:
    token: dict[str, Any] = {
        "methods": [method],
        "user": {
            "id": user.id,
            "name": user.name,
            "domain": {"id": user.domain_id, "name": user.domain_name},
            "password_expires_at": None,
        },
        "issued_at": keystone_time(kept.issued_at),
        "expires_at": keystone_time(kept.expires_at),
    }
    if project is not None:
        token["project"] = {
            "id": project.id,
            "name": project.name,
            "domain": {"id": user.domain_id, "name": user.domain_name},
        }
        token["roles"] = [{"id": role, "name": role} for role in roles]
    return {"token": token}
