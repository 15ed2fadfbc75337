"""Bodies for any operation, from the contract: what is required, with values that fit."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cacheyard.contract.document import load, ref
from cacheyard.contract.model import Operation

SCHEMAS: dict[str, Any] = load()["components"]["schemas"]
_TEXTS = ("any-text", "Any-text-1", "1", "20260101000000")  # one of them fits every pattern of the contract
Way = tuple[str, ...]


def fitting(schema: Mapping[str, Any], name: str = "") -> Any:
    """A value that a schema allows."""
    if target := ref(schema):
        schema = SCHEMAS[target]
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            needed = schema.get("required", ())
            return {each: fitting(schema["properties"][each], each) for each in needed}
        case "array":
            return [fitting(schema.get("items", {}), name)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    if "password" in name:
        return "Some-password-1"
    pattern = schema.get("pattern", "")
    return next((text for text in _TEXTS if re.search(pattern, text)), "any-text")


def ways(operation: Operation, named: Mapping[str, str]) -> Iterator[tuple[Way, str, bool]]:
    """Where ids stand in an operation's body: the way there, the kind of id, whether it is a list of them.

    `named` says which properties have ids of which kind.
    """
    if operation.body is not None:
        yield from _ways(SCHEMAS[operation.body], (), named)


def _ways(schema: Mapping[str, Any], way: Way, named: Mapping[str, str]) -> Iterator[tuple[Way, str, bool]]:
    if len(way) > 2:
        return
    if target := ref(schema):
        schema = SCHEMAS[target]
    for name, below in schema.get("properties", {}).items():
        kind = named.get(name)
        if kind is not None and below.get("type") in ("string", "array"):
            yield (*way, name), kind, below["type"] == "array"
        else:
            yield from _ways(below, (*way, name), named)


def put(body: dict[str, Any], way: Way, value: Any) -> None:
    """Set the value at its place; what is missing on the way is made."""
    for name in way[:-1]:
        body = body.setdefault(name, {})
    body[way[-1]] = value
