"""Reads `openapi.json`, for those who need more of it than the generated modules hold.

Called by `generate`, by `api.checks` (schemas of bodies) and by `api.reference` (the docs page).
"""

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


def is_struct(schema: Json) -> bool:
    """Whether a schema has named properties only, and so a type of its own; free keys make it a dict."""
    return schema.get("type") == "object" and "additionalProperties" not in schema


def json_type(schema: Json) -> str | None:
    """The JSON type of a schema, null left aside."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((k for k in kind if k != "null"), None)
    return kind
