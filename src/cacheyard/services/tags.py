"""Chapter 5.7: tags."""

from collections.abc import Iterable
from typing import Any

from cacheyard import errors
from cacheyard.contract.types import (
    CreateOrDeleteInstanceTags,
    ListTagsOfTenantResponse,
    QueryResourceTag,
    ShowTagsResponse,
)
from cacheyard.contract.types import (
    Tag as ShownTag,
)
from cacheyard.domain.instances import TAGS, Tag
from cacheyard.services.call import Call
from cacheyard.store import instances


def checked(given: Iterable[Any], *, values: bool = True) -> list[Tag]:
    """Tags of a request: no key twice, none of the system's, not too many."""
    found: dict[str, Tag] = {}
    for position, tag in enumerate(given):
        where = f"tags[{position}]"
        if not tag.key:
            raise errors.Invalid(parameter=f"{where}.key", why="it is missing")
        if tag.key.startswith("_sys_"):
            raise errors.Invalid(parameter=f"{where}.key", why="keys that start with _sys_ are the system's")
        if tag.key in found:
            raise errors.Invalid(parameter=f"{where}.key", why=f"{tag.key} is given twice")
        found[tag.key] = Tag(tag.key, (tag.value or "") if values else "")
    if len(found) > TAGS:
        raise errors.Invalid(parameter="tags", why=f"an instance may have {TAGS}")
    return list(found.values())


def list_tags_of_tenant(call: Call[None]) -> ListTagsOfTenantResponse:
    """5.7.1: all keys of the project with their values."""
    with call.house.store.read() as tx:
        found = instances.tags_of_project(tx, call.project_id)
    return ListTagsOfTenantResponse(tags=[ShownTag(key=key, values=values) for key, values in found.items()])


def batch_create_or_delete_tags(call: Call[CreateOrDeleteInstanceTags]) -> None:
    """5.7.2: add tags (a key that is there gets the new value), or remove them."""
    adding = call.body.action == "create"
    given = checked(call.body.tags or [], values=adding)
    if not given:
        raise errors.Invalid(parameter="tags", why="at least one is needed")
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        now = {tag.key: tag for tag in instances.tags_of(tx, [instance.id])[instance.id]}
        for tag in given:
            if adding:
                now[tag.key] = tag
            else:
                now.pop(tag.key, None)
        if len(now) > TAGS:
            raise errors.Invalid(parameter="tags", why=f"an instance may have {TAGS}")
        instances.set_tags(tx, instance.id, list(now.values()))


def show_tags(call: Call[None]) -> ShowTagsResponse:
    """5.7.3: the tags of one instance, in the order they were given."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        found = instances.tags_of(tx, [instance.id])[instance.id]
    return ShowTagsResponse(tags=[QueryResourceTag(key=tag.key, value=tag.value) for tag in found])
