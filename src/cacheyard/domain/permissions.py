"""Who may do what: system roles and custom policies, as patterns over the documented actions.

An action is `service:resource:verb`, e.g. `dcs:instance:create`. `api` asks `allows` with the roles and
policies that a principal has on the project of the request.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

_READ_AROUND = ("vpc:*:get*", "vpc:*:list*", "ecs:*:get*", "ecs:*:list*")  # what choosing a network needs
_READ = ("dcs:*:get*", "dcs:*:list*", *_READ_AROUND)


class Role(msgspec.Struct, frozen=True):
    """A system role's patterns; `*` stands for anything. `but` is what this role leaves out: another may
    give it, so that roles add up."""

    allow: tuple[str, ...]
    but: tuple[str, ...] = ()


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
    "VPC ReadOnlyAccess": Role(_READ_AROUND),
}


# Documented, but no operation of the API takes them: policies may name them.
WITHOUT_OPERATION = frozenset(
    {
        "dcs:auditlog:get",
        "dcs:auditlog:modify",
        "dcs:domainname:rebuild",
        "dcs:histroydomainname:release",
        "dcs:instance:migrateData",
        "dcs:publicdomainname:update",
    }
)


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal"):
    """What a policy allows, or denies whatever else allows it."""

    effect: Literal["Allow", "Deny"]
    action: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=100)]


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal"):
    """A custom policy's document, as the cloud's IAM writes it: who has it is a matter of grants."""

    version: Literal["1.1"]
    statement: Annotated[tuple[Statement, ...], msgspec.Meta(min_length=1, max_length=8)]


class BadPolicy(ValueError):  # noqa: N818 - becomes errors.Invalid at once
    """Why a document is no policy."""


UNSUPPORTED = ("Condition", "Resource", "NotAction", "NotResource", "Principal")
"""What narrows a statement elsewhere. Ignored, it would allow or deny more than was meant."""

_PATTERN = re.compile(r"[\w*-]{1,64}(:[\w*-]{1,64}){2}", re.ASCII)


def parse_policy(document: object, actions: Iterable[str]) -> Policy:
    """The policy that a JSON value is. Raises `BadPolicy`. `actions` are all that there are of this service:
    a pattern for it that fits none is a slip of the pen."""
    given = document.get("Statement") if isinstance(document, dict) else None
    for number, statement in enumerate(given if isinstance(given, list) else []):
        for name in UNSUPPORTED if isinstance(statement, dict) else ():
            if name in statement:
                raise BadPolicy(f"Statement[{number}] has {name}, which is not supported: leave it out")
    try:
        policy = msgspec.convert(document, Policy)
    except msgspec.ValidationError as error:
        raise BadPolicy(str(error)) from None
    known = frozenset(actions)
    for pattern in (each for statement in policy.statement for each in statement.action):
        if not _PATTERN.fullmatch(pattern):
            raise BadPolicy(f"the action {pattern} is not written service:resource:verb")
        if pattern.lower().startswith("dcs:") and not any(_matches(pattern, action) for action in known):
            raise BadPolicy(f"the action {pattern} fits none that there is")
    return policy


def allows(roles: Iterable[str], action: str, policies: Iterable[Policy] = ()) -> bool:
    """Whether any of the roles or policies allows the action and no policy denies it. An unknown role
    allows nothing."""
    verdicts = [verdict for policy in policies if (verdict := _verdict(policy, action)) is not None]
    return all(verdicts) and (bool(verdicts) or any(_role_allows(role, action) for role in roles))


@lru_cache(maxsize=4096)
def _role_allows(name: str, action: str) -> bool:
    role = SYSTEM_ROLES.get(name)
    if role is None or any(_matches(pattern, action) for pattern in role.but):
        return False
    return any(_matches(pattern, action) for pattern in role.allow)


@lru_cache(maxsize=4096)
def _verdict(policy: Policy, action: str) -> bool | None:
    """What a policy says of an action: no before yes; None: nothing."""
    effects = {
        statement.effect
        for statement in policy.statement
        if any(_matches(pattern, action) for pattern in statement.action)
    }
    return None if not effects else "Deny" not in effects


def _matches(pattern: str, action: str) -> bool:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, action, re.IGNORECASE | re.DOTALL) is not None
