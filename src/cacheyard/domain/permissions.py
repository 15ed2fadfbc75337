"""Who may do what: the system roles, as patterns over the documented actions.

An action is `service:resource:verb`, e.g. `dcs:instance:create`. `api` asks `allows` with the roles
that a principal has on the project of the request.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec

_READ_AROUND = ("vpc:*:get*", "vpc:*:list*", "ecs:*:get*", "ecs:*:list*")  # what choosing a network needs
_READ = ("dcs:*:get*", "dcs:*:list*", *_READ_AROUND)


class Role(msgspec.Struct, frozen=True):
    """A role's patterns; `*` stands for anything. What is denied stays denied whatever is allowed."""

    allow: tuple[str, ...]
    deny: tuple[str, ...] = ()


_ALL = Role(("*",))
_DCS = Role(("dcs:*", *_READ_AROUND))

# By the names of the cloud's user guide. `admin` is what Keystone clients know.
SYSTEM_ROLES: dict[str, Role] = {
    "admin": _ALL,
    "te_admin": _ALL,
    "Tenant Administrator": Role(("*",), ("iam:*",)),
    "Tenant Guest": Role(_READ),
    "DCS Administrator": _DCS,
    "DCS FullAccess": _DCS,
    "DCS UserAccess": Role(
        ("dcs:*", *_READ_AROUND),
        ("dcs:instance:create", "dcs:instance:delete", "dcs:instance:modify", "dcs:instance:scale"),
    ),
    "DCS ReadOnlyAccess": Role(_READ),
    "VPC FullAccess": Role(("vpc:*", "ecs:*:get*", "ecs:*:list*")),
}


def allows(roles: Iterable[str], action: str) -> bool:
    """Whether any of the roles allows the action. An unknown role allows nothing."""
    return any(_role_allows(role, action) for role in roles)


@lru_cache(maxsize=4096)
def _role_allows(name: str, action: str) -> bool:
    role = SYSTEM_ROLES.get(name)
    if role is None or any(_matches(pattern, action) for pattern in role.deny):
        return False
    return any(_matches(pattern, action) for pattern in role.allow)


def _matches(pattern: str, action: str) -> bool:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, action, re.IGNORECASE | re.DOTALL) is not None
