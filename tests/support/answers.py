"""Holds answers against the contract: a documented status, and a body that fits its schema to the letter."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator

from cacheyard.api.router import Router
from cacheyard.contract.document import REF, load
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.errors import Refused

ROUTER = Router(OPERATIONS.values())
ERROR_SHAPES = {
    "v2": "ErrorResponse",
    "v1": "ErrorResponseV1",
    "iam": "ErrorResponseKeystone",
    "vpc": "ErrorResponseVpc",
    "ecs": "ErrorResponseVpc",
}
NEVER = (429, 500)


def check_answer(method: str, path: str, status: int, body: bytes) -> None:
    """Raise an AssertionError that names the operation and what does not fit."""
    where = f"{method} {path} answers {status}"
    assert status not in NEVER, f"{where}: {body[:500]!r}"
    try:
        operation, _ = ROUTER.find(method, path.partition("?")[0])
    except Refused as refused:  # no operation: the answer says so, in the shape of a family
        operation, expected = None, refused.status
    if operation is not None:
        check_operation(operation, status, body)
        return
    assert status == expected, where
    assert any(not faults(shape, _decoded(body)) for shape in ERROR_SHAPES.values()), where


def check_operation(operation: Operation, status: int, body: bytes) -> None:
    """The same for an operation that is known."""
    where = f"{operation.id} answers {status} with {body[:2000]!r}"
    responses = _responses(operation.id)
    assert str(status) in responses, f"{where}: not documented"
    schema = responses[str(status)]
    if _is_text(operation.id, status):
        body.decode()
        return
    if schema is None:
        assert body in (b"", b"{}"), where
        return
    found = [_shown(fault) for fault in _validator(operation.id, str(status)).iter_errors(_decoded(body))]
    assert not found, f"{where}\n" + "\n".join(found)


def faults(name: str, value: object) -> list[str]:
    """What of a value does not fit a schema of the contract."""
    return [_shown(fault) for fault in _of_schema({"$ref": REF + name}).iter_errors(value)]


def _shown(fault: Any) -> str:
    return f"{fault.json_path}: {fault.message[:300]}"


def _decoded(body: bytes) -> object:
    decoded: object = msgspec.json.decode(body)
    return decoded


@cache
def _contract() -> dict[str, Any]:
    """The contract in JSON Schema's own words: OpenAPI 3.0 writes `nullable`."""
    meant: dict[str, Any] = _translated(load())
    return meant


@cache
def _raw() -> dict[str, dict[str, Any]]:
    return {raw["operationId"]: raw for item in _contract()["paths"].values() for raw in item.values()}


@cache
def _responses(operation_id: str) -> dict[str, dict[str, Any] | None]:
    return {
        status: response.get("content", {}).get("application/json", {}).get("schema")
        for status, response in _raw()[operation_id]["responses"].items()
    }


@cache
def _is_text(operation_id: str, status: int) -> bool:
    return "text/plain" in _raw()[operation_id]["responses"][str(status)].get("content", {})


@cache
def _validator(operation_id: str, status: str) -> Draft202012Validator:
    return _of_schema(_responses(operation_id)[status] or {})


def _of_schema(schema: Mapping[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": _contract()["components"]})


def _translated(value: Any) -> Any:
    if isinstance(value, list):
        return [_translated(item) for item in value]
    if not isinstance(value, dict):
        return value
    meant = {key: _translated(item) for key, item in value.items() if key not in ("example", "nullable")}
    if value.get("nullable") is True:
        meant = {"anyOf": [{"type": "null"}, meant]}
    elif value.get("type") == "object" and "properties" in value and "additionalProperties" not in value:
        meant["additionalProperties"] = False  # what the contract does not have is not sent
    return meant
