"""Every operation of the contract answers: what is built as documented, what is not with a 501 that says so.

The client holds every answer against the contract; here each operation is called once.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.caches import PASSWORD, Cache, made
from support.proxied import FORMS, needs_program
from support.service import Service

from cacheyard.api.bindings import BINDINGS
from cacheyard.contract.document import load, ref
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS

CONTRACT = load()
RAW = {raw["operationId"]: raw for item in CONTRACT["paths"].values() for raw in item.values()}
UNKNOWN = "00000000-0000-0000-0000-000000000000"
BUILT = [operation for operation in OPERATIONS.values() if operation.id in BINDINGS]
NOT_BUILT = [operation for operation in OPERATIONS.values() if operation.id not in BINDINGS]


def by_id(operation: Operation) -> str:
    return operation.id


def call(service: Service, operation: Operation, ids: dict[str, str], body: Any = None) -> httpx.Response:
    """The operation with these ids in its path, and with what else it needs."""
    path = operation.path
    for parameter in operation.parameters:
        if parameter.where == "path":
            path = path.replace(f"{{{parameter.name}}}", ids.get(parameter.name, UNKNOWN))
    query = {p.name: value_of(p.schema) for p in operation.parameters if p.where == "query" and p.required}
    headers = {p.name: service.token() for p in operation.parameters if p.name == "X-Subject-Token"}
    return service.http(operation.method, path, params=query, headers=headers, json=body)


def value_of(schema: Any) -> str:
    return str(schema.get("example") or next(iter(schema.get("enum", ())), "1700000000000"))


def example(operation: Operation) -> Any:
    """The body that the contract shows, or the smallest one that has what is required."""
    if operation.body is None:
        return None
    media = RAW[operation.id]["requestBody"]["content"]["application/json"]
    if "example" in media:
        return media["example"]
    for shown in media.get("examples", {}).values():
        return {name: PASSWORD if value == "********" else value for name, value in shown["value"].items()}
    return smallest({"$ref": f"#/components/schemas/{operation.body}"})


def smallest(schema: dict[str, Any]) -> Any:
    if name := ref(schema):
        schema = CONTRACT["components"]["schemas"][name]
    if "example" in schema:
        return schema["example"]
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: smallest(schema["properties"][name]) for name in schema.get("required", ())}
        case "array":
            return [smallest(schema["items"])]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    return PASSWORD if schema.get("format") == "password" else "x" * schema.get("minLength", 1)


@pytest.mark.parametrize("operation", NOT_BUILT, ids=by_id)
def test_what_is_not_built_answers_501_in_the_shape_of_its_family(
    service: Service, operation: Operation
) -> None:
    answer = call(service, operation, {"project_id": service.facts.project_id}, example(operation))
    assert answer.status_code == 501, answer.text
    body = answer.json()
    match operation.family:
        case "v2":
            assert body["error_code"] == "DCS.5501"
            assert operation.id in body["error_msg"]
        case "v1":
            assert body["error"]["code"] == "111501501"
            assert operation.id in body["error"]["message"]
        case "iam":
            assert body["error"]["code"] == 501
        case "vpc" | "ecs":
            assert body["code"] == "DCS.5501"


READS = [o for o in BUILT if o.method == "GET" and "{" not in o.path.replace("{project_id}", "")]


@pytest.mark.parametrize("operation", READS, ids=by_id)
def test_every_list_answers_with_success(service: Service, steady: Cache, operation: Operation) -> None:
    answer = call(service, operation, {"project_id": service.facts.project_id})
    assert answer.status_code == operation.success, answer.text


def named(service: Service, steady: Cache) -> dict[str, str]:
    """Ids of things that are there, by the names that paths have for them."""
    facts = service.facts
    rules = service.http("GET", f"/v1/{facts.project_id}/security-group-rules").json()["security_group_rules"]
    task = steady.tasks()[0]["id"]
    node = steady.http("GET", "/logical-nodes").json()["nodes"][0]
    return {
        "project_id": facts.project_id,
        "instance_id": steady.id,
        "task_id": task,
        "job_id": task,
        "group_id": node["group_id"],
        "node_id": node["node_id"],
        "vpc_id": facts.vpc_id,
        "subnet_id": facts.subnet_id,
        "network_id": facts.subnet_id,
        "security_group_id": facts.security_group_id,
        "security_group_rule_id": rules[0]["id"],
        "template_id": "6",
        "history_id": changed_once(steady),
    }


def changed_once(cache: Cache) -> str:
    """The id of a change of the instance's parameters."""
    for value in ("127", "128"):
        asked = {"param_id": "27", "param_name": "slowlog-max-len", "param_value": value}
        assert cache.http("PUT", "/configs", json={"redis_config": [asked]}).status_code == 204
    return str(cache.http("GET", "/config-histories").json()["histories"][0]["history_id"])


@pytest.fixture(scope="module", params=list(FORMS))
def front(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """An instance behind proxies, of each type."""
    with Service(CACHEYARD_OVERCOMMIT="100") as service, made(service, **FORMS[request.param]) as cache:
        yield cache


def is_missing(answer: httpx.Response) -> bool:
    """Whether the answer says that there is no such thing. Of templates clients know a code of their own."""
    if answer.status_code == 400:
        return bool(answer.json()["error_code"] == "DCS.4988")
    return answer.status_code == 404


OF_CLUSTERS = ("validate_deletable_replica",)  # refused for the single-node instance that is asked here
SHOWS = [o for o in BUILT if o.method == "GET" and o not in READS and o.id not in OF_CLUSTERS]


@pytest.mark.parametrize("operation", SHOWS, ids=by_id)
def test_everything_that_is_there_is_shown_and_what_is_not_is_404(
    service: Service, steady: Cache, operation: Operation
) -> None:
    ids = named(service, steady)
    answer = call(service, operation, ids)
    assert answer.status_code == operation.success, answer.text
    if operation.id != "keystone_show_project":
        assert is_missing(call(service, operation, {"project_id": ids["project_id"]}))


OF_INSTANCES = [
    o for o in BUILT if o.method == "GET" and "{instance_id}" in o.path and o.id not in OF_CLUSTERS
]


@needs_program
def test_everything_about_an_instance_behind_proxies_is_shown(front: Cache) -> None:
    ids = named(front.service, front)
    for operation in OF_INSTANCES:
        answer = call(front.service, operation, ids)
        assert answer.status_code == operation.success, (operation.id, answer.text)


# (revoking the token of the others would be their end)
CHANGES = [o for o in BUILT if o.method != "GET" and o.id != "keystone_revoke_token"]


@pytest.fixture(scope="module")
def empty() -> Iterator[Service]:
    """A service of its own: what the examples make stays there."""
    with Service() as running:
        yield running


@pytest.mark.parametrize("operation", CHANGES, ids=by_id)
def test_every_change_of_what_is_not_there_answers_as_documented(
    empty: Service, operation: Operation
) -> None:
    body = example(operation)
    answer = call(empty, operation, {"project_id": empty.facts.project_id}, body)
    assert answer.status_code < 500
    if "_id}" in operation.path.replace("{project_id}", ""):
        assert is_missing(answer), answer.text


V1 = [o for o in OPERATIONS.values() if o.family == "v1" and o.project_scoped]


@pytest.mark.parametrize("operation", V1, ids=by_id)
def test_v1_nests_its_errors_with_codes_of_its_own(service: Service, operation: Operation) -> None:
    answer = call(service, operation, {"project_id": "somebody-elses"}, example(operation))
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "111401004"
    assert answer.json()["error"]["ext_message"] is None
