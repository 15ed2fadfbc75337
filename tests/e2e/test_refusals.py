"""Bad input gets its documented code and a message that names the parameter, and nothing changes."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.bodies import fitting
from support.caches import HA, PASSWORD, SINGLE, Cache, body_for, frozen, made, pid_of, refused, remove
from support.service import Service

from cacheyard.api.bindings import BINDINGS
from cacheyard.contract.document import load, ref
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS

SCHEMAS: dict[str, Any] = load()["components"]["schemas"]
UNKNOWN = "00000000-0000-0000-0000-000000000000"
BIGGER = {"spec_code": SINGLE.replace("128", "256"), "new_capacity": 0.25}
VOLATILE = {"update_at", "bandwidth_info", "used_memory"}
BUILT = [operation for operation in OPERATIONS.values() if operation.id in BINDINGS]


def told(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a v2 refusal."""
    assert answer.headers["Content-Type"].startswith("application/json")
    return answer.status_code, answer.json().get("error_code", "none")


def steadily(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if name not in VOLATILE}


@pytest.fixture
def unchanged(service: Service, steady: Cache) -> Iterator[None]:
    """The instances of the project are the same before and after."""

    def there() -> Any:
        answer = service.http("GET", "/v2/{p}/instances?limit=1000&include_failure=true").json()
        return sorted(each["instance_id"] for each in answer["instances"])

    before, shown = there(), steadily(steady.show())
    yield
    assert there() == before
    assert steadily(steady.show()) == shown


# --- every stated limit, one step outside ----------------------------------------------------------

READS = re.compile(":(get|list)[A-Za-z]*$")  # at the end of an action
TIMEOUT = {"param_id": "1", "param_name": "timeout", "param_value": "1"}
WHITELIST = {"enable_whitelist": True, "whitelist": [{"group_name": "apps", "ip_list": ["10.0.0.1"]}]}


def bodies(service: Service, steady: Cache) -> dict[str, dict[str, Any]]:
    """Good bodies by operation id; each case makes one thing in them bad."""
    return {
        "create_instance": body_for(service, tags=[{"key": "new"}]),
        "update_instance": {"name": "steady-2"},
        "resize_instance": BIGGER,
        "update_password": {"old_password": PASSWORD, "new_password": "Another_pass.2"},
        "reset_password": {"new_password": "Another_pass.2"},
        "restart_or_flush_instances": {"instances": [steady.id], "action": "restart"},
        "batch_delete_instances": {"instances": [steady.id]},
        "batch_create_or_delete_tags": {"action": "create", "tags": [{"key": "new", "value": "tag"}]},
        "delete_center_task": {},
        "start_instance_resize_check_job": BIGGER,
        "create_resize_order": BIGGER,
        "v1_create_replication": {},
        "update_slave_priority": {"slave_priority_weight": 50},
        "change_nodes_start_stop_status": {"action": "start"},
        "migrate_az": {"new_available_zones": list(service.facts.az_codes[:1])},
        "upgrade_instance_minor_version": {"engine_minor_version": "latest"},
        "create_custom_template": {"template_id": "21", "name": "new", "type": "sys", "params": {}},
        "update_config_template": {"params": {"timeout": "1"}},
        "update_configurations": {"redis_config": [TIMEOUT]},
        "update_instance_config": {"redis_config": [TIMEOUT]},
        "update_ip_whitelist": WHITELIST,
        "update_ip_whitelist_async": WHITELIST,
        "update_bandwidth": {"group_bandwidths": [{"group_id": UNKNOWN, "target_bandwidth": 40}]},
        "update_acl_account": {"account_role": "read"},
        "update_acl_account_pass_word": {"old_password": PASSWORD, "new_password": "Another_pass.2"},
        "update_client_ip_transparent_transmission": {"transparent_client_ip_enable": False},
    }


def body_of(operation: Operation, special: dict[str, dict[str, Any]]) -> Any:
    """A good body: one of these, or the smallest that the contract allows."""
    if operation.body is None or operation.id in special:
        return special.get(operation.id)
    return fitting(SCHEMAS[operation.body])


def needed(operation: Operation) -> dict[str, str]:
    """The query parameters without which nothing else is looked at, with values that fit."""
    required = [p for p in operation.parameters if p.where == "query" and p.required]
    schemas: dict[str, Any] = {parameter.name: parameter.schema for parameter in required}
    return {name: schema["enum"][0] for name, schema in schemas.items() if "enum" in schema}


Case = tuple[Operation, tuple[str | int, ...], Any, str]


def outside(schema: dict[str, Any]) -> Iterator[Any]:
    """Values one step outside what a schema allows. The empty text is not among them: it means "not set"."""
    match schema.get("type"):
        case "string":
            fits = next((c * max(schema.get("minLength", 1), 1) for c in "a1" if fits_all(c, schema)), "a")
            if schema.get("minLength", 0) > 1:
                yield fits[:1] * (schema["minLength"] - 1)
            if "maxLength" in schema:
                yield fits[:1] * (schema["maxLength"] + 1)
            if "enum" in schema:
                yield "no-such-value"
            if "pattern" in schema:
                odd = "!" * max(schema.get("minLength", 1), 1)
                if not re.fullmatch(schema["pattern"], odd):
                    yield odd
                yield f"{fits}\n"
            yield {"an": "object"}
        case "integer" | "number":
            if "minimum" in schema:
                yield schema["minimum"] - (1 if schema["type"] == "integer" else 0.001)
            if "maximum" in schema:
                yield schema["maximum"] + 1
            yield "no-number"
            if schema["type"] == "integer":
                yield 1.5
        case "boolean":
            yield "perhaps"
        case "array":
            if "maxItems" in schema:
                yield [good(schema["items"], number) for number in range(schema["maxItems"] + 1)]
            yield {"an": "object"}
        case "object":
            yield "no-object"


def fits_all(char: str, schema: dict[str, Any]) -> bool:
    text = char * max(schema.get("minLength", 1), 1)
    return "pattern" not in schema or re.search(schema["pattern"], text) is not None


def good(schema: dict[str, Any], number: int) -> Any:
    """An item of a list."""
    if name := ref(schema):
        required = SCHEMAS[name].get("required", SCHEMAS[name]["properties"])
        return {prop: f"{prop}-{number}" for prop in required}
    return f"item-{number}"


def walk(
    schema: dict[str, Any], way: tuple[str | int, ...], code: str
) -> Iterator[tuple[tuple[str | int, ...], Any, str]]:
    """Every place in a schema with the values that do not fit there and the code that is due."""
    code = schema.get("x-error-code", code)
    if name := ref(schema):
        schema = {**SCHEMAS[name], "x-error-code": code}
    if way:
        for value in outside(schema):
            yield way, value, code
    for prop, below in schema.get("properties", {}).items():
        yield from walk(below, (*way, prop), code)
    if schema.get("type") == "array":
        yield from walk(schema["items"], (*way, 0), code)


def cases() -> Iterator[Case]:
    for operation in BUILT:
        if operation.family == "v2" and operation.body is not None:
            for way, value, code in walk(SCHEMAS[operation.body], (), "DCS.4800"):
                yield operation, way, value, code


def put(body: Any, way: tuple[str | int, ...], value: Any) -> Any:
    """A copy of the body with the value at its place."""
    if not way:
        return value
    first, *rest = way
    if isinstance(first, int):
        return [put(body[0] if body else {}, tuple(rest), value)]
    there = body if isinstance(body, dict) else {}
    return {**there, first: put(there.get(first), tuple(rest), value)}


def written(way: tuple[str | int, ...]) -> str:
    """`tags[0].key`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in way).lstrip(".")


def test_every_stated_limit_of_a_body_is_held(service: Service, steady: Cache, unchanged: None) -> None:
    good_bodies, count, wrong = bodies(service, steady), 0, []
    for operation, way, value, code in cases():
        path = operation.path.replace("{project_id}", "{p}").replace("{instance_id}", steady.id)
        path = path.replace("{task_id}", UNKNOWN).replace("{template_id}", UNKNOWN)
        body = put(body_of(operation, good_bodies), way, value)
        answer = service.http(operation.method, path, json=body)
        count += 1
        if told(answer) != (400, code) or written(way) not in answer.json()["error_msg"]:
            wrong.append(f"{operation.id} {written(way)}={value!r:.60}: {code} is due: {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)
    assert count > 150


def test_every_stated_limit_of_a_query_is_held(service: Service, steady: Cache, unchanged: None) -> None:
    count, wrong = 0, []
    for operation in BUILT:
        if operation.family != "v2" or operation.method != "GET":
            continue
        path = operation.path.replace("{project_id}", "{p}").replace("{instance_id}", steady.id)
        path = path.replace("{task_id}", UNKNOWN).replace("{job_id}", UNKNOWN)
        for parameter in operation.parameters:
            if parameter.where != "query":
                continue
            schema: dict[str, Any] = dict(parameter.schema)
            for value in outside(schema):
                if isinstance(value, dict):
                    continue
                sent = needed(operation) | {parameter.name: str(value)}
                answer = service.http("GET", path, params=sent)
                code = schema.get("x-error-code", "DCS.4800")
                count += 1
                if told(answer) != (400, code) or parameter.name not in answer.json()["error_msg"]:
                    wrong.append(f"{operation.id}?{parameter.name}={value!r}: {code}: {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)
    assert count > 20


@pytest.mark.parametrize("capacity", ["1e30", "-1e30", "nan", "inf", "much"])
def test_a_capacity_that_no_instance_can_have_finds_none(service: Service, capacity: str) -> None:
    assert service.http("GET", f"/v2/{{p}}/instances?capacity={capacity}").json()["instance_num"] == 0


def test_a_list_by_more_tags_than_an_instance_can_have_is_refused(service: Service) -> None:
    many = ",".join(f"key-{number}" for number in range(3000))
    answer = service.http("GET", f"/v2/{{p}}/instances?tags={many}")
    assert told(answer) == (400, "DCS.4800")
    assert "tags" in answer.json()["error_msg"]


# --- bodies that are none --------------------------------------------------------------------------


WITH_BODY = [o for o in BUILT if o.body_required and o.family in ("v2", "v1")]


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda o: o.id)
def test_a_body_that_is_none_is_refused(
    service: Service, steady: Cache, unchanged: None, operation: Operation
) -> None:
    path = operation.path.replace("{project_id}", "{p}").replace("{instance_id}", steady.id)
    due = {b"": "4004", b"  ": "4004", b"null": "4004"}
    for body in (b"{", b"\xff\xfe", b"[]", b"1", b'"text"', b"[" * 5000, b'{"a":1e999999}', b"{}{}", *due):
        answer = service.http(operation.method, path, content=body)
        assert answer.status_code == 400, body
        error = answer.json()
        code = error["error_code"] if operation.family == "v2" else error["error"]["code"]
        assert code.endswith(due.get(body, "4005")[1:]) or body == b'{"a":1e999999}', (body, error)


def test_a_body_over_the_limit_is_refused(service: Service, unchanged: None) -> None:
    answer = service.http("POST", "/v2/{p}/instances", content=b" " * 1_048_577)
    assert told(answer) == (400, "DCS.4800")
    assert "body" in answer.json()["error_msg"]


# --- what cannot be had ----------------------------------------------------------------------------

CANNOT_BE_CREATED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no name": ({"name": None}, "DCS.4010", "name"),
    "a name of a long batch": ({"name": "n" * 57, "instance_num": 2}, "DCS.4010", "name"),
    "no engine": ({"engine": None}, "DCS.4006", "engine"),
    "no version": ({"engine_version": None}, "DCS.4008", "engine_version"),
    "version 3.0": ({"engine_version": "3.0"}, "DCS.4008", "engine_version"),
    "no flavor": ({"spec_code": None}, "DCS.4927", "spec_code"),
    "an unknown flavor": ({"spec_code": "redis.single.xu1.tiny.129"}, "DCS.4927", "spec_code"),
    "no capacity": ({"capacity": None}, "DCS.4012", "capacity"),
    "another capacity than the flavor's": ({"capacity": 1}, "DCS.4012", "capacity"),
    "no zone": ({"az_codes": None}, "DCS.4042", "az_codes"),
    "an empty list of zones": ({"az_codes": []}, "DCS.4042", "az_codes"),
    "a zone that does not exist": ({"az_codes": ["yard-1z"]}, "DCS.4042", "az_codes"),
    "no vpc": ({"vpc_id": None}, "DCS.4013", "vpc_id"),
    "a vpc that does not exist": ({"vpc_id": UNKNOWN}, "DCS.4068", "vpc_id"),
    "no subnet": ({"subnet_id": None}, "DCS.4016", "subnet_id"),
    "a subnet that does not exist": ({"subnet_id": UNKNOWN}, "DCS.4016", "subnet_id"),
    "a group that does not exist": ({"security_group_id": UNKNOWN}, "DCS.4046", "security_group_id"),
    "no password": ({"password": None}, "DCS.4845", "password"),
    "a password where none is wanted": ({"no_password_access": True}, "DCS.4849", "password"),
    "a user": ({"access_user": "somebody"}, "DCS.4844", "access_user"),
    "half a window": ({"maintain_begin": "02:00:00"}, "DCS.4106", "maintain_begin"),
    "a window of two hours": (
        {"maintain_begin": "02:00:00", "maintain_end": "04:00:00"},
        "DCS.4106",
        "maintain_begin",
    ),
    "a window at half past": (
        {"maintain_begin": "02:30:00", "maintain_end": "03:30:00"},
        "DCS.4106",
        "maintain_begin",
    ),
    "a template that does not exist": ({"template_id": UNKNOWN}, "DCS.4988", "template_id"),
    "prepayment": ({"bss_param": {"charging_mode": "prePaid"}}, "DCS.4800", "charging_mode"),
    "a renamed command of no list": ({"rename_commands": {"get": "get_new"}}, "DCS.4800", "rename_commands"),
    "the name of another command": ({"rename_commands": {"keys": "MGet"}}, "DCS.4800", "rename_commands"),
    "a short new name": ({"rename_commands": {"keys": "abc"}}, "DCS.4800", "rename_commands"),
    "a new name in upper case twice": (
        {"rename_commands": {"keys": "same_name", "scan": "SAME_NAME"}},
        "DCS.4800",
        "rename_commands",
    ),
    "a tag without a key": ({"tags": [{"value": "x"}]}, "DCS.4800", "tags[0].key"),
    "a system's tag": ({"tags": [{"key": "_sys_x"}]}, "DCS.4800", "tags[0].key"),
    "no address": ({"private_ip": "somewhere"}, "DCS.4800", "private_ip"),
    "an address outside the subnet": ({"private_ip": "127.0.0.1"}, "DCS.4800", "private_ip"),
}


@pytest.mark.parametrize("what", CANNOT_BE_CREATED)
def test_an_instance_with_this_is_not_created(service: Service, unchanged: None, what: str) -> None:
    changes, code, parameter = CANNOT_BE_CREATED[what]
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service, **changes))
    assert told(answer) == (400, code), answer.text
    assert parameter in answer.json()["error_msg"]


def test_an_address_that_is_taken_is_refused(service: Service, steady: Cache, unchanged: None) -> None:
    address = steady.show()["ip"]
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service, private_ip=address))
    assert told(answer) == (400, "DCS.4800"), answer.text
    assert "private_ip" in answer.json()["error_msg"]


def test_a_batch_with_an_address_that_only_one_can_have_makes_none(service: Service, unchanged: None) -> None:
    address = service.facts.cidr.rsplit(".", 2)[0] + ".11.11"
    body = body_for(service, private_ip=address, instance_num=2)
    answer = service.http("POST", "/v2/{p}/instances", json=body)
    assert told(answer) == (400, "DCS.4800"), answer.text
    assert "private_ip" in answer.json()["error_msg"]


CANNOT_BE_HAD: dict[str, tuple[dict[str, Any], str]] = {
    "another processor": ({"spec_code": "redis.single.au1.tiny.256", "new_capacity": 0.25}, "spec_code"),
    "the same size": ({"spec_code": SINGLE, "new_capacity": 0.125}, "spec_code"),
    "an unknown flavor": ({"spec_code": "redis.single.xu1.tiny.9", "new_capacity": 0.25}, "spec_code"),
    "another capacity": (BIGGER | {"new_capacity": 0.5}, "new_capacity"),
    "no capacity": ({"spec_code": SINGLE}, "new_capacity"),
    "a change of replicas that is none": (BIGGER | {"change_type": "createReplication"}, "change_type"),
    "another type": ({"spec_code": HA, "new_capacity": 0.125}, "spec_code"),
}


@pytest.mark.parametrize("what", CANNOT_BE_HAD)
def test_a_resize_to_this_is_refused(steady: Cache, unchanged: None, what: str) -> None:
    body, parameter = CANNOT_BE_HAD[what]
    answer = steady.http("POST", "/resize", json=body)
    assert answer.status_code == 400, answer.text
    assert parameter in answer.json()["error_msg"]


def test_an_engine_that_is_not_built_says_so(service: Service, unchanged: None) -> None:
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service, engine="Memcached"))
    assert told(answer) == (501, "DCS.5501"), answer.text


# --- whose it is -----------------------------------------------------------------------------------


ON_AN_INSTANCE = [o for o in BUILT if "{instance_id}" in o.path and o.family == "v2"]


@pytest.mark.parametrize("operation", ON_AN_INSTANCE, ids=lambda o: o.id)
def test_an_unknown_instance_is_not_there_for_any_operation(
    service: Service, steady: Cache, operation: Operation
) -> None:
    path = operation.path.replace("{project_id}", "{p}").replace("{instance_id}", UNKNOWN)
    path = path.replace("{task_id}", UNKNOWN)
    body = body_of(operation, bodies(service, steady))
    answer = service.http(operation.method, path, json=body, params=needed(operation))
    assert told(answer) == (404, "DCS.3022")


@pytest.fixture(scope="module")
def stranger(service: Service) -> Any:
    """A user with a key and a role on a project of its own: (its client, its token, its project's id)."""

    def told_by(*command: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(service.command(*command, "--json"))
        return answer

    project_id = told_by("project", "add", "theirs")["id"]
    told_by("user", "add", "stranger", "--password", "Str4nger-pass")
    told_by("role", "grant", "stranger", "theirs", "te_admin")
    key = told_by("key", "create", "stranger")
    sdk = service.sdk(key["access_key"], key["secret_key"], project_id)
    return sdk, service.new_token("stranger", "Str4nger-pass", project_id), project_id


def test_somebody_elses_instance_is_not_there(
    service: Service, steady: Cache, unchanged: None, stranger: Any
) -> None:
    _, token, project_id = stranger
    for operation in ON_AN_INSTANCE:
        path = operation.path.replace("{project_id}", project_id).replace("{instance_id}", steady.id)
        path = path.replace("{task_id}", UNKNOWN).replace("{template_id}", UNKNOWN)
        body = body_of(operation, bodies(service, steady))
        more = {} if body is None else {"json": body}
        answer = service.http(operation.method, path, token=token, params=needed(operation), **more)
        assert told(answer) == (404, "DCS.3022"), operation.id
    body = {"instances": [steady.id], "action": "restart"}
    for method, below, sent in (
        ("PUT", "instances/status", body),
        ("DELETE", "instances", {"instances": [steady.id]}),
    ):
        answer = service.http(method, f"/v2/{project_id}/{below}", token=token, json=sent)
        assert answer.status_code == 404 or [r["result"] for r in answer.json()["results"]] == ["failed"]
    assert service.http("GET", f"/v2/{project_id}/instances", token=token).json()["instance_num"] == 0
    task = steady.tasks()[0]["id"]
    assert service.http("GET", f"/v2/{project_id}/jobs/{task}", token=token).status_code == 404
    assert service.http("DELETE", f"/v2/{project_id}/tasks/{task}", token=token, json={}).status_code == 404


def test_somebody_elses_network_cannot_be_used(service: Service, unchanged: None, stranger: Any) -> None:
    _, token, project_id = stranger
    answer = service.http("POST", f"/v2/{project_id}/instances", token=token, json=body_for(service))
    assert told(answer) == (400, "DCS.4068")


def test_a_project_that_is_not_the_callers_is_refused(service: Service, stranger: Any) -> None:
    sdk, token, project_id = stranger
    for whose, path in ((token, "/v2/{p}/instances"), (None, f"/v2/{project_id}/instances")):
        assert told(service.http("GET", path, token=whose)) == (401, "DCS.1004")
    assert told(service.http("GET", "/v2/no-such-project/instances")) == (401, "DCS.1004")
    mine = service.sdk(project_id=project_id)
    with refused(401, "DCS.1004"):
        mine.list_instances(dcs.ListInstancesRequest())
    assert sdk.list_instances(dcs.ListInstancesRequest()).instance_num == 0


def test_a_read_only_user_changes_nothing(service: Service, steady: Cache, unchanged: None) -> None:
    service.command("user", "add", "reader", "--password", "Read3r-pass", "--json")
    service.command("role", "grant", "reader", service.facts.region, "DCS ReadOnlyAccess", "--json")
    token = service.new_token("reader", "Read3r-pass", service.facts.project_id)
    assert steady.http("GET", token=token).status_code == 200
    for operation in BUILT:
        if operation.family == "v2" and not READS.search(operation.action or ""):
            path = operation.path.replace("{project_id}", "{p}").replace("{instance_id}", steady.id)
            path = path.replace("{task_id}", UNKNOWN)
            answer = service.http(
                operation.method, path, token=token, json=body_of(operation, bodies(service, steady))
            )
            assert answer.status_code == 403, operation.id


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "DCS.1003"),
        ({"X-Auth-Token": "no-such-token"}, "DCS.1001"),
        ({"Authorization": "SDK-HMAC-SHA256 nonsense"}, "DCS.1001"),
    ],
)
def test_who_does_not_say_who_they_are_sees_nothing(
    service: Service, headers: dict[str, str], code: str
) -> None:
    answer = service.http("GET", "/v2/{p}/instances", token="", headers=headers)
    assert told(answer) == (401, code)


def test_the_wrong_secret_key_is_refused(service: Service) -> None:
    with refused(401, "DCS.1001"):
        service.sdk(secret="x" * 40).list_instances(dcs.ListInstancesRequest())


# --- paths and methods -----------------------------------------------------------------------------


def test_a_path_that_leads_nowhere_and_a_method_that_is_none(service: Service) -> None:
    assert told(service.http("GET", "/v2/{p}/nothing-here")) == (404, "DCS.4001")
    assert told(service.http("PATCH", "/v2/{p}/instances")) == (405, "DCS.5001")


# --- at the same time ------------------------------------------------------------------------------


def test_of_many_changes_at_once_only_as_many_happen_as_are_answered_with_success(service: Service) -> None:
    busy = {"DCS.4026", "DCS.4049", "DCS.4111", "DCS.4113", "DCS.4114", "DCS.4115"}
    with made(service) as cache:
        token, pid = service.token(), pid_of(cache)

        def change(number: int) -> Any:
            return cache.http("PUT", json={"port": 6500 + number}, token=token)

        with frozen(pid), ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(change, range(8)))
        taken = [number for number, answer in enumerate(answers) if answer.status_code == 204]
        assert len(taken) == 1
        others = {told(answer) for number, answer in enumerate(answers) if number not in taken}
        assert all(status == 400 and code in busy for status, code in others), others
        assert cache.until_running()["port"] == 6500 + taken[0]


def test_of_two_that_want_one_address_one_gets_it(service: Service) -> None:
    address = service.facts.cidr.rsplit(".", 2)[0] + ".12.12"

    def create(_: int) -> httpx.Response:
        return service.http("POST", "/v2/{p}/instances", json=body_for(service, private_ip=address))

    service.token()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(create, range(4)))
    made_here = [answer.json() for answer in answers if answer.status_code == 200]
    try:
        assert len(made_here) == 1
        assert {told(answer) for answer in answers if answer.status_code != 200} == {(400, "DCS.4800")}
    finally:
        remove(*(Cache(service, each["instances"][0]["instance_id"]) for each in made_here))
