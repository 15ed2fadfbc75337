"""The passwords of an instance's users, as they are given and as they are kept."""

from typing import Any

from cacheyard import errors
from cacheyard.domain import passwords


def new_password(password: str | None, *, free: bool, parameter: str) -> dict[str, Any]:
    """The columns that keep a new password (checked here), or that say there is none."""
    if free:
        if password:
            raise errors.PasswordUnwanted(parameter=parameter, why="no_password_access is true")
        return {"no_password": True, "password_hash": None, "password_sha256": None}
    if not password:
        raise errors.PasswordMissing(
            parameter=parameter, why="it is needed unless no_password_access is true"
        )
    if (why := passwords.complexity_fault(password)) is not None:
        raise errors.BadPassword(parameter=parameter, why=why)
    return {
        "no_password": False,
        "password_hash": passwords.hash_password(password),
        "password_sha256": passwords.sha256_hex(password),
    }
