"""Passwords: what may be one, how they are kept, and how they are checked.

Called by `services.identity` (users) and by the services that set an instance's or an account's
password. Only hashes leave this module; no message of it repeats a password.
"""

import hashlib
import hmac
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST, LONGEST = 8, 64  # characters; the API reference, section 5.1.1
SPECIALS = "`~!@#$^&*()-_=+\\|{}:,<.>/?"  # exactly these; clients' tests count on % being refused
# Of accounts; section 5.10.1. No colon: there are clients that can say `name:password` alone.
ACCOUNT_SPECIALS = "`~!@#$%^&*()-_=+|{},<.>/?"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_KINDS = (frozenset(_LOWER), frozenset(_LOWER.upper()), frozenset("0123456789"))
# Generated ones are pasted into shells, URLs and TOML files: only specials that mean nothing there.
_PLAIN = _LOWER + _LOWER.upper() + "0123456789-_."
_GENERATED = 24  # characters: 144 bits, no guessing

# OWASP's minimum for argon2id: 19 MiB, two passes, one lane. One lane, because a check runs in one
# thread; no more than that, because somebody waits for the login (26 ms here; OWASP's cheapest
# equal, 7 MiB and five passes, takes 21) and each one under way holds its memory.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, hash_len=32, salt_len=16)
_nobody = _hasher.hash(secrets.token_hex(16))


def complexity_fault(password: str, specials: str = SPECIALS) -> str | None:
    """Why `password` may not protect an instance; None when it may."""
    kinds = (*_KINDS, frozenset(specials))
    if not SHORTEST <= len(password) <= LONGEST:
        return f"it must be {SHORTEST} to {LONGEST} characters long"
    if not frozenset().union(*kinds).issuperset(password):
        return f"only letters, digits and {specials} are allowed"
    if sum(not kind.isdisjoint(password) for kind in kinds) < 3:
        return "it must have at least three of lower case, upper case, digits and special characters"
    return None


def account_fault(name: str, password: str) -> str | None:
    """Why `password` may not protect the account of that name; None when it may."""
    if (why := complexity_fault(password, ACCOUNT_SPECIALS)) is not None:
        return why
    if name in password or name[::-1] in password:
        return "it must not contain the account's name, forwards or backwards"
    return None


def hash_password(password: str) -> str:
    """The argon2id hash to keep."""
    return _hasher.hash(password)


def is_password(password: str, kept: str | None) -> bool:
    """Whether `password` is the one that was hashed. With nothing kept: no, after the same time."""
    try:
        return _hasher.verify(kept or _nobody, password) and kept is not None
    except (VerificationError, InvalidHashError):
        return False


def sha256_hex(text: str) -> str:
    """SHA-256 in hex: how Redis ACL files keep passwords and the store keeps tokens (both random or long)."""
    return hashlib.sha256(text.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how much of them is."""
    return hmac.compare_digest(one.encode(), other.encode())


def generate_password() -> str:
    """A new password that fits the complexity rule."""
    while True:
        made = "".join(secrets.choice(_PLAIN) for _ in range(_GENERATED))
        # a leading dash looks like an option where it is pasted
        if made[0].isalpha() and complexity_fault(made) is None:
            return made
