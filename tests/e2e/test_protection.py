"""Instances that are protected from deletion stay, and which commands have another name can be asked."""

from collections.abc import Iterator
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.caches import Cache, body_for, made, refused
from support.service import Service


@pytest.fixture(scope="module")
def kept(service: Service) -> Iterator[Cache]:
    """An instance that is protected from the start."""
    with made(service, name="kept-1", deletion_protection=True) as cache:
        yield cache
        protect(cache, False)


def protect(cache: Cache, wanted: bool) -> None:
    assert cache.http("PUT", json={"deletion_protection": wanted}).status_code == 204


def is_protected(cache: Cache) -> bool:
    listed = cache.service.http("GET", "/v2/{p}/instances", params={"instance_id": cache.id}).json()
    shown = [cache.show(), *listed["instances"]]
    assert len({one["deletion_protection"] for one in shown}) == 1
    return bool(shown[0]["deletion_protection"])


def test_a_protected_instance_cannot_be_deleted_and_nothing_happens_to_it(kept: Cache, sdk: Any) -> None:
    assert is_protected(kept)
    tasks = kept.tasks()
    with kept.client() as link:
        link.set("key", "value")
        with refused(400, "DCS.4858", "deletion_protection"):
            sdk.delete_single_instance(dcs.DeleteSingleInstanceRequest(instance_id=kept.id))
        assert kept.show()["status"] == "RUNNING"
        assert kept.tasks() == tasks
        assert link.get("key") == "value"


def test_version_1_does_not_delete_it_either(service: Service, kept: Cache) -> None:
    answer = service.http("DELETE", f"/v1.0/{{p}}/instances/{kept.id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "111400858")
    assert kept.show()["task"] is None


def test_in_a_batch_it_alone_fails(service: Service, kept: Cache, sdk: Any) -> None:
    with made(service, name="gone-1") as other:
        body = dcs.BatchDeleteBody(instances=[kept.id, other.id])
        answer = sdk.batch_delete_instances(dcs.BatchDeleteInstancesRequest(body=body))
        assert {each.instance: each.result for each in answer.results} == {
            kept.id: "failed",
            other.id: "success",
        }
        other.until_gone()
    assert kept.show()["status"] == "RUNNING"


def test_an_update_of_something_else_leaves_the_protection(kept: Cache, sdk: Any) -> None:
    body = dcs.ModifyInstanceBody(description="kept")
    sdk.update_instance(dcs.UpdateInstanceRequest(instance_id=kept.id, body=body))
    assert is_protected(kept)


def test_the_official_client_says_it_in_a_header(service: Service, sdk: Any) -> None:
    request = dcs.CreateInstanceRequest(body=dcs.CreateInstanceBody(**body_for(service, name="kept-2")))
    answer = sdk.create_instance_invoker(request).add_header("X-Deletion-Protection", "true").invoke()
    cache = Cache(service, answer.instances[0].instance_id)
    cache.until_running()
    assert is_protected(cache)
    assert cache.http("DELETE").json()["error_code"] == "DCS.4858"
    update = dcs.UpdateInstanceRequest(instance_id=cache.id, body=dcs.ModifyInstanceBody())
    sdk.update_instance_invoker(update).add_header("X-Deletion-Protection", "false").invoke()
    assert not is_protected(cache)
    assert cache.http("DELETE").status_code == 204
    cache.until_gone()


def test_the_command_line_protects_and_the_service_remembers(service: Service) -> None:
    with made(service, name="kept-3") as cache:
        call = ("call", "update_instance", f"--instance_id={cache.id}")
        service.command(*call, "--deletion-protection=true")
        assert is_protected(cache)
        assert cache.http("DELETE").json()["error_code"] == "DCS.4858"
        service.command(*call, "--deletion-protection=false")
        assert not is_protected(cache)


def test_a_header_that_is_neither_true_nor_false_is_refused(service: Service, kept: Cache) -> None:
    answer = kept.http("PUT", json={"description": "x"}, headers={"X-Deletion-Protection": "perhaps"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
    assert "X-Deletion-Protection" in answer.json()["error_msg"]
    assert kept.show()["description"] != "x"


# --- Renamed commands ------------------------------------------------------------------------------


def renamed(cache: Cache) -> list[str]:
    answer = cache.http("GET", "/rename-commands")
    assert answer.status_code == 200, answer.text
    found: list[str] = answer.json()["rename_commands"]
    return found


def test_the_commands_that_have_another_name_are_told_but_not_the_names(service: Service) -> None:
    commands = {"scan": "scan_hidden", "keys": "keys_hidden", "hgetall": "HGETALL"}
    with made(service, rename_commands=commands) as cache:
        assert renamed(cache) == ["keys", "scan"]
        assert "hidden" not in cache.http("GET", "/rename-commands").text
        update = {"rename_commands": {"flushall": "flush_hidden"}}
        assert cache.http("PUT", json=update).status_code == 204
        cache.until_running()
        assert renamed(cache) == ["flushall"]
        with cache.client() as link:
            assert link.keys("*") == []
        assert cache.http("PUT", json={"rename_commands": {}}).status_code == 204
        cache.until_running()
        assert renamed(cache) == []
        assert cache.tasks()[0]["details"]["rename_commands"] == ["flushall"]
        with cache.client() as link:
            assert link.flushall()


def test_nothing_is_told_of_an_instance_that_is_not_there(service: Service) -> None:
    answer = service.http("GET", f"/v2/{{p}}/instances/{'0' * 36}/rename-commands")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "DCS.3022")
