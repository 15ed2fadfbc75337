"""Chapter 5.7: tags are kept in their order, and found."""

from collections.abc import Iterator
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.caches import Cache, made
from support.service import Service


@pytest.fixture
def tagged(service: Service) -> Iterator[Cache]:
    tags = [{"key": "zoo", "value": "1"}, {"key": "ant", "value": "2"}]
    with made(service, tags=tags) as cache:
        yield cache


def tags_of(sdk: Any, cache: Cache) -> list[tuple[str, str]]:
    return [(tag.key, tag.value) for tag in sdk.show_tags(dcs.ShowTagsRequest(instance_id=cache.id)).tags]


def change(sdk: Any, cache: Cache, action: str, **tags: str | None) -> None:
    given = [dcs.ResourceTag(key=key, value=value) for key, value in tags.items()]
    body = dcs.CreateOrDeleteInstanceTags(action=action, tags=given)
    request = dcs.BatchCreateOrDeleteTagsRequest(instance_id=cache.id, body=body)
    sdk.batch_create_or_delete_tags(request)


def test_tags_are_added_changed_and_removed_in_order(sdk: Any, tagged: Cache) -> None:
    assert tags_of(sdk, tagged) == [("zoo", "1"), ("ant", "2")]
    change(sdk, tagged, "create", bee="3", zoo="4")
    assert tags_of(sdk, tagged) == [("zoo", "4"), ("ant", "2"), ("bee", "3")]
    assert [tag["key"] for tag in tagged.show()["tags"]] == ["zoo", "ant", "bee"]
    change(sdk, tagged, "delete", zoo=None, unknown=None)
    assert tags_of(sdk, tagged) == [("ant", "2"), ("bee", "3")]


def test_the_projects_tags_are_all_keys_with_their_values(service: Service, sdk: Any, tagged: Cache) -> None:
    with made(service, tags=[{"key": "zoo", "value": "9"}]):
        answer = sdk.list_tags_of_tenant(dcs.ListTagsOfTenantRequest())
        found = {tag.key: tag.values for tag in answer.tags}
    assert (found["zoo"], found["ant"]) == (["1", "9"], ["2"])


def test_an_instance_has_at_most_twenty_tags(sdk: Any, tagged: Cache) -> None:
    path = f"/v2/{{p}}/dcs/{tagged.id}/tags/action"
    many = [{"key": f"key-{number}", "value": ""} for number in range(19)]
    answer = tagged.service.http("POST", path, json={"action": "create", "tags": many})
    assert answer.status_code == 400
    assert "tags" in answer.json()["error_msg"]
    assert tags_of(sdk, tagged) == [("zoo", "1"), ("ant", "2")]
    answer = tagged.service.http("POST", path, json={"action": "create", "tags": many[:18]})
    assert answer.status_code == 204
    assert len(tags_of(sdk, tagged)) == 20


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ([{"key": "_sys_secret", "value": "1"}], "tags[0].key"),
        ([{"key": "k" * 129}], "tags[0].key"),
        ([{"key": "fine"}, {"key": "long", "value": "v" * 256}], "tags[1].value"),
        ([{"key": "twice"}, {"key": "twice"}], "tags[1].key"),
        ([{"value": "no key"}], "tags[0].key"),
        ([], "tags"),
    ],
)
def test_a_bad_tag_is_named_and_changes_nothing(sdk: Any, tagged: Cache, tags: Any, named: str) -> None:
    body = {"action": "create", "tags": tags}
    answer = tagged.service.http("POST", f"/v2/{{p}}/dcs/{tagged.id}/tags/action", json=body)
    assert answer.status_code == 400
    assert named in answer.json()["error_msg"]
    assert tags_of(sdk, tagged) == [("zoo", "1"), ("ant", "2")]
