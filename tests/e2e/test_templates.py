"""Templates are made of others, and instances get their values and keep them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, Cache, body_for, made, refused
from support.service import Service

SINGLE_7, HA_7, SINGLE_5 = "21", "22", "11"
NOBODYS = "00000000-0000-0000-0000-000000000000"
TRY = {"X-Dry-Run": "true"}


@contextmanager
def template(sdk: Any, name: str, source: str = SINGLE_7, kind: str = "sys", **params: str) -> Iterator[str]:
    """The id of a template that is gone afterwards. `_` in names of parameters stands for `-`."""
    chosen = {name.replace("_", "-"): value for name, value in params.items()}
    body = dcs.CreateCustomTemplateBody(template_id=source, name=name, type=kind, params=chosen)
    template_id = sdk.create_custom_template(dcs.CreateCustomTemplateRequest(body=body)).id
    try:
        yield template_id
    finally:
        answer = sdk.delete_config_template(dcs.DeleteConfigTemplateRequest(template_id=template_id))
        assert answer.result == "success"


def show(sdk: Any, template_id: str) -> Any:
    return sdk.show_config_template(dcs.ShowConfigTemplateRequest(template_id=template_id, type=None))


def values(service: Service, template_id: str) -> dict[str, str]:
    """Parameters by name; the SDK's type of the answer does not have them."""
    answer = service.http("GET", f"/v2/{{p}}/config-templates/{template_id}")
    assert answer.status_code == 200, answer.text
    return {one["param_name"]: one["param_value"] for one in answer.json()["params"]}


def ids(sdk: Any, **filters: Any) -> list[str]:
    found = sdk.list_config_templates(dcs.ListConfigTemplatesRequest(limit=1000, **filters))
    assert found.template_num == len(found.templates)
    return [one.template_id for one in found.templates]


def update(sdk: Any, template_id: str, **changes: Any) -> Any:
    body = dcs.UpdateCustomTemplateBody(**changes)
    return sdk.update_config_template(dcs.UpdateConfigTemplateRequest(template_id=template_id, body=body))


# --- The service's own -----------------------------------------------------------------------------


def test_there_is_one_for_each_version_and_type_that_can_be_had(service: Service, sdk: Any) -> None:
    found = sdk.list_config_templates(dcs.ListConfigTemplatesRequest(type="sys", limit=1000)).templates
    flavors = service.http("GET", "/v2/{p}/flavors").json()["flavors"]
    sold = {
        (version, flavor["cache_mode"])
        for flavor in flavors
        for version in flavor["engine_version"].split(";")
    }
    assert {(one.engine_version, one.cache_mode) for one in found} == sold
    names = {one.template_id: one.name for one in found}
    assert names["6"] == "Default-Redis-4.0-single-generic-DRAM"
    assert names[SINGLE_5] == "Default-Redis-5.0-single-generic-DRAM"
    assert {one.type for one in found} == {"sys"}
    assert all(one.created_at is None for one in found)


def test_it_shows_every_parameter_with_its_default(service: Service) -> None:
    answer = service.http("GET", f"/v2/{{p}}/config-templates/{HA_7}", params={"type": "sys"}).json()
    params = {one["param_name"]: one for one in answer["params"]}
    assert params["timeout"]["param_value"] == params["timeout"]["default_value"] == "0"
    assert params["timeout"]["value_range"] == "0-7200"
    assert params["appendonly"]["param_value"] == "yes"
    assert "maxclients" not in params  # what it can be depends on the size
    assert "appendonly" not in values(service, SINGLE_7)


def test_it_cannot_be_changed_or_deleted(sdk: Any) -> None:
    with refused(400, "DCS.4800", "template_id"):
        update(sdk, HA_7, name="mine")
    with refused(400, "DCS.4800", "template_id"):
        sdk.delete_config_template(dcs.DeleteConfigTemplateRequest(template_id=HA_7))
    assert show(sdk, HA_7).name == "Default-Redis-7.0-ha-generic-DRAM"


# --- Custom ones -----------------------------------------------------------------------------------


def test_a_custom_one_has_the_values_that_were_chosen(service: Service, sdk: Any) -> None:
    with template(sdk, "mine", timeout="100", maxmemory_policy="allkeys-lru") as mine:
        shown = show(sdk, mine)
        assert (shown.name, shown.type, shown.engine_version, shown.cache_mode) == (
            "mine",
            "user",
            "7.0",
            "single",
        )
        assert shown.created_at.endswith("Z")
        found = values(service, mine)
        assert (found["timeout"], found["maxmemory-policy"]) == ("100", "allkeys-lru")
        assert found | {"timeout": "0", "maxmemory-policy": "volatile-lru"} == values(service, SINGLE_7)


def test_one_can_be_made_of_another_custom_one(service: Service, sdk: Any) -> None:
    with (
        template(sdk, "first", timeout="100", slowlog_max_len="10") as first,
        template(sdk, "second", source=first, kind="user", timeout="200") as second,
    ):
        found = values(service, second)
        assert (found["timeout"], found["slowlog-max-len"]) == ("200", "10")
        update(sdk, first, params={"slowlog-max-len": "20"})
        assert values(service, second)["slowlog-max-len"] == "10"


def test_what_is_not_sent_in_an_update_stays(service: Service, sdk: Any) -> None:
    with template(sdk, "before", timeout="100") as mine:
        assert update(sdk, mine, params={"slowlog-max-len": "007"}).result == "success"
        assert update(sdk, mine, name="after").result == "success"
        assert update(sdk, mine, name="after", description="why").result == "success"
        shown, found = show(sdk, mine), values(service, mine)
        assert (shown.name, shown.description) == ("after", "why")
        assert (found["timeout"], found["slowlog-max-len"]) == ("100", "7")


def test_lists_are_filtered_and_paged(service: Service, sdk: Any) -> None:
    with (
        template(sdk, "list-One", source=HA_7) as one,
        template(sdk, "list-two", source=SINGLE_7) as two,
    ):
        update(sdk, two, description="The Second")
        assert ids(sdk, type="user") == [one, two]
        assert ids(sdk, name="LIST-o") == [one]
        assert ids(sdk, description="second") == [two]
        assert ids(sdk, template_id=two) == [two]
        assert ids(sdk, engine_version="7.0", cache_mode="ha") == [HA_7, one]
        assert ids(sdk, engine="Memcached") == []
        assert ids(sdk, engine_version="5.0", type="user") == []
        everything = ids(sdk)
        pages: list[str] = []
        while page := [  # as Terraform does: an offset and no limit, until a page is empty
            each["template_id"]
            for each in service.http("GET", f"/v2/{{p}}/config-templates?offset={len(pages)}").json()[
                "templates"
            ]
        ]:
            assert len(page) <= 10
            pages += page
        assert pages == everything


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"template_id": NOBODYS}, "DCS.4988", NOBODYS),
        ({"type": "user"}, "DCS.4988", SINGLE_7),
        ({"name": "Default-Redis-7.0-ha-generic-DRAM"}, "DCS.4800", "name"),
        ({"engine_version": "6.0"}, "DCS.4008", "engine_version"),
        ({"cache_mode": "ha"}, "DCS.4800", "cache_mode"),
        ({"params": {"no-such": "1"}}, "DCS.4800", "params.no-such"),
        ({"params": {"appendonly": "yes"}}, "DCS.4800", "params.appendonly"),
        ({"params": {"maxclients": "5000"}}, "DCS.4800", "params.maxclients"),
        ({"params": {"timeout": "7201"}}, "DCS.4066", "timeout"),
        ({"params": {"timeout": "1", "maxmemory-policy": "all"}}, "DCS.4066", "maxmemory-policy"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(
    sdk: Any, changes: dict[str, Any], code: str, named: str
) -> None:
    before = ids(sdk)
    asked = {"template_id": SINGLE_7, "name": "never", "type": "sys", "params": {}} | changes
    with refused(400, code, named):
        body = dcs.CreateCustomTemplateBody(**asked)
        sdk.create_custom_template(dcs.CreateCustomTemplateRequest(body=body))
    assert ids(sdk) == before


def test_a_name_is_taken_once_in_a_project(sdk: Any) -> None:
    with template(sdk, "taken"), template(sdk, "other") as other:
        with refused(400, "DCS.4800", "name"), template(sdk, "taken"):
            pass
        with refused(400, "DCS.4800", "name"):
            update(sdk, other, name="taken", params={"timeout": "5"})
        assert show(sdk, other).name == "other"


def test_a_bad_value_in_an_update_changes_nothing(service: Service, sdk: Any) -> None:
    with template(sdk, "steady") as mine:
        with refused(400, "DCS.4066", "timeout"):
            update(sdk, mine, name="moved", params={"slowlog-max-len": "5", "timeout": "-1"})
        assert show(sdk, mine).name == "steady"
        assert values(service, mine) == values(service, SINGLE_7)


def test_one_that_is_gone_is_not_found(sdk: Any) -> None:
    with template(sdk, "gone") as mine:
        pass
    with refused(400, "DCS.4988", mine):
        show(sdk, mine)
    with refused(400, "DCS.4988", mine):
        update(sdk, mine, name="back")
    with refused(400, "DCS.4988", mine):
        sdk.delete_config_template(dcs.DeleteConfigTemplateRequest(template_id=mine))


def test_there_may_be_so_many_in_a_project(fresh_service: Any) -> None:
    service = fresh_service(CACHEYARD_TEMPLATE_QUOTA="1")
    sdk = service.sdk_token()
    with template(sdk, "only"), refused(400, "DCS.4039", "1"), template(sdk, "more"):
        pass
    with template(sdk, "again"):
        assert len(ids(sdk, type="user")) == 1


# --- Instances made with them ----------------------------------------------------------------------


def test_an_instance_gets_the_values_and_keeps_them_when_the_template_is_gone(
    service: Service, sdk: Any
) -> None:
    with template(
        sdk, "for-ha", source=HA_7, maxmemory_policy="allkeys-lfu", timeout="120", slowlog_max_len="33"
    ) as mine:
        request = dcs.CreateInstanceRequest(
            body=dcs.CreateInstanceBody(**body_for(service, spec_code=HA, name="made-1", template_id=mine))
        )
        cache = Cache(service, sdk.create_instance(request).instances[0].instance_id)
        cache.until_running()
        update(sdk, mine, params={"timeout": "60"})
    expected = {"maxmemory-policy": "allkeys-lfu", "timeout": "120", "slowlog-max-len": "33"}
    shown = {
        one.param_name: one.param_value
        for one in sdk.list_configurations(dcs.ListConfigurationsRequest(instance_id=cache.id)).redis_config
    }
    assert {name: shown[name] for name in expected} == expected
    with cache.client() as link:
        assert link.config_get(*expected) == expected
    for address in cache.addresses()[1:]:
        with cache.client(host=address, port=6379) as link:
            assert link.config_get(*expected) == expected
    assert cache.http("DELETE").status_code == 204
    cache.until_gone()


def test_a_template_of_the_service_is_its_defaults(service: Service) -> None:
    with made(service, name="made-2", template_id=SINGLE_7) as cache, cache.client() as link:
        assert link.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}


@pytest.mark.parametrize(
    ("template_id", "code"), [(NOBODYS, "DCS.4988"), (HA_7, "DCS.4800"), (SINGLE_5, "DCS.4800")]
)
def test_a_template_that_does_not_fit_is_refused(service: Service, template_id: str, code: str) -> None:
    for headers in ({}, TRY):
        answer = service.http(
            "POST", "/v2/{p}/instances", json=body_for(service, template_id=template_id), headers=headers
        )
        assert (answer.status_code, answer.json()["error_code"]) == (400, code)
        assert "template_id" in answer.json()["error_msg"]


def test_terraform_s_custom_template(service: Service) -> None:
    body = {
        "template_id": SINGLE_5,
        "type": "sys",
        "name": "tf-one",
        "params": {"latency-monitor-threshold": 15},
    }
    made = service.http("POST", "/v2/{p}/config-templates", json=body)
    assert made.status_code == 200, made.text
    path = f"/v2/{{p}}/config-templates/{made.json()['id']}"
    shown = service.http("GET", path, params={"type": "user"}).json()
    [one] = [one for one in shown["params"] if one["param_name"] == "latency-monitor-threshold"]
    assert one["param_value"] == "15"
    assert one["need_restart"] is False
    assert {"param_id", "default_value", "value_range", "value_type", "description"} <= set(one)
    change = {"name": "tf-two", "description": "", "params": {"timeout": "200"}}
    assert service.http("PUT", path, json=change).status_code == 200
    shown = service.http("GET", path).json()
    assert (shown["name"], shown["engine"], shown["product_type"]) == ("tf-two", "Redis", "generic")
    assert service.http("DELETE", path).status_code == 200
    assert service.http("GET", path, params={"type": "user"}).json()["error_code"] == "DCS.4988"
