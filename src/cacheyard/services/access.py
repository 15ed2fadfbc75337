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
from cacheyard.domain import lockout, passwords
from cacheyard.domain.accounts import AccountStatus, default_id
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import users, work
from cacheyard.services.call import Begun, Call
from cacheyard.store import instances

_KEPT = ("no_password", "password_hash", "password_sha256")


def update_password(
    call: Call[ModifyInstancePasswordBody],
) -> Begun[UpdatePasswordResponse] | UpdatePasswordResponse:
    """5.2.3: the old password must be right. A wrong one is an answer with the tries left."""
    secrets = users.new_password(call.body.new_password, free=False, parameter="new_password")
    task_id, answer = change(call, call.body.old_password or "", secrets)
    told = UpdatePasswordResponse(**answer)
    return told if task_id is None else Begun(told, task_id, wait=True)


def reset_password(call: Call[ResetInstancePasswordBody]) -> Begun[ResetPasswordResponse]:
    """5.2.4: a new password, or none from now on (`no_password_access`). Unlocks."""
    secrets = users.new_password(
        call.body.new_password, free=bool(call.body.no_password_access), parameter="new_password"
    )
    answer = ResetPasswordResponse(**lockout.SUCCESS | {"message": "The password is reset."})
    return Begun(answer, reset(call, secrets), wait=True)


def change(call: Call[Any], old: str, secrets: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    """What the try comes to, and the task if it was let through. `secrets`: of `users.new_password`."""
    with call.house.store.read() as tx:
        seen = call.instance(tx)
    if seen.no_password:
        raise errors.PasswordFree
    right = passwords.is_password(old, seen.password_hash)  # slow on purpose: not inside the transaction
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.password_hash != seen.password_hash:
            raise errors.BusyChangingPassword(status=instance.status)
        verdict = lockout.judge(instance, right=right, now=now_ms())
        if not verdict.right:
            instances.change(tx, instance.id, **verdict.counts)
            return None, verdict.answer
        task_id = _begin(tx, call, instance, secrets)
    call.house.start_task(task_id)
    return task_id, verdict.answer


def reset(call: Call[Any], secrets: dict[str, Any]) -> str:
    """The task that brings another password to the servers, whatever the old one."""
    with call.house.store.write() as tx:
        task_id = _begin(tx, call, call.instance(tx), secrets)
    call.house.start_task(task_id)
    return task_id


def _begin(tx: Connection, call: Call[Any], instance: Instance, secrets: dict[str, Any]) -> str:
    """The new password is in the row at once; the task brings it to the servers, or the old one back."""
    if secrets["no_password"] and (instance.public_access is not None or instance.ssl):
        why = "TLS is on" if instance.ssl else "public access is on"
        raise errors.Invalid(parameter="no_password_access", why=why)
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.RECONFIGURE,
        name="modify",
        status=Status.RUNNING,
        arguments={
            "undo": {name: getattr(instance, name) for name in _KEPT},
            "account": {"id": default_id(instance.id), "status": AccountStatus.UPDATING},
        },
    )
    instances.change(tx, instance.id, wrong_passwords=0, locked_until=None, **secrets)
    return task_id
