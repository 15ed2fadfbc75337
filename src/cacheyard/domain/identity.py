"""Whoever sends a request, as every layer knows them.

`services.identity` makes a `Principal` from a token or a signature; `api` checks its roles and hands
it to the services.
"""

from typing import Any

import msgspec

from cacheyard.domain.permissions import Policy


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A user, on a project or (project_id None) on none yet. `roles` and `policies` are those on that
    project, the user's own and those of the user's groups; a policy's name is among the roles too."""

    user_id: str
    user_name: str
    domain_id: str
    domain_name: str
    project_id: str | None = None
    project_name: str | None = None
    roles: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    # Whether the project may still be chosen: yes for a signed request, whose path names it;
    # a token is for the project that it was issued for.
    may_choose: bool = False


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `projects`."""

    id: str
    domain_id: str
    name: str
    description: str
    enabled: bool


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `users` with its domain's name, without the password's hash."""

    id: str
    name: str
    domain_id: str
    domain_name: str
    enabled: bool
    created_at: int


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `access_keys` without the secret."""

    access: str
    user_id: str
    user_name: str
    enabled: bool
    created_at: int


class NewAccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair that was just made: the only time the secret is shown."""

    access: str
    secret: str

    def __repr__(self) -> str:
        return f"NewAccessKey(access={self.access!r}, secret=…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("access", self.access)]
