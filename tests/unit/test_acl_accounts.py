"""What the services decide about accounts, and what becomes of them when a server does not take a change."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.region import Region, open_region

from cacheyard import errors
from cacheyard.contract.types import (
    AclAccountResp,
    AclAccountRoleModifyBody,
    CreateAclAccountRequestBody,
    UpdateAclAccountRemarkRequestBody,
)
from cacheyard.domain.accounts import Account
from cacheyard.domain.statuses import Status
from cacheyard.services import acl_accounts
from cacheyard.services.call import Begun
from cacheyard.store import instances, nodes, tasks
from cacheyard.tasks import reconfigure
from cacheyard.tasks.engine import Work
from cacheyard.tasks.settling import Settling
from cacheyard.tasks.tools import Tools


class Settled(Settling):
    """Agents that are done at once."""

    async def settled(self, *_: object, **__: object) -> None:
        return


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as opened:
        opened.host()
        yield opened


@pytest.fixture
def instance_id(region: Region) -> str:
    """Of a master/standby instance with a password."""
    return region.running("redis.ha.xu1.tiny.r2.128", az_codes=region.first.az_codes[:1])


def create(region: Region, instance_id: str, name: str) -> str:
    """The id of the task."""
    body = CreateAclAccountRequestBody(account_name=name, account_role="read", account_password="Good-pass.1")
    return acl_accounts.create_acl_account(region.call(body, instance_id=instance_id)).task_id


def kept(region: Region, instance_id: str) -> list[Account]:
    with region.store.read() as tx:
        found = instances.get(tx, instance_id)
    assert found is not None
    return found.accounts


def shown(region: Region, instance_id: str) -> dict[str, AclAccountResp]:
    listed = acl_accounts.list_acl_accounts(region.call(instance_id=instance_id)).accounts
    assert listed is not None
    return {str(account.account_name): account for account in listed}


def work(region: Region, task_id: str) -> Work:
    tools = Tools(region.store, region.sealer)
    tools.settling = Settled(region.store)
    with region.store.read() as tx:
        task = tasks.get(tx, task_id)
    assert task is not None
    return Work(task, tools)


def users(region: Region, instance_id: str) -> set[tuple[str, ...]]:
    """Names of the users that the rows want each server to have."""
    with region.store.read() as tx:
        there = nodes.of_instance(tx, instance_id)
    return {tuple(user.name for user in node.settings.users) for node in there}


def test_there_can_be_eighteen_accounts(region: Region, instance_id: str) -> None:
    for number in range(18):
        create(region, instance_id, f"user-{number}")
        region.free(instance_id)
    with pytest.raises(errors.TooManyAccounts, match="18"):
        create(region, instance_id, "one-more")
    assert len(kept(region, instance_id)) == 18


def test_one_change_at_a_time(region: Region, instance_id: str) -> None:
    create(region, instance_id, "ann")
    with pytest.raises(errors.BusyConfiguring):
        create(region, instance_id, "bob")
    assert [account.name for account in kept(region, instance_id)] == ["ann"]


def test_a_status_follows_from_the_task_that_has_the_account(region: Region, instance_id: str) -> None:
    create(region, instance_id, "ann")
    assert {name: one.status for name, one in shown(region, instance_id).items()} == {
        "default": "AVAILABLE",
        "ann": "CREATING",
    }
    region.free(instance_id)
    account_id = shown(region, instance_id)["ann"].account_id
    call: Any = region.call(instance_id=instance_id, account_id=account_id)
    acl_accounts.delete_acl_account(call)
    assert kept(region, instance_id) == []
    assert shown(region, instance_id)["ann"].status == "DELETING"
    region.free(instance_id)
    assert list(shown(region, instance_id)) == ["default"]


def test_a_change_that_a_server_does_not_take_is_undone_on_all_however_often(
    region: Region, instance_id: str
) -> None:
    create(region, instance_id, "ann")
    region.free(instance_id)
    task_id = create(region, instance_id, "bob")
    asyncio.run(reconfigure.configure_nodes(work(region, task_id)))
    assert users(region, instance_id) == {("default", "ann", "bob")}
    remark = UpdateAclAccountRemarkRequestBody(description="said meanwhile")
    ann = shown(region, instance_id)["ann"].account_id
    acl_accounts.update_acl_account_remark(region.call(remark, instance_id=instance_id, account_id=ann))
    for _ in range(2):
        asyncio.run(reconfigure.undo(work(region, task_id)))
        assert users(region, instance_id) == {("default", "ann")}
        found = kept(region, instance_id)
        assert [(one.name, one.description) for one in found] == [("ann", "said meanwhile")]
    with region.store.read() as tx:
        after = instances.get(tx, instance_id)
    assert after is not None
    assert (after.task_id, after.status) == (None, Status.RUNNING)


def test_a_role_is_changed_at_all_servers(region: Region, instance_id: str) -> None:
    create(region, instance_id, "ann")
    region.free(instance_id)
    ann = shown(region, instance_id)["ann"].account_id
    body = AclAccountRoleModifyBody(account_role="write")
    begun = acl_accounts.update_acl_account(region.call(body, instance_id=instance_id, account_id=ann))
    assert isinstance(begun, Begun)
    asyncio.run(reconfigure.configure_nodes(work(region, begun.task_id)))
    with region.store.read() as tx:
        there = nodes.of_instance(tx, instance_id)
    rules = {user.rules for node in there for user in node.settings.users}
    assert len(there) == 2
    assert len(rules) == 1  # those of default
