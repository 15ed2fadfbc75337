"""Accounts that cannot be, and changes that cannot be made of them, are refused and change nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.accounts import Accounts, lets_in
from support.caches import Cache, made, refused
from support.service import Service

SECRET, OTHER = "Acc0unt%pass", "An0ther_pass"
UNKNOWN = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def single(service: Service) -> Iterator[Cache]:
    with made(service, name="acl-refusals") as cache:
        yield cache


@pytest.fixture
def of_single(service: Service, single: Cache) -> Accounts:
    return Accounts(service.sdk_token(), single)


GOOD = {"account_name": "ann", "account_role": "read", "account_password": SECRET}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"account_name": None}, "account_name"),
    "a digit first": ({"account_name": "1ann"}, "account_name"),
    "a blank": ({"account_name": "a b"}, "account_name"),
    "a rule": ({"account_name": "ann\n+@all"}, "account_name"),
    "65 letters": ({"account_name": "a" * 65}, "account_name"),
    "default": ({"account_name": "default"}, "account_name"),
    "ours": ({"account_name": "cacheyard-replication"}, "account_name"),
    "no such role": ({"account_role": "admin"}, "account_role"),
    "no role": ({"account_role": None}, "account_role"),
    "short": ({"account_password": "Short-1"}, "account_password"),
    "long": ({"account_password": "aB3" + "x" * 62}, "account_password"),
    "two kinds": ({"account_password": "lower1234567"}, "account_password"),
    "a colon": ({"account_password": "Colon:12345"}, "account_password"),
    "a line break": ({"account_password": "Broken\n12345"}, "account_password"),
    "the name": ({"account_password": "My-ann-12345"}, "account_password"),
    "the name backwards": (
        {"account_name": "anna1", "account_password": "My-1anna-2345"},
        "account_password",
    ),
    "a long story": ({"description": "x" * 1025}, "description"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_an_account_is_refused_by_the_documented_code(
    of_single: Accounts, single: Cache, case: str
) -> None:
    wrong, parameter = BAD[case]
    body = {name: value for name, value in (GOOD | wrong).items() if value is not None}
    answer = single.http("POST", "/accounts", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4961"), answer.text
    assert parameter in answer.json()["error_msg"]
    assert str(body.get("account_password")) not in answer.text
    assert list(of_single.by_name()) == ["default"]


def test_changes_of_accounts_are_refused_as_their_creation_is(of_single: Accounts, single: Cache) -> None:
    account = of_single.create("ann", "read", SECRET)
    with refused(400, "DCS.4961", "account_name"):
        of_single.create("ann", "write", SECRET)
    for path, body, parameter in (
        ("/role", {"account_role": "admin"}, "account_role"),
        ("/role", {}, "account_role"),
        ("/password/reset", {"new_password": "My-ann-12345"}, "new_password"),
        ("/password/reset", {}, "new_password"),
        ("/password/modify", {"new_password": OTHER}, "old_password"),
        ("/password/modify", {"old_password": SECRET, "new_password": "Colon:12345"}, "new_password"),
        ("", {"description": "x" * 1025}, "description"),
    ):
        answer = single.http("PUT", f"/accounts/{account}{path}", json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4961"), answer.text
        assert parameter in answer.json()["error_msg"]
    for method, path, body in (
        ("PUT", "/role", {"account_role": "read"}),
        ("PUT", "/password/reset", {"new_password": OTHER}),
        ("PUT", "", {"description": "x"}),
        ("DELETE", "", {}),
    ):
        assert single.http(method, f"/accounts/{UNKNOWN}{path}", json=body).status_code == 404
    assert lets_in(single, "ann", SECRET)
    assert of_single.by_name()["ann"]["account_role"] == "read"
