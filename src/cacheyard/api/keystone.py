"""The identity operations as bindings: `services.tokens` and `services.catalog` answer them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from cacheyard.clock import now_ms
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
        region=house.settings.region,
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
