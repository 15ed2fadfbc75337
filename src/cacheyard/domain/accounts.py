"""A user of an instance's servers that its tenant makes; `default` is there with the instance."""

import re
from collections.abc import Iterable
from enum import StrEnum
from uuid import UUID, uuid5

import msgspec

MOST = 18  # that an instance may have besides `default`; the user guide, "Managing users"
DEFAULT = "default"
OURS = "cacheyard"  # names of our own users at the servers begin with it
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class AccountRole(StrEnum):
    """What an account may do, as the API spells it."""

    READ = "read"
    WRITE = "write"


class AccountStatus(StrEnum):
    """How an account is, as the API spells it. One whose creation failed is not there."""

    CREATING = "CREATING"
    AVAILABLE = "AVAILABLE"
    UPDATING = "UPDATING"
    DELETING = "DELETING"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One of `instances.accounts`."""

    id: str
    name: str
    role: AccountRole
    description: str = ""
    password_hash: str  # argon2, for checking
    password_sha256: str  # what Redis ACL files want
    wrong_passwords: int = 0
    locked_until: int | None = None
    created_at: int


def default_id(instance_id: str) -> str:
    """The id of an instance's `default`, of which there is no row."""
    return str(uuid5(UUID(instance_id), DEFAULT))


def name_fault(name: str) -> str | None:
    """Why no account may be called that; None: it may."""
    if not _NAME.fullmatch(name):
        return "it must have 1 to 64 letters, digits, - or _, a letter first"
    if name.lower() == DEFAULT or name.lower().startswith(OURS):
        return f"{name} is reserved"
    return None


def as_before(now: Iterable[Account], before: Iterable[Account]) -> list[Account]:
    """The accounts of `before`, but for what is changed without a task: descriptions and counted tries."""
    there = {account.id: account for account in now}
    return [
        msgspec.structs.replace(
            account,
            description=there[account.id].description,
            wrong_passwords=there[account.id].wrong_passwords,
            locked_until=there[account.id].locked_until,
        )
        if account.id in there
        else account
        for account in before
    ]
