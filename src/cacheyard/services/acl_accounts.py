"""Chapter 5.10: the accounts of an instance, which are users of all its servers.

An account is in the instance's row as soon as it is asked for, and the task brings it to the servers
(`domain.instances.tenants`), or the row back to what it was. How an account is follows from that task: while
one has it, it is being created, updated or deleted. `default`, which has no entry of its own, is the
instance's user: its password is the instance's.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import now_ms
from cacheyard.contract.types import (
    AclAccountModifyPasswordBody,
    AclAccountResetPasswordBody,
    AclAccountResp,
    AclAccountRoleModifyBody,
    CreateAclAccountRequestBody,
    CreateAclAccountResponse,
    EmptyAnswer,
    ListAclAccountsResponse,
    ResetAclAccountPassWordResponse,
    UpdateAclAccountPassWordResponse,
    UpdateAclAccountRemarkRequestBody,
    UpdateAclAccountResponse,
)
from cacheyard.domain import lockout, passwords
from cacheyard.domain.accounts import (
    DEFAULT,
    MOST,
    Account,
    AccountRole,
    AccountStatus,
    default_id,
    name_fault,
)
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.ids import new_id
from cacheyard.services import access, work
from cacheyard.services.call import Begun, Call
from cacheyard.store import instances, tasks


def create_acl_account(call: Call[CreateAclAccountRequestBody]) -> Begun[CreateAclAccountResponse]:
    """5.10.1: a further user, who may read or also write."""
    body = call.body
    name = body.account_name or ""
    if (why := name_fault(name)) is not None:
        raise errors.BadAccount(parameter="account_name", why=why)
    account = Account(
        id=new_id(),
        name=name,
        role=_role(body.account_role),
        description=body.description or "",
        created_at=now_ms(),
        **_kept(name, body.account_password, "account_password"),
    )
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.no_password:
            raise errors.PasswordFree
        if any(other.name == name for other in instance.accounts):
            raise errors.BadAccount(parameter="account_name", why=f"there is an account {name} already")
        if len(instance.accounts) >= MOST:
            raise errors.TooManyAccounts(limit=MOST)
        accounts = [*instance.accounts, account]
        task_id = _begin(tx, call, instance, "CreateAcl", account.id, AccountStatus.CREATING, accounts)
    call.house.start_task(task_id)
    answer = CreateAclAccountResponse(
        instance_id=instance.id, account_id=account.id, account_name=name, job_id=task_id
    )
    return Begun(answer, task_id, wait=True)


def list_acl_accounts(call: Call[None]) -> ListAclAccountsResponse:
    """5.10.2: `default`, then the others as they were created; one that is being deleted is still shown."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        task = tasks.get(tx, instance.task_id) if instance.task_id is not None else None
    arguments = task.arguments if task is not None else {}
    at_work: dict[str, str] = arguments.get("account", {})
    shown = {account.id: account for account in instance.accounts}
    if at_work.get("status") == AccountStatus.DELETING:
        before = msgspec.convert(arguments["undo"]["accounts"], list[Account])
        shown |= {account.id: account for account in before if account.id == at_work["id"]}

    def of(account_id: str, name: str, role: AccountRole, description: str) -> AclAccountResp:
        return AclAccountResp(
            account_id=account_id,
            account_name=name,
            account_type=DEFAULT if name == DEFAULT else "normal",
            instance_id=instance.id,
            status=at_work["status"] if at_work.get("id") == account_id else AccountStatus.AVAILABLE,
            account_role=role,
            description=description,
        )

    default = of(default_id(instance.id), DEFAULT, AccountRole.WRITE, "")
    others = (of(one.id, one.name, one.role, one.description) for one in shown.values())
    return ListAclAccountsResponse(accounts=[default, *others])


def update_acl_account_pass_word(
    call: Call[AclAccountModifyPasswordBody],
) -> Begun[UpdateAclAccountPassWordResponse] | UpdateAclAccountPassWordResponse:
    """5.10.3: the old password must be right. A wrong one is an answer with the tries left."""
    if not call.body.old_password:
        raise errors.BadAccount(parameter="old_password", why="it is needed; without it, reset the password")
    task_id, answer = _set_password(call)
    told = UpdateAclAccountPassWordResponse(**answer)
    return told if task_id is None else Begun(told, task_id, wait=True)


def reset_acl_account_pass_word(
    call: Call[AclAccountResetPasswordBody],
) -> Begun[ResetAclAccountPassWordResponse] | ResetAclAccountPassWordResponse:
    """5.10.4: a new password. It unlocks; but an old password, if one is given, must be right."""
    task_id, answer = _set_password(call)
    if task_id is None:
        return ResetAclAccountPassWordResponse(code="0", **answer)
    told = ResetAclAccountPassWordResponse(code="1", **answer | {"message": "The password is reset."})
    return Begun(told, task_id, wait=True)


def update_acl_account(call: Call[AclAccountRoleModifyBody]) -> Begun[UpdateAclAccountResponse]:
    """5.10.5: another role, for connections that are open too."""
    role = _role(call.body.account_role)
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        account = _account(call, instance, "its role is write")
        changed = msgspec.structs.replace(account, role=role)
        task_id = _begin_update(tx, call, instance, "UpdateAcl", changed)
    call.house.start_task(task_id)
    return Begun(UpdateAclAccountResponse(instance_id=instance.id, job_id=task_id), task_id, wait=True)


def delete_acl_account(call: Call[None]) -> Begun[EmptyAnswer]:
    """5.10.6: its connections are closed, and it lets nobody in any more."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        account = _account(call, instance, "it cannot be deleted")
        others = [other for other in instance.accounts if other.id != account.id]
        task_id = _begin(tx, call, instance, "DeleteAcl", account.id, AccountStatus.DELETING, others)
    call.house.start_task(task_id)
    return Begun(EmptyAnswer(), task_id, wait=True)


def update_acl_account_remark(call: Call[UpdateAclAccountRemarkRequestBody]) -> None:
    """5.10.7: no server knows of it, so it is changed at once."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        account = _account(call, instance, "it has no description")
        _keep(tx, instance, msgspec.structs.replace(account, description=call.body.description or ""))


def _role(role: str | None) -> AccountRole:
    if role is None:
        raise errors.BadAccount(parameter="account_role", why="it is missing")
    return AccountRole(role)


def _kept(name: str, password: str | None, parameter: str) -> dict[str, Any]:
    """What is kept of a password (checked here)."""
    if password is None:
        raise errors.BadAccount(parameter=parameter, why="it is missing")
    if (why := passwords.account_fault(name, password)) is not None:
        raise errors.BadAccount(parameter=parameter, why=why)
    return {
        "password_hash": passwords.hash_password(password),
        "password_sha256": passwords.sha256_hex(password),
    }


def _account(call: Call[Any], instance: Instance, why_not_default: str) -> Account:
    """The account of the path."""
    account_id = str(call.parameters["account_id"])
    if account_id == default_id(instance.id):
        raise errors.BadAccount(parameter="account_id", why=f"it is that of default: {why_not_default}")
    for account in instance.accounts:
        if account.id == account_id:
            return account
    raise errors.NoSuchAccount(account_id=account_id)


def _set_password(
    call: Call[AclAccountModifyPasswordBody] | Call[AclAccountResetPasswordBody],
) -> tuple[str | None, dict[str, str]]:
    """What the try comes to, and the task if it was let through: without an old password it is."""
    with call.house.store.read() as tx:
        seen = call.instance(tx)
    old, new = call.body.old_password, call.body.new_password
    if call.parameters["account_id"] == default_id(seen.id):
        secrets = _kept(DEFAULT, new, "new_password") | {"no_password": False}
        return access.change(call, old, secrets) if old else (access.reset(call, secrets), lockout.SUCCESS)
    before = _account(call, seen, "")
    secrets = _kept(before.name, new, "new_password")
    right = not old or passwords.is_password(old, before.password_hash)  # slow: not inside the transaction
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        account = _account(call, instance, "")
        if account.password_hash != before.password_hash:
            raise errors.BusyChangingPassword(status=instance.status)
        unlocked = account if old else msgspec.structs.replace(account, locked_until=None)
        verdict = lockout.judge(unlocked, right=right, now=now_ms())
        counted = msgspec.structs.replace(account, **verdict.counts)
        if not verdict.right:
            _keep(tx, instance, counted)
            return None, verdict.answer
        changed = msgspec.structs.replace(counted, **secrets)
        task_id = _begin_update(tx, call, instance, "ModifyAcl" if old else "ResetAcl", changed)
    call.house.start_task(task_id)
    return task_id, verdict.answer


def _keep(tx: Connection, instance: Instance, changed: Account) -> None:
    """Write one account where it was."""
    instances.change(tx, instance.id, accounts=msgspec.to_builtins(_with(instance, changed)))


def _with(instance: Instance, changed: Account) -> list[Account]:
    return [changed if account.id == changed.id else account for account in instance.accounts]


def _begin_update(tx: Connection, call: Call[Any], instance: Instance, name: str, changed: Account) -> str:
    return _begin(tx, call, instance, name, changed.id, AccountStatus.UPDATING, _with(instance, changed))


def _begin(
    tx: Connection,
    call: Call[Any],
    instance: Instance,
    name: str,
    account_id: str,
    status: AccountStatus,
    accounts: Sequence[Account],
) -> str:
    """The row says at once what is to be; the task brings it to the servers, or back what was."""
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.RECONFIGURE,
        name=name,
        status=Status.RUNNING,
        arguments={
            "undo": {"accounts": msgspec.to_builtins(instance.accounts)},
            "account": {"id": account_id, "status": status},
        },
    )
    instances.change(tx, instance.id, accounts=msgspec.to_builtins(accounts))
    return task_id
