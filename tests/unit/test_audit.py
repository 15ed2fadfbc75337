"""What the audit log keeps, and that nothing of it is lost while the database cannot be written."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from support.region import Region, open_region

from cacheyard.api import audit
from cacheyard.contract.operations import OPERATIONS
from cacheyard.contract.types import (
    ChangeInstanceStatusBody,
    CreateInstanceResponse,
    Instances,
    ModifyInstancePasswordBody,
)
from cacheyard.domain.identity import Principal
from cacheyard.errors import Forbidden, NoSuchInstance, NoToken, WrongCredentials
from cacheyard.store import audit as rows
from cacheyard.store.db import Store

NOBODY = Principal(user_id="", user_name="", domain_id="", domain_name="")
ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as made:
        yield made


def entry(operation: str, **more: Any) -> rows.Entry:
    facts: dict[str, Any] = {
        "who": NOBODY,
        "path_values": {},
        "body": None,
        "answer": None,
        "status": 200,
        "refused": None,
        "source": "127.0.0.1",
    }
    return audit.entry("request", OPERATIONS[operation], **(facts | more))


def kept(store: Store) -> list[str]:
    with store.read() as tx:
        return [each.request_id for each in reversed(rows.find(tx, limit=100_000))]


def numbered(number: int) -> rows.Entry:
    return msgspec.structs.replace(entry("list_instances"), request_id=str(number))


# --- Which requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "refused", "tried_out", "wanted"),
    [
        ("create_instance", None, False, True),
        ("create_instance", NoSuchInstance(), False, True),
        ("create_instance", None, True, False),
        ("create_instance", Forbidden(action="x"), True, True),
        ("show_instance", None, False, False),
        ("show_instance", NoSuchInstance(), False, False),
        ("show_instance", Forbidden(action="x"), False, True),
        ("show_instance", NoToken(), False, True),
        ("keystone_create_user_token_by_password", WrongCredentials(), False, True),
        ("keystone_revoke_token", None, False, True),
    ],
)
def test_changes_are_kept_and_who_was_not_let_in(
    region: Region, operation: str, refused: Any, tried_out: bool, wanted: bool
) -> None:
    log, all_of_them = audit.AuditLog(region.store), audit.AuditLog(region.store, reads=True)
    assert log.wants(OPERATIONS[operation], refused, tried_out=tried_out) is wanted
    assert all_of_them.wants(OPERATIONS[operation], refused, tried_out=tried_out)


# --- What of them ---------------------------------------------------------------------------------


def test_ids_of_path_batch_and_answer_are_kept_and_nothing_else_of_them(region: Region) -> None:
    body = ChangeInstanceStatusBody(instances=[ID, "other"], action="restart")
    assert entry("restart_or_flush_instances", body=body).resources == [ID, "other"]
    made = CreateInstanceResponse(instances=[Instances(instance_id=ID, instance_name="cache-1")])
    assert entry("create_instance", answer=made).resources == [ID]
    path = {"project_id": "p", "instance_id": ID, "node_id": "a secret, by mistake\n"}
    change = ModifyInstancePasswordBody(old_password="Old-secret-1", new_password="New-secret-1")
    about = entry("update_password", path_values=path, body=change, who=region.admin)
    assert about.resources == [ID]
    assert about.project_id == region.admin.project_id
    assert b"secret" not in msgspec.json.encode(about)


def test_a_login_that_fails_is_the_users_if_there_is_one() -> None:
    known = WrongCredentials(user_id="u", user_name="ann")
    refused = entry("keystone_create_user_token_by_password", refused=known, status=401)
    assert (refused.user_name, refused.error_code) == ("ann", "DCS.1001")
    assert entry("list_instances", refused=NoToken(), status=401).user_name is None


# --- That it is written ---------------------------------------------------------------------------


def test_entries_are_written_in_their_order_and_all_of_them_at_the_end(region: Region) -> None:
    async def run() -> None:
        log = audit.AuditLog(region.store)
        for number in range(500):
            log.add(numbered(number))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await log.close()

    asyncio.run(run())
    assert kept(region.store) == [str(number) for number in range(500)]


def test_what_cannot_be_written_is_written_later(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PAUSE", 0.01)
    real, failures = rows.add, iter(range(3))

    def add(tx: Any, entries: Any) -> None:
        real(tx, entries)
        if next(failures, None) is not None:
            raise OperationalError("INSERT", {}, Exception("disk full"))

    monkeypatch.setattr(rows, "add", add)

    async def run() -> None:
        log = audit.AuditLog(region.store)
        async with asyncio.timeout(20):
            for number in range(10):
                log.add(numbered(number))
                await asyncio.sleep(0.005)
            while len(kept(region.store)) < 10:
                await asyncio.sleep(0.005)
            await log.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert kept(region.store) == [str(number) for number in range(10)]
    assert [line["event"] for line in logs] == ["audit log not written"] * 3


def test_memory_is_not_filled_while_nothing_can_be_written(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "WAITING", 5)

    async def run() -> None:
        log = audit.AuditLog(region.store)
        for number in range(7):
            log.add(numbered(number))
        await log.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert kept(region.store) == [str(number) for number in range(5)]
    assert [line["event"] for line in logs] == ["audit entry lost"] * 2


def test_old_entries_are_forgotten(region: Region) -> None:
    now = entry("list_instances").at
    with region.store.write() as tx:
        for age in (0.5, 1.5, 200):
            old = entry("list_instances")
            rows.add(tx, [msgspec.structs.replace(old, at=now - int(age * audit.DAY), request_id=str(age))])
    audit.forget(region.store, 1)
    assert kept(region.store) == ["0.5"]
