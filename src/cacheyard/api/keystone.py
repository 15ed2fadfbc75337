"""The identity operations as bindings: `services.tokens` and `services.catalog` answer them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from cacheyard.clock import now_ms
from cacheyard.errors import NotFound
from cacheyard.services import catalog, tokens
from cacheyard.services.call import Call


@dataclass(frozen=True)
class Reply:
    """An answer with headers of its own."""

    answer: Any
    headers: dict[str, str] = field(default_factory=dict)


def keystone_create_user_token_by_password(call: Call[Any]) -> Reply:
    """3.1: a token for a user's name and password."""
    house = call.house
    issued = tokens.issue_token(
        house.store,
        msgspec.to_builtins(call.body),
        base_url=call.base_url,
        region=house.region,
        hours=house.settings.token_hours,
        now=now_ms(),
    )
    return Reply(issued.body, {"X-Subject-Token": issued.text})


def keystone_list_projects(call: Call[Any]) -> Any:
    """7.3: the caller's projects; of a region's name there is exactly one."""
    return catalog.list_projects(call.house.store, call.who, call.parameters, base_url=call.base_url)


def keystone_list_auth_projects(call: Call[Any]) -> Any:
    """What the caller may have a token for."""
    return catalog.auth_projects(call.house.store, call.who, base_url=call.base_url)


def keystone_list_auth_domains(call: Call[Any]) -> Any:
    """The domain that the caller belongs to."""
    return catalog.auth_domains(call.who, call.parameters, base_url=call.base_url)


def keystone_list_versions(call: Call[Any]) -> Any:
    """Which versions of the identity API there are: the root, which clients ask before they have a token."""
    return catalog.versions(call.base_url)


def keystone_show_version(call: Call[Any]) -> Any:
    """The one version."""
    return catalog.version(call.base_url)


def keystone_show_token(call: Call[Any]) -> Reply:
    """What the token in X-Subject-Token is good for."""
    subject, house = call.headers.get("x-subject-token"), call.house
    body = tokens.show_token(
        house.store, call.who, subject, base_url=call.base_url, region=house.region, now=now_ms()
    )
    return Reply(body, {"X-Subject-Token": subject or ""})


def keystone_revoke_token(call: Call[Any]) -> None:
    """The token in X-Subject-Token is good for nothing from now on."""
    tokens.revoke_token(call.house.store, call.who, call.headers.get("x-subject-token"), now=now_ms())


def keystone_list_catalog(call: Call[Any]) -> Any:
    """Where every service is, on the caller's project."""
    house = call.house
    return catalog.show_catalog(house.store, call.who, base_url=call.base_url, region=house.region)


def keystone_show_project(call: Call[Any]) -> Any:
    """One project, if the caller has a role on it."""
    found = catalog.show_project(
        call.house.store, call.who, str(call.parameters["project_id"]), base_url=call.base_url
    )
    if found is None:
        raise NoSuchProject(project_id=call.parameters["project_id"])
    return found


class NoSuchProject(NotFound):
    """Could not find project {project_id}."""
