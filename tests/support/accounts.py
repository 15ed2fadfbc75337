"""Accounts of instances in tests: made and changed by the official client, looked at through Redis."""

from typing import Any

import redis
from huaweicloudsdkdcs import v2 as dcs
from support.caches import Cache
from support.inside import inside

# How servers refuse, how they do within scripts, and how proxies do.
REFUSED = (
    "permission",
    "can't run",
    "not allowed",
    "unknown command",
    "unknown subcommand",
    "support disabled",
)


class Accounts:
    """Those of one instance."""

    def __init__(self, sdk: Any, cache: Cache) -> None:
        self.sdk, self.cache = sdk, cache

    def create(self, name: str, role: str, password: str, **more: Any) -> str:
        """The id of a new one."""
        body = dcs.CreateAclAccountRequestBody(
            account_name=name, account_role=role, account_password=password, **more
        )
        answer = self.sdk.create_acl_account(
            dcs.CreateAclAccountRequest(instance_id=self.cache.id, body=body)
        )
        found = self.by_name()[name]
        assert found["status"] == "AVAILABLE"
        assert answer is not None
        return str(found["account_id"])

    def by_name(self) -> dict[str, dict[str, Any]]:
        """All as the API lists them."""
        answer = self.sdk.list_acl_accounts(dcs.ListAclAccountsRequest(instance_id=self.cache.id))
        return {account.account_name: account.to_dict() for account in answer.accounts}

    def set_role(self, account_id: str, role: str) -> Any:
        body = dcs.AclAccountRoleModifyBody(account_role=role)
        return self.sdk.update_acl_account(
            dcs.UpdateAclAccountRequest(account_id=account_id, instance_id=self.cache.id, body=body)
        )

    def describe(self, account_id: str, description: str) -> Any:
        body = dcs.UpdateAclAccountRemarkRequestBody(description=description)
        request = dcs.UpdateAclAccountRemarkRequest(
            account_id=account_id, instance_id=self.cache.id, body=body
        )
        return self.sdk.update_acl_account_remark(request)

    def modify(self, account_id: str, old: str | None, new: str) -> Any:
        body = dcs.AclAccountModifyPasswordBody(old_password=old, new_password=new)
        request = dcs.UpdateAclAccountPassWordRequest(
            account_id=account_id, instance_id=self.cache.id, body=body
        )
        return self.sdk.update_acl_account_pass_word(request)

    def reset(self, account_id: str, new: str, old: str | None = None) -> Any:
        body = dcs.AclAccountResetPasswordBody(old_password=old, new_password=new)
        request = dcs.ResetAclAccountPassWordRequest(
            account_id=account_id, instance_id=self.cache.id, body=body
        )
        return self.sdk.reset_acl_account_pass_word(request)

    def delete(self, account_id: str) -> Any:
        return self.sdk.delete_acl_account(
            dcs.DeleteAclAccountRequest(account_id=account_id, instance_id=self.cache.id)
        )


def places(cache: Cache) -> list[dict[str, Any]]:
    """Where each of an instance's servers listens, those behind proxies too."""
    with inside(cache) as known:
        return [{"host": node.ip, "port": node.port} for node in known.nodes]


def lets_in(cache: Cache, name: str | None, password: str | None, **where: Any) -> bool:
    """Whether a new connection of that account may do anything; of none, with a password alone."""
    try:
        with cache.client(password, username=name, **where) as link:
            return bool(link.ping())
    except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
        return False


def tell(link: "redis.Redis", *words: Any) -> Any:
    """The answer of the server as it is, by the connection that the client uses again."""
    connection = link.connection or link.connection_pool.get_connection()
    try:
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        return connection.read_response()
    finally:
        if link.connection is None:
            link.connection_pool.release(connection)


def refusal(link: "redis.Redis", *words: Any) -> str | None:
    """Why an account may not say that; None: it may, whatever else the server says to it."""
    try:
        tell(link, *words)
    except redis.exceptions.NoPermissionError as error:
        return str(error)
    except redis.ResponseError as error:
        told = str(error).lower()
        return told if any(sign in told for sign in REFUSED) else None
    return None
