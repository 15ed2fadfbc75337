"""Chapter 5.1: instances are created, listed, shown, changed, resized and deleted, by the official client."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from redis.exceptions import NoPermissionError
from support.caches import HA, PASSWORD, SINGLE, Cache, made, pid_of, refused, sdk_body
from support.service import Service
from support.waiting import until


@pytest.fixture(scope="module")
def single(service: Service) -> Iterator[Cache]:
    """A single-node instance whose password and size nobody here changes for good."""
    with made(
        service, name="single-1", description="one node", tags=[{"key": "team", "value": "a"}]
    ) as cache:
        yield cache


def created(service: Service, sdk: Any, **changes: Any) -> list[Cache]:
    answer = sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service, **changes)))
    return [Cache(service, found.instance_id) for found in answer.instances]


def used_bytes(cache: Cache, password: str = PASSWORD) -> int:
    with cache.client(password) as link:
        info: Any = link.info("memory")
    return int(info["maxmemory"])


# --- the whole life --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_an_instance_lives_from_creation_to_deletion(service: Service, sdk: Any, spec_code: str) -> None:
    [cache] = created(service, sdk, name="life-1", spec_code=spec_code)
    try:
        shown = sdk.show_instance(dcs.ShowInstanceRequest(instance_id=cache.id))
        assert shown.status in ("CREATING", "RUNNING")
        cache.until_running()
        with cache.client() as link:
            assert link.set("key", "value")
            assert link.get("key") == "value"
        sdk.resize_instance(
            dcs.ResizeInstanceRequest(
                instance_id=cache.id,
                body=dcs.ResizeInstanceBody(spec_code=spec_code.replace("128", "256"), new_capacity=0.25),
            )
        )
        assert sdk.show_instance(dcs.ShowInstanceRequest(instance_id=cache.id)).status in (
            "EXTENDING",
            "RUNNING",
        )
        cache.until_running()
        with cache.client() as link:
            assert link.get("key") == "value"
        assert used_bytes(cache) == 256 << 20
    finally:
        sdk.delete_single_instance(dcs.DeleteSingleInstanceRequest(instance_id=cache.id))
        cache.until_gone()
    with refused(404, "DCS.3022"):
        sdk.show_instance(dcs.ShowInstanceRequest(instance_id=cache.id))


def test_a_running_instance_answers_from_the_moment_it_is_shown_as_running(service: Service) -> None:
    with made(service) as cache, cache.client() as link:
        assert link.ping()


# --- 5.1.1 -----------------------------------------------------------------------------------------


def test_what_was_asked_for_is_what_is_shown(service: Service) -> None:
    facts = service.facts
    address = facts.cidr.rsplit(".", 2)[0] + ".7.7"
    asked: dict[str, Any] = {
        "name": "exact-1",
        "description": "as asked",
        "port": 6388,
        "private_ip": address,
        "az_codes": facts.az_codes[1:2],
        "maintain_begin": "22:00:00",
        "maintain_end": "23:00:00",
        "tags": [{"key": "zeta", "value": "1"}, {"key": "alpha", "value": "2"}, {"key": "mid", "value": ""}],
        "engine_version": "6.0",
    }
    with made(service, **asked) as cache:
        shown = cache.show()
        assert shown["ip"] == address
        assert {name: shown[name] for name in asked if name != "private_ip"} == {
            name: value for name, value in asked.items() if name != "private_ip"
        }
        assert (shown["capacity"], shown["capacity_minor"], shown["max_memory"]) == (0, ".125", 128)
        with cache.client(host=address, port=6388) as link:
            info: Any = link.info("server")
            assert info["tcp_port"] == 6388
        with pytest.raises(redis.ConnectionError):
            cache.client(host=address, port=6379).ping()


def test_without_a_window_an_instance_has_the_default_one(single: Cache) -> None:
    shown = single.show()
    assert (shown["maintain_begin"], shown["maintain_end"]) == ("02:00:00", "06:00:00")


def test_the_memory_limit_and_the_client_limit_are_the_flavors(single: Cache) -> None:
    with single.client() as link:
        info: Any = link.info()
        assert info["maxmemory"] == 128 << 20
        assert info["maxclients"] == 10_000
        assert info["maxmemory_policy"] == "volatile-lru"
        assert link.config_get("databases") == {"databases": "256"}


def test_a_batch_is_numbered_and_every_one_works(service: Service) -> None:
    with made(service, count=3, name="batch") as caches:
        shown = [cache.show() for cache in caches]
        assert sorted(each["name"] for each in shown) == ["batch-000", "batch-001", "batch-002"]
        assert len({each["ip"] for each in shown}) == 3
        for cache in caches:
            with cache.client() as link:
                assert link.ping()


def test_an_instance_without_a_password_lets_everybody_in(service: Service) -> None:
    with made(service, password=None, no_password_access=True) as cache:
        assert cache.show()["no_password_access"] == "true"
        with cache.client(None) as link:
            assert link.set("key", "value")


def test_a_wrong_password_and_none_are_both_refused(single: Cache) -> None:
    assert single.show()["no_password_access"] == "false"
    with pytest.raises(redis.AuthenticationError), single.client(None) as link:
        link.ping()
    with pytest.raises(redis.AuthenticationError), single.client("Wrong-pass-1") as link:
        link.ping()


def test_renamed_commands_answer_to_their_new_names_alone(service: Service) -> None:
    renamed = {"keys": "keys_secret", "flushall": "flushall_secret", "command": "command001"}
    with made(service, rename_commands=renamed) as cache, cache.client() as link:
        link.set("key", "value")
        assert link.execute_command("keys_secret", "*") == ["key"]
        with pytest.raises(redis.ResponseError, match="unknown command"):
            link.keys("*")
        with pytest.raises(redis.ResponseError, match="unknown command"):
            link.flushall()
        assert link.execute_command("flushall_secret")


def test_a_renamed_command_that_no_server_has_changes_nothing(service: Service) -> None:
    commands = {"dbstats": "stats_of", "keys": "Keys_Of"}
    with made(service, rename_commands=commands) as cache, cache.client() as link:
        assert link.execute_command("keys_of", "*") == []


@pytest.mark.parametrize("version", ["4.0", "5.0", "6.0", "7.0"])
def test_every_engine_version_is_served_and_the_true_one_is_told(service: Service, version: str) -> None:
    with made(service, engine_version=version) as cache, cache.client() as link:
        shown = cache.show()
        info: Any = link.info("server")
        assert shown["engine_version"] == version
        assert shown["internal_version"] == info["redis_version"]
        major, minor = (int(part) for part in version.split("."))
        assert tuple(int(part) for part in info["redis_version"].split("."))[:2] >= (major, minor)


FORBIDDEN = [
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "SHUTDOWN NOSAVE",
    "DEBUG SLEEP 0",
    "REPLICAOF NO ONE",
    "SLAVEOF NO ONE",
    "MIGRATE 127.0.0.1 1 key 0 10",
    "SYNC",
    "PSYNC ? -1",
    "MODULE LIST",
    "CONFIG SET maxmemory 0",
    "CONFIG REWRITE",
    "CONFIG RESETSTAT",
    "ACL SETUSER intruder on nopass +@all",
    "ACL DELUSER default",
    "FAILOVER",
]


@pytest.mark.parametrize("command", FORBIDDEN)
def test_a_command_that_the_service_forbids_is_refused(single: Cache, command: str) -> None:
    refusal = redis.ResponseError if command.startswith("DEBUG") else NoPermissionError
    with single.client() as link, pytest.raises(refusal, match=r"permission|not allowed"):
        link.execute_command(*command.split())


def test_the_address_of_a_deleted_instance_can_be_had_again(service: Service) -> None:
    address = service.facts.cidr.rsplit(".", 2)[0] + ".9.9"
    for _ in range(2):
        with made(service, private_ip=address) as cache:
            assert cache.show()["ip"] == address


def test_nothing_of_a_deleted_instance_is_left(service: Service) -> None:
    nodes = service.data / "nodes"
    before = {path.name for path in nodes.iterdir()}
    with made(service, spec_code=HA) as cache:
        mine = {path.name for path in nodes.iterdir()} - before
        running = [pid for pid, command in service.processes().items() if "redis-server" in command]
        assert len(mine) == 2
        with cache.client() as link:
            link.set("key", "value")
            server: Any = link.info("server")
        assert server["process_id"] in running
    assert not mine & {path.name for path in nodes.iterdir()}
    assert server["process_id"] not in service.processes()


# --- 5.1.2, 5.1.4 ----------------------------------------------------------------------------------


def test_lists_filter_and_page(service: Service, sdk: Any) -> None:
    with made(service, count=3, name="pages", tags=[{"key": "part", "value": "three"}]) as caches:
        ids = {cache.id for cache in caches}

        def found(**query: Any) -> Any:
            return sdk.list_instances(dcs.ListInstancesRequest(**query))

        assert {each.instance_id for each in found(name="pages").instances} == ids
        assert found(name="pages").instance_num == 3
        assert found(name="pages", name_equal="true").instance_num == 0
        assert found(name="pages-001", name_equal="true").instance_num == 1
        assert found(name="pages", status="RUNNING").instance_num == 3
        assert found(name="pages", status="RESTARTING").instance_num == 0
        assert found(tags="part=three").instance_num == 3
        assert found(tags="part").instance_num == 3
        assert found(tags="part=four").instance_num == 0
        assert found(ip=caches[0].show()["ip"]).instances[0].instance_id == caches[0].id
        pages = [found(name="pages", offset=offset, limit=2).instances for offset in (0, 2, 3)]
        assert [len(page) for page in pages] == [2, 1, 0]
        assert {each.instance_id for page in pages for each in page} == ids


def test_lists_take_the_fractional_capacity_that_terraform_sends(service: Service, single: Cache) -> None:
    def ids(capacity: str) -> list[str]:
        path = f"/v2/{{p}}/instances?name=single-1&capacity={capacity}"
        return [each["instance_id"] for each in service.http("GET", path).json()["instances"]]

    assert ids("0.125") == [single.id]
    assert ids("1") == []


def test_the_last_page_is_an_empty_list(service: Service) -> None:
    page = service.http("GET", "/v2/{p}/instances?offset=1000").json()
    assert page["instances"] == []


# --- 5.1.6 -----------------------------------------------------------------------------------------


def test_what_is_only_a_record_changes_at_once(service: Service, sdk: Any) -> None:
    with made(service) as cache:
        pid = pid_of(cache)
        sdk.update_instance(
            dcs.UpdateInstanceRequest(
                instance_id=cache.id,
                body=dcs.ModifyInstanceBody(
                    name="renamed-1",
                    description="",
                    maintain_begin="10:00:00",
                    maintain_end="11:00:00",
                    security_group_id=service.facts.security_group_id,
                ),
            )
        )
        shown = cache.show()
        assert shown["status"] == "RUNNING"
        assert (shown["name"], shown["description"]) == ("renamed-1", "")
        assert (shown["maintain_begin"], shown["maintain_end"]) == ("10:00:00", "11:00:00")
        assert shown["security_group_id"] == service.facts.security_group_id
        assert pid_of(cache) == pid


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_a_new_port_is_where_the_instance_answers(service: Service, sdk: Any, spec_code: str) -> None:
    with made(service, spec_code=spec_code) as cache:
        with cache.client() as link:
            link.set("key", "value")
        sdk.update_instance(
            dcs.UpdateInstanceRequest(instance_id=cache.id, body=dcs.ModifyInstanceBody(port=6500))
        )
        shown = cache.until_running()
        assert shown["port"] == 6500
        with cache.client(host=shown["ip"], port=6500) as link:
            assert link.get("key") == "value"
        with pytest.raises(redis.ConnectionError):
            cache.client(host=shown["ip"], port=6379).ping()


def test_commands_are_renamed_and_named_back(service: Service, sdk: Any) -> None:
    def rename(**commands: str) -> None:
        body = dcs.ModifyInstanceBody(rename_commands=dcs.RenameCommandResp(**commands))
        sdk.update_instance(dcs.UpdateInstanceRequest(instance_id=cache.id, body=body))
        cache.until_running()

    with made(service) as cache:
        with cache.client() as link:
            link.set("key", "value")
        rename(keys="keys_new")
        with cache.client() as link:
            assert link.execute_command("keys_new", "*") == ["key"]
            with pytest.raises(redis.ResponseError, match="unknown command"):
                link.keys("*")
        rename(keys="keys")
        with cache.client() as link:
            assert link.keys("*") == ["key"]


def test_an_update_that_changes_nothing_restarts_nothing(service: Service) -> None:
    with made(service, port=6400, rename_commands={"keys": "keys_new"}) as cache:
        pid = pid_of(cache)
        body = {"name": "cache-1", "port": 6400, "rename_commands": {"keys": "keys_new"}}
        assert cache.http("PUT", json=body).status_code == 204
        assert cache.show()["status"] == "RUNNING"
        assert pid_of(cache) == pid


# --- 5.1.7 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_a_resize_is_live_and_reaches_every_node(service: Service, spec_code: str) -> None:
    with made(service, spec_code=spec_code) as cache:
        with cache.client() as link:
            link.set("key", "value")
            before = pid_of(cache)
            for size, capacity in (("512", 0.5), ("256", 0.25)):
                target = spec_code.replace("128", size)
                body = {"spec_code": target, "new_capacity": capacity}
                assert cache.http("POST", "/resize", json=body).status_code == 204
                shown = cache.until_running()
                assert (shown["spec_code"], shown["max_memory"]) == (target, int(size))
                assert link.get("key") == "value"  # on the same connection
        assert pid_of(cache) == before
        for address in cache.addresses():
            with cache.client(host=address, port=6379) as link:
                info: Any = link.info("memory")
                assert info["maxmemory"] == 256 << 20


def test_a_resize_to_less_than_is_used_is_refused_and_changes_nothing(service: Service) -> None:
    bigger = SINGLE.replace("128", "256")
    with made(service, spec_code=bigger, capacity=0.25) as cache:
        with cache.client() as link:
            for number in range(11):
                link.set(f"key-{number}", "x" * (10 << 20))
        until(lambda: cache.show()["used_memory"] > 100, seconds=10, what="the figures of the server")
        answer = cache.http("POST", "/resize", json={"spec_code": SINGLE, "new_capacity": 0.125})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4012")
        assert "new_capacity" in answer.json()["error_msg"]
        assert cache.show()["spec_code"] == bigger
        assert used_bytes(cache) == 256 << 20


# --- 5.1.3, 5.1.5 ----------------------------------------------------------------------------------


def test_a_batch_of_mixed_ids_deletes_those_that_are_there(service: Service, sdk: Any) -> None:
    caches = [Cache(service, each.id) for each in created(service, sdk, name="mixed", instance_num=2)]
    for cache in caches:
        cache.until_running()
    unknown = "00000000-0000-0000-0000-000000000000"
    body = dcs.BatchDeleteBody(instances=[caches[0].id, unknown, caches[1].id])
    answer = sdk.batch_delete_instances(dcs.BatchDeleteInstancesRequest(body=body))
    assert [(each.instance, each.result) for each in answer.results] == [
        (caches[0].id, "success"),
        (unknown, "failed"),
        (caches[1].id, "success"),
    ]
    for cache in caches:
        cache.until_gone()


def test_all_failure_without_failed_instances_deletes_none(service: Service, sdk: Any, single: Cache) -> None:
    request = dcs.BatchDeleteInstancesRequest(
        all_failure=True, body=dcs.BatchDeleteBody(instances=[single.id])
    )
    assert sdk.batch_delete_instances(request).results == []
    assert single.show()["status"] == "RUNNING"


def test_a_deletion_is_never_shown_as_a_state_that_v2_clients_do_not_know(service: Service) -> None:
    with made(service) as cache:
        assert cache.http("DELETE").status_code == 204
        answer = cache.http("GET")
        assert answer.status_code == 404 or answer.json()["status"] == "RUNNING"
        assert cache.http("DELETE").status_code in (204, 404)  # done again, it is no error
