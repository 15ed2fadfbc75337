"""Reads `openapi.json`, for those who need more of it than the generated modules hold.

Called by `generate`, by `api.checks` (schemas of bodies) and by `api.reference` (the docs page).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

FILE = Path(__file__).parent / "openapi.json"
REF = "#/components/schemas/"

Json = dict[str, Any]


def load() -> Json:
    """A fresh copy of the contract; reading it takes some milliseconds."""
    contract: Json = msgspec.json.decode(FILE.read_bytes())
    return contract


def is_struct(schema: Mapping[str, Any]) -> bool:
    """Whether a schema has named properties only, and so a type of its own; free keys make it a dict."""
    return schema.get("type") == "object" and "additionalProperties" not in schema


def ref(schema: Mapping[str, Any]) -> str | None:
    """The name of the schema that this one points to, be it bare or with a description beside it."""
    target: str | None = schema.get("$ref") or next((s.get("$ref") for s in schema.get("allOf", ())), None)
    return target.removeprefix(REF) if target else None
