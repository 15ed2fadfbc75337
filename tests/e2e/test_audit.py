"""The audit log: what changed something and who was not let in, without a secret, for as long as wanted."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from support.caches import PASSWORD, SINGLE, Cache, body_for, made
from support.service import Service
from support.waiting import until

UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def own() -> Iterator[Service]:
    """A service whose audit log has what these tests do, and no more."""
    with Service() as running:
        yield running


def audit(service: Service, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(service.command("audit", "--json", "--limit", "1000", *words))
    return found


def entry_of(service: Service, answer: httpx.Response) -> dict[str, Any]:
    """The entry of a request, which is written a moment after its answer."""
    request_id = answer.headers["X-Request-Id"]

    def there() -> list[Any]:
        with closing(sqlite3.connect(service.data / "cacheyard.sqlite", timeout=30)) as database:
            return database.execute("SELECT id FROM audit WHERE request_id = ?", (request_id,)).fetchall()

    assert len(until(there, seconds=20, what="the request to be in the audit log")) == 1
    [found] = [entry for entry in audit(service) if entry["request_id"] == request_id]
    return found


def test_a_change_is_kept_with_who_when_from_where_and_its_result(own: Service) -> None:
    before = time.time() * 1000
    created = own.http("POST", "/v2/{p}/instances", json=body_for(own))
    cache = Cache(own, created.json()["instances"][0]["instance_id"])
    facts = own.facts
    shown = entry_of(own, created)
    assert shown.pop("at") >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before / 1000))
    assert shown == {
        "user_name": facts.user_name,
        "operation": "create_instance",
        "status": 200,
        "error_code": None,
        "resources": [cache.id],
        "source": "127.0.0.1",
        "action": "dcs:instance:create",
        "project_id": facts.project_id,
        "request_id": created.headers["X-Request-Id"],
        "user_id": facts.user_id,
    }
    cache.until_running()
    batch = cache.act("restart")
    assert entry_of(own, batch)["resources"] == [cache.id]
    cache.until_running()
    refused = cache.http("PUT", "/password", json={"old_password": "Wrong-pass-1", "new_password": "short"})
    assert refused.status_code == 400
    kept = entry_of(own, refused)
    assert (kept["status"], kept["error_code"]) == (400, refused.json()["error_code"])
    deleted = cache.http("DELETE")
    cache.until_gone()
    assert entry_of(own, deleted)["status"] == 204
    about = [entry["operation"] for entry in audit(own, "--instance", cache.id)]
    assert about == [
        "create_instance",
        "restart_or_flush_instances",
        "update_password",
        "delete_single_instance",
    ]


def test_who_is_not_let_in_is_kept_as_far_as_it_is_known(own: Service) -> None:
    secret = json.loads(own.command("user", "add", "audited", "--json"))["password"]
    own.command("role", "grant", "audited", own.facts.region, "DCS ReadOnlyAccess")
    token = own.new_token("audited", secret, own.facts.project_id)
    forbidden = own.http("DELETE", f"/v2/{{p}}/instances/{UNKNOWN}", token=token)
    kept = entry_of(own, forbidden)
    assert (kept["user_name"], kept["status"], kept["error_code"]) == ("audited", 403, "DCS.2007")
    assert kept["resources"] == [UNKNOWN]
    allowed = own.http("GET", "/v2/{p}/instances", token=token)
    nobody = own.http("GET", "/v2/{p}/instances", token="no-such-token")
    kept = entry_of(own, nobody)
    assert (kept["user_name"], kept["status"], kept["error_code"]) == (None, 401, "DCS.1001")
    elsewhere = own.http("GET", "/v2/somewhere/instances", token=token)
    kept = entry_of(own, elsewhere)
    assert (kept["user_name"], kept["error_code"]) == ("audited", "DCS.1004")
    user = {"name": "audited", "password": "Wrong-pass-1", "domain": {"name": own.facts.domain_name}}
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}
    wrong = own.http("POST", "/v3/auth/tokens", json=body, token="")
    assert entry_of(own, wrong)["user_name"] == "audited"
    user["name"] = "Secret-typed-as-name-1"
    stranger = own.http("POST", "/v3/auth/tokens", json=body, token="")
    assert entry_of(own, stranger)["user_name"] is None
    user["name"], user["password"] = "audited", secret
    entered = own.http("POST", "/v3/auth/tokens", json=body, token="")
    kept = entry_of(own, entered)
    assert (kept["user_name"], kept["status"], kept["resources"]) == ("audited", 201, [])
    own.command("user", "delete", "audited")
    theirs = audit(own, "--user", "audited")
    assert [entry["status"] for entry in theirs] == [201, 403, 401, 401, 201]
    assert allowed.headers["X-Request-Id"] not in {entry["request_id"] for entry in audit(own)}
    failed = audit(own, "--user", "audited", "--failed", "--since", "1h")
    assert [entry["status"] for entry in failed] == [403, 401, 401]
    assert audit(own, "--since", "2100-01-01T00:00") == []
    shown = own.command("audit", "--user", "audited", "--failed")
    assert "DCS.2007" in shown
    assert "delete_single_instance" in shown


def test_no_secret_is_in_it(own: Service) -> None:
    with made(own, name="secretive") as cache:
        new = "Another-pass-2"
        changed = cache.http("PUT", "/password", json={"old_password": PASSWORD, "new_password": new})
        assert changed.status_code == 200
        token = own.new_token(own.facts.user_name, own.facts.password, own.facts.project_id)
        own.http("DELETE", "/v3/auth/tokens", headers={"X-Subject-Token": token})
        last = own.http("DELETE", f"/v2/{{p}}/instances/{UNKNOWN}", token="not-a-token-but-secret")
        entry_of(own, last)
        kept = json.dumps(audit(own))
        for secret in (PASSWORD, new, own.facts.password, token, own.token(), "not-a-token-but-secret"):
            assert secret not in kept


def test_a_change_that_was_only_tried_out_is_no_change(own: Service) -> None:
    tried = own.http("POST", "/v2/{p}/instances", json=body_for(own), headers={"X-Dry-Run": "true"})
    if tried.headers.get("X-Dry-Run") != "true":
        pytest.skip("nothing can be tried out")
    last = own.http("DELETE", f"/v2/{{p}}/instances/{UNKNOWN}")
    entry_of(own, last)
    assert tried.headers["X-Request-Id"] not in {entry["request_id"] for entry in audit(own)}


def test_entries_outlive_the_service_reads_are_kept_if_wanted_and_old_ones_go(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service(CACHEYARD_AUDIT_READS="true")
    body = body_for(service, spec_code=f"{SINGLE}-none")
    answers = [service.http("POST", "/v2/{p}/instances", json=body) for _ in range(20)]
    read = service.http("GET", "/v2/{p}/instances")
    service.restart(CACHEYARD_AUDIT_DAYS="1")
    kept = {entry["request_id"]: entry["operation"] for entry in audit(service)}
    assert all(answer.headers["X-Request-Id"] in kept for answer in answers), "stopped, it loses nothing"
    assert kept[read.headers["X-Request-Id"]] == "list_instances"
    yesterday = int(time.time() * 1000) - 25 * 3_600_000
    with closing(sqlite3.connect(service.data / "cacheyard.sqlite", timeout=30)) as database, database:
        database.execute(
            "UPDATE audit SET at = ? WHERE request_id = ?", (yesterday, read.headers["X-Request-Id"])
        )
    service.restart()
    until(lambda: len(audit(service)) == len(kept) - 1, seconds=20, what="the old entry to be forgotten")
    assert read.headers["X-Request-Id"] not in {entry["request_id"] for entry in audit(service)}
