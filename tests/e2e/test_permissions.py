"""Every operation takes exactly its action: who has no other may use it, who has all others may not.

From the contract, also for what is not built: rights are looked at before anything else is.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from support.service import Service

from cacheyard.api import refusals
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.errors import Forbidden
from cacheyard.services import accounts, policies
from cacheyard.store.db import Store

UNKNOWN = "00000000-0000-0000-0000-000000000000"
WITH_ACTION = [operation for operation in OPERATIONS.values() if operation.action is not None]


class Users:
    """Two users whose rights a test chooses: one has an action alone, the other all actions but that."""

    def __init__(self, service: Service, store: Store) -> None:
        self.service, self._store = service, store
        self.has, self.lacks = self._user("has"), self._user("lacks")

    def _user(self, name: str) -> str:
        policies.add_policy(self._store, name, _document(("Allow", "dcs:instance:get")))
        _, password = accounts.add_user(self._store, name)
        accounts.grant(self._store, name, self.service.facts.region, name)
        return self.service.new_token(name, password, self.service.facts.project_id)

    def are_about(self, action: str) -> None:
        policies.change_policy(self._store, "has", _document(("Allow", action)))
        policies.change_policy(self._store, "lacks", _document(("Allow", "*:*:*"), ("Deny", action)))


def _document(*effects: tuple[str, str]) -> dict[str, Any]:
    statements = [{"Effect": effect, "Action": [action]} for effect, action in effects]
    return {"Version": "1.1", "Statement": statements}


@pytest.fixture(scope="module")
def users(service: Service) -> Iterator[Users]:
    with closing(Store(service.data / "cacheyard.sqlite")) as store:
        made = Users(service, store)
        try:
            yield made
        finally:
            for name in ("has", "lacks"):
                accounts.delete_user(store, name)
                policies.delete_policy(store, name)


def path_of(service: Service, operation: Operation) -> str:
    """The operation's path with ids that never were."""
    values = {p.name: UNKNOWN for p in operation.parameters if p.where == "path"}
    return operation.path.format(**{**values, "project_id": service.facts.project_id})


@pytest.mark.parametrize("operation", WITH_ACTION, ids=lambda operation: operation.id)
def test_an_operation_takes_exactly_its_action(service: Service, users: Users, operation: Operation) -> None:
    assert operation.action is not None
    users.are_about(operation.action)
    path = path_of(service, operation)
    refused = service.http(operation.method, path, token=users.lacks)
    due = refusals.body(Forbidden(action=operation.action), operation.family)
    assert (refused.status_code, refused.json()) == (403, due)
    allowed = service.http(operation.method, path, token=users.has)
    assert allowed.status_code not in (401, 403), allowed.text


def test_what_takes_no_action_is_what_tells_users_about_themselves() -> None:
    without = {operation.id for operation in OPERATIONS.values() if operation.action is None}
    assert without == {
        "keystone_create_user_token_by_password",
        "keystone_list_auth_domains",
        "keystone_list_auth_projects",
        "keystone_list_catalog",
        "keystone_list_projects",
        "keystone_list_versions",
        "keystone_revoke_token",
        "keystone_show_project",
        "keystone_show_token",
        "keystone_show_version",
    }


def test_who_lost_a_right_is_refused_from_the_next_request_on(service: Service, users: Users) -> None:
    users.are_about("dcs:instance:list")
    assert service.http("GET", "/v2/{p}/instances", token=users.has).status_code == 200
    users.are_about("dcs:instance:get")
    assert service.http("GET", "/v2/{p}/instances", token=users.has).status_code == 403
    assert service.http("GET", f"/v2/{{p}}/instances/{UNKNOWN}", token=users.has).status_code == 404
