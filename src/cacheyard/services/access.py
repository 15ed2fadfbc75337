"""Chapters 5.2.3 and 5.2.4: the password of an instance, changed by who knows it or reset by who may.

The request waits until the servers take the new password; five wrong old ones lock the change for
five minutes, also across restarts.
"""

from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import now_ms
from cacheyard.contract.types import (
    ModifyInstancePasswordBody,
    ResetInstancePasswordBody,
    ResetPasswordResponse,
    UpdatePasswordResponse,
)
from cacheyard.domain import passwords
from cacheyard.domain.instances import LOCK_AFTER, LOCK_MINUTES, Instance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import users, work
from cacheyard.services.call import Begun, Call
from cacheyard.store import instances

_MINUTE = 60_000  # ms
_KEPT = ("no_password", "password_hash", "password_sha256")


def update_password(
    call: Call[ModifyInstancePasswordBody],
) -> Begun[UpdatePasswordResponse] | UpdatePasswordResponse:
    """5.2.3: the old password must be right. A wrong one is an answer with the tries left."""
    old, new = call.body.old_password or "", call.body.new_password
    secrets = users.new_password(new, free=False, parameter="new_password")
    with call.house.store.read() as tx:
        seen = call.instance(tx)
    if seen.no_password:
        raise errors.PasswordFree
    right = passwords.is_password(old, seen.password_hash)  # slow on purpose: not inside the transaction
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.password_hash != seen.password_hash:
            raise errors.BusyChangingPassword(status=instance.status)
        if (left := _lock_left(instance)) > 0:
            return _answer("locked", "Too many wrong passwords; the change is locked.", tries=0, left=left)
        if not right:
            return _count_wrong(tx, instance)
        task_id = _begin(tx, call, instance, secrets)
    call.house.start_task(task_id)
    answer = _answer("success", "The password is changed.", tries=LOCK_AFTER)
    return Begun(answer, task_id, wait=True)


def reset_password(call: Call[ResetInstancePasswordBody]) -> Begun[ResetPasswordResponse]:
    """5.2.4: a new password, or none from now on (`no_password_access`). Unlocks."""
    secrets = users.new_password(
        call.body.new_password, free=bool(call.body.no_password_access), parameter="new_password"
    )
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        task_id = _begin(tx, call, instance, secrets)
    call.house.start_task(task_id)
    answer = ResetPasswordResponse(
        result="success",
        message="The password is reset.",
        retry_times_left=str(LOCK_AFTER),
        lock_time="0",
        lock_time_left="0",
    )
    return Begun(answer, task_id, wait=True)


def _begin(tx: Connection, call: Call[Any], instance: Instance, secrets: dict[str, Any]) -> str:
    """The new password is in the row at once; the task brings it to the servers, or the old one back."""
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.RECONFIGURE,
        name="modify",
        status=Status.RUNNING,
        arguments={"undo": {name: getattr(instance, name) for name in _KEPT}},
    )
    instances.change(tx, instance.id, wrong_passwords=0, locked_until=None, **secrets)
    return task_id


def _lock_left(instance: Instance) -> int:
    """Whole minutes that the lock still holds; 0: there is none."""
    left = (instance.locked_until or 0) - now_ms()
    return 0 if left <= 0 else -(-left // _MINUTE)


def _count_wrong(tx: Connection, instance: Instance) -> UpdatePasswordResponse:
    wrong = instance.wrong_passwords + 1
    if wrong >= LOCK_AFTER:
        instances.change(tx, instance.id, wrong_passwords=0, locked_until=now_ms() + LOCK_MINUTES * _MINUTE)
        return _answer(
            "locked", "Too many wrong passwords; the change is locked.", tries=0, left=LOCK_MINUTES
        )
    instances.change(tx, instance.id, wrong_passwords=wrong)
    return _answer("passwordFailed", "The old password is wrong.", tries=LOCK_AFTER - wrong)


def _answer(result: str, message: str, *, tries: int, left: int = 0) -> UpdatePasswordResponse:
    """Minutes and tries as text, as clients expect them."""
    return UpdatePasswordResponse(
        result=result,
        message=message,
        retry_times_left=str(tries),
        lock_time=str(LOCK_MINUTES if left else 0),
        lock_time_left=str(left),
    )
