"""Compiles a schema of the contract into a function that forgives what clients write and holds the limits.

Called by `api.parse` alone. A check takes a JSON value and returns the value as it is meant, or `ABSENT` when
it means "not set"; it raises `Bad` otherwise. Each schema is compiled once, when it is first needed.
"""

import math
import re
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import cache
from typing import Any, Final, Literal

from cacheyard.contract import types
from cacheyard.contract.document import Json, is_struct, load, ref


class _Absent(Enum):
    ABSENT = auto()


ABSENT: Final = _Absent.ABSENT
"""What a check returns for a value that sets nothing."""

Check = Callable[[object], object]
Schema = Mapping[str, Any]

WHOLE = re.compile(r"[+-]?[0-9]{1,19}(\.0{1,9})?")
DECIMAL = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?")
INT_MAX = {"int32": 2**31 - 1, "int64": 2**63 - 1}
TRUTH: dict[str, bool | Literal[_Absent.ABSENT]] = {"true": True, "false": False, "": ABSENT}


class Bad(Exception):  # noqa: N818 - becomes errors.Invalid at once
    """A value that cannot be meant. The way to it is collected while it is raised, innermost part first."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.code: str | None = None
        self.way: list[str] = []

    def inside(self, part: str, code: str | None) -> None:
        """Note where it was, and the error code of that place unless an inner one has its own."""
        self.way.append(part)
        self.code = self.code or code

    @property
    def parameter(self) -> str:
        """The dotted path, such as `tags[0].key`."""
        return "".join(reversed(self.way)).lstrip(".")


@cache
def check_named(name: str) -> Check:
    """The check of a schema under `components`."""
    return compiled(_schemas()[name], name)


@cache
def _schemas() -> Json:
    schemas: Json = load()["components"]["schemas"]
    return schemas


def compiled(schema: Schema, name: str | None = None) -> Check:
    """The check of a schema; `name` is the one it has under `components`."""
    if target := ref(schema):
        return check_named(target)
    match schema.get("type"):
        case "string":
            return _string(schema)
        case "integer":
            return _integer(schema)
        case "number":
            return _number(schema)
        case "boolean":
            return _boolean
        case "array":
            return _array(schema)
        case "object" if name is not None and is_struct(schema):
            return _struct(name, schema)
        case "object":
            return _map(schema)
    return _anything


# --- single values -------------------------------------------------------------------------------


def _string(schema: Schema) -> Check:
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    allowed = schema.get("enum")
    pattern = _pattern(schema["pattern"]) if "pattern" in schema else None
    empty_is_absent = allowed is not None or pattern is not None or least > 0

    def check(value: object) -> object:
        text = value if type(value) is str else _as_text(value)
        if not text and empty_is_absent:
            return ABSENT
        if "\0" in text or not (text.isascii() or _encodable(text)):
            raise Bad("it contains a character that is not allowed")
        if allowed is not None and text not in allowed:
            raise Bad(f"it must be one of {', '.join(allowed)}")
        if not least <= len(text) <= most:
            raise Bad(_length(least, most))
        if pattern is not None and not pattern.fullmatch(text):
            raise Bad(f"it must match {schema['pattern']}")
        return text

    return check


def _as_text(value: object) -> str:
    """Clients send bare numbers and booleans where the contract has a string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) <= INT_MAX["int64"]:
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    raise Bad("it must be a string")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pattern(pattern: str) -> re.Pattern[str]:
    """Anchors are dropped, as the whole value is matched: `$` alone would let a line break through."""
    return re.compile(pattern.removeprefix("^").removesuffix("$"), re.ASCII)


def _length(least: int, most: float) -> str:
    if most == math.inf:
        return f"it must have at least {least} characters"
    return (
        f"it must have {least} to {int(most)} characters" if least else f"it may have {int(most)} characters"
    )


def _integer(schema: Schema) -> Check:
    bound = INT_MAX[schema.get("format", "int64")]
    in_range = _range(schema, -bound - 1, bound)

    def check(value: object) -> object:
        if type(value) is int:
            number = value
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        elif isinstance(value, str):
            text = value.strip()
            if not text:
                return ABSENT
            if not WHOLE.fullmatch(text):
                raise Bad("it must be a whole number")
            number = int(text.partition(".")[0])
        else:
            raise Bad("it must be a whole number")
        in_range(number)
        return number

    return check


def _number(schema: Schema) -> Check:
    in_range = _range(schema, -math.inf, math.inf)

    def check(value: object) -> object:
        if isinstance(value, float) or type(value) is int:
            number = float(value) if abs(value) < 2**1000 else math.inf
        elif isinstance(value, str):
            text = value.strip()
            if not text:
                return ABSENT
            if not DECIMAL.fullmatch(text):
                raise Bad("it must be a number")
            number = float(text)
        else:
            raise Bad("it must be a number")
        if not math.isfinite(number):
            raise Bad("it must be a number")
        in_range(number)
        return number

    return check


def _range(schema: Schema, least: float, most: float) -> Callable[[float], None]:
    allowed = schema.get("enum")
    low, high = schema.get("minimum", least), schema.get("maximum", most)

    def check(number: float) -> None:
        if allowed is not None and number not in allowed:
            raise Bad(f"it must be one of {', '.join(str(a) for a in allowed)}")
        if number < low:
            raise Bad(f"it must be at least {low}")
        if number > high:
            raise Bad(f"it must be at most {high}")

    return check


def _boolean(value: object) -> object:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        truth = TRUTH.get(value.strip().lower())
        if truth is not None:
            return truth
    raise Bad("it must be true or false")


def _anything(value: object) -> object:
    return value


# --- lists and objects ---------------------------------------------------------------------------


def _array(schema: Schema) -> Check:
    item = compiled(schema.get("items", {}))
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)

    def check(value: object) -> object:
        if value == "":
            return ABSENT
        if not isinstance(value, list):
            raise Bad("it must be a list")
        if len(value) > most:
            raise Bad(f"it may have {most} items")
        items = []
        for index, sent in enumerate(value):
            try:
                meant = ABSENT if sent is None else item(sent)
            except Bad as bad:
                bad.inside(f"[{index}]", None)
                raise
            if meant is not ABSENT:
                items.append(meant)
        if len(items) < least:
            raise Bad(f"it must have at least {least} items")
        return items

    return check


def _struct(name: str, schema: Schema) -> Check:
    """An object with a type of its own. Unknown properties are ignored."""
    cls = getattr(types, name)
    attributes = dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))
    required = frozenset(schema.get("required", ()))
    properties = [
        (wire, attributes[wire], compiled(prop), wire in required, prop.get("x-error-code"))
        for wire, prop in schema.get("properties", {}).items()
    ]

    def check(value: object) -> object:
        if value == "":
            return ABSENT
        if not isinstance(value, dict):
            raise Bad("it must be an object")
        meant = {}
        for wire, attribute, verify, needed, code in properties:
            sent = value.get(wire)
            try:
                result = ABSENT if sent is None else verify(sent)
                if result is not ABSENT:
                    meant[attribute] = result
                elif needed:
                    raise Bad("it is required")
            except Bad as bad:
                bad.inside(f".{wire}", code)
                raise
        return cls(**meant)

    return check


def _map(schema: Schema) -> Check:
    """An object with free keys. A limit may be set for a key by name, else for all of them."""
    known = {wire: compiled(prop) for wire, prop in schema.get("properties", {}).items()}
    rest = schema.get("additionalProperties")
    other = compiled(rest) if isinstance(rest, dict) else _anything

    def check(value: object) -> object:
        if value == "":
            return ABSENT
        if not isinstance(value, dict):
            raise Bad("it must be an object")
        meant = {}
        for key, sent in value.items():
            if not key.isprintable():
                raise Bad("a name in it contains a character that is not allowed")
            try:
                result = ABSENT if sent is None else known.get(key, other)(sent)
            except Bad as bad:
                bad.inside(f".{key}", None)
                raise
            if result is not ABSENT:
                meant[key] = result
        return meant

    return check
