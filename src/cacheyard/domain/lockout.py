"""Wrong passwords: five lock the change of an instance's or an account's password for five minutes.

The counts are columns, so a restart forgives nobody. What is answered is minutes and tries as text, as
clients expect them.
"""

from typing import NamedTuple, Protocol

LOCK_AFTER = 5  # wrong passwords
LOCK_MINUTES = 5
_MINUTE = 60_000  # ms


class Lockable(Protocol):
    """What has a password that somebody who knows it may change."""

    @property
    def wrong_passwords(self) -> int: ...
    @property
    def locked_until(self) -> int | None: ...


class Verdict(NamedTuple):
    """What a try comes to."""

    right: bool
    counts: dict[str, int | None]  # from now on
    answer: dict[str, str]


SUCCESS = {
    "result": "success",
    "message": "The password is changed.",
    "retry_times_left": str(LOCK_AFTER),
    "lock_time": "0",
    "lock_time_left": "0",
}


def judge(kept: Lockable, *, right: bool, now: int) -> Verdict:
    """Whether a try with the right or a wrong password is let through at that moment (epoch milliseconds)."""
    left = (kept.locked_until or 0) - now
    if left > 0:
        counts = {"wrong_passwords": kept.wrong_passwords, "locked_until": kept.locked_until}
        return Verdict(False, counts, _locked(-(-left // _MINUTE)))
    if right:
        return Verdict(True, {"wrong_passwords": 0, "locked_until": None}, SUCCESS)
    wrong = kept.wrong_passwords + 1
    if wrong >= LOCK_AFTER:
        counts = {"wrong_passwords": 0, "locked_until": now + LOCK_MINUTES * _MINUTE}
        return Verdict(False, counts, _locked(LOCK_MINUTES))
    answer = SUCCESS | {
        "result": "passwordFailed",
        "message": "The old password is wrong.",
        "retry_times_left": str(LOCK_AFTER - wrong),
    }
    return Verdict(False, {"wrong_passwords": wrong, "locked_until": None}, answer)


def _locked(minutes: int) -> dict[str, str]:
    return {
        "result": "locked",
        "message": "Too many wrong passwords; the change is locked.",
        "retry_times_left": "0",
        "lock_time": str(LOCK_MINUTES),
        "lock_time_left": str(minutes),
    }
