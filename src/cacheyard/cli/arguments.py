"""Reads the words after `cacheyard call <operation>` by what the contract says of the operation.

Called by `calling` alone. It checks kinds (a number is a number, JSON is JSON) and names; the limits
of the contract are the service's to hold, so that its refusals can be seen from here too.
"""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from cacheyard.contract.document import Json, ref
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS

OWN = {"data": "string", "json": "boolean", "help": "boolean", "body": "object"}
"""Options of the command itself, with their kinds."""

FILLED_IN = "project_id"  # in a path: known without being given


class Wrong(Exception):  # noqa: N818 - reads as what it says
    """What is wrong with the words, for people."""


@dataclass(frozen=True, slots=True)
class Option:
    """One parameter or top-level property of the body; of the same name in two places, it is set in both."""

    name: str
    places: tuple[str, ...]
    """`path`, `query`, `header`, `body`."""
    required: bool
    schema: Mapping[str, Any]
    kind: str
    items: str = ""
    """The kind of an array's items."""
    description: str = ""
    header: str = ""
    """What the header is called: it is given without the X- that most begin with."""


@dataclass(slots=True)
class Asked:
    """What the words ask for."""

    path: dict[str, str] = field(default_factory=dict)
    query: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    data: str | None = None
    json: bool = False
    help: bool = False


def find(word: str) -> Operation:
    """The operation that a word names, also as `ListInstances` or `list-instances`. Raises `Wrong`."""
    if word in OPERATIONS:
        return OPERATIONS[word]
    loose = {_loose(name): name for name in OPERATIONS}
    if _loose(word) in loose:
        return OPERATIONS[loose[_loose(word)]]
    near = difflib.get_close_matches(_loose(word), loose, n=4, cutoff=0.5)
    near += [name for name in loose if _loose(word) in name and name not in near][: 6 - len(near)]
    hint = f" Did you mean {_either([loose[name] for name in near])}?" if near else ""
    raise Wrong(f"there is no operation {word}.{hint} `cacheyard call` lists all.")


def options(operation: Operation, contract: Json) -> dict[str, Option]:
    """What can be given to an operation, by name, in the order of the contract."""
    schemas = contract["components"]["schemas"]
    raw = contract["paths"][operation.path][operation.method.lower()]
    told = {parameter["name"]: str(parameter.get("description", "")) for parameter in raw["parameters"]}
    found: dict[str, Option] = {}
    for parameter in operation.parameters:
        required = parameter.required and parameter.name != FILLED_IN
        header = parameter.name if parameter.where == "header" else ""
        name = header.removeprefix("X-").replace("-", "_").lower() or parameter.name
        found[name] = _option(
            name, (parameter.where,), required, parameter.schema, told[parameter.name], schemas, header
        )
    body = schemas[operation.body] if operation.body else {}
    for name, schema in body.get("properties", {}).items():
        if name in found:
            both = found[name]
            found[name] = replace(both, places=(*both.places, "body"))
            continue
        required = name in body.get("required", ())
        found[name] = _option(name, ("body",), required, schema, schema.get("description", ""), schemas)
    return found


def read(operation: Operation, known: Mapping[str, Option], words: Sequence[str]) -> Asked:
    """What the words after an operation's name ask for. Raises `Wrong`, also when a needed one is missing."""
    asked = Asked()
    given: dict[str, Any] = {}
    for name, text in _pairs(known, words):
        if name in OWN:
            _own(asked, name, text)
            continue
        option = known[name]
        if name not in given:
            given[name] = _value(option, text)
        elif option.kind == "array":
            given[name] += _value(option, text)
        else:
            raise Wrong(f"--{name} is given twice.")
    if asked.help:
        return asked
    missing = [
        name
        for name, option in known.items()
        if option.required and name not in given and (asked.body is None or option.places != ("body",))
    ]
    if missing:
        needed = ", ".join(f"--{name}" for name in missing)
        raise Wrong(f"{operation.id} needs {needed}. `cacheyard call {operation.id} --help` says more.")
    for name, value in given.items():
        for place in known[name].places:
            if place == "path":
                asked.path[name] = _text(value)
            elif place == "query":
                asked.query.append((name, _text(value)))
            elif place == "header":
                asked.headers[known[name].header] = _text(value)
            else:
                asked.body = {**(asked.body or {}), name: value}
    if operation.body is not None and operation.body_required and asked.body is None:
        asked.body = {}
    return asked


def _option(
    name: str,
    places: tuple[str, ...],
    required: bool,
    schema: Mapping[str, Any],
    description: str,
    schemas: Json,
    header: str = "",
) -> Option:
    whole = schemas[target] if (target := ref(schema)) else schema
    item = whole.get("items", {})
    inner = schemas[target] if (target := ref(item)) else item
    items = str(inner.get("type", "object")) if inner else ""
    return Option(
        name=name,
        places=places,
        required=required,
        schema=whole,
        kind=str(whole.get("type", "object")),
        items=items,
        description=description,
        header=header,
    )


def _pairs(known: Mapping[str, Option], words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Names as in the contract, with the text after each; None for a flag without one."""
    pairs: list[tuple[str, str | None]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-h":
            word = "--help"
        if not word.startswith("--") or word == "--":
            raise Wrong(f"what is {word!r}? Parameters are given as --name=value.")
        spelled, equals, value = word.removeprefix("--").partition("=")
        name = _name(known, spelled)
        kind = OWN.get(name) or known[name].kind
        if equals:
            pairs.append((name, value))
        elif kind == "boolean":
            bare = name in OWN or not rest or rest[0].lower() not in ("true", "false")
            pairs.append((name, None if bare else rest.pop(0)))
        elif not rest or rest[0].startswith("--"):
            raise Wrong(f"--{name} needs a value.")
        else:
            pairs.append((name, rest.pop(0)))
    return pairs


def _name(known: Mapping[str, Option], spelled: str) -> str:
    names = {*known, *OWN}
    if (same := spelled.replace("-", "_")) in names:
        return same
    alike = [name for name in names if name.lower() == same.lower()]
    if len(alike) == 1:
        return alike[0]
    near = difflib.get_close_matches(same, names, n=3, cutoff=0.6)
    hint = f" Did you mean {_either([f'--{name}' for name in near])}?" if near else ""
    raise Wrong(f"there is no parameter --{spelled}.{hint}")


def _own(asked: Asked, name: str, text: str | None) -> None:
    if name == "data":
        asked.data = text
    elif name == "body":
        asked.body = _body(text or "")
    else:
        setattr(asked, name, _boolean(name, text))


def _body(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        file = text.removeprefix("@")
        try:
            text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Wrong(f"--body: {error}") from None
    value = _json("body", text)
    if not isinstance(value, dict):
        raise Wrong("--body must be a JSON object.")
    return value


def _value(option: Option, text: str | None) -> Any:
    if option.kind == "boolean":
        return _boolean(option.name, text)
    said = text or ""
    match option.kind:
        case "integer":
            return _number(option.name, said, "a whole number", int)
        case "number":
            return _number(option.name, said, "a number", float)
        case "array":
            return _array(option, said)
        case "object":
            value = _json(option.name, said)
            if not isinstance(value, dict):
                raise Wrong(f"--{option.name} must be a JSON object.")
            return value
    return said


def _array(option: Option, text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        value = _json(option.name, text)
        if isinstance(value, list):
            return value
    if option.items != "string":
        raise Wrong(f"--{option.name} must be a JSON array.")
    return [part.strip() for part in text.split(",") if part.strip()]


def _boolean(name: str, text: str | None) -> bool:
    if text is not None and text.lower() not in ("true", "false"):
        raise Wrong(f"--{name} must be true or false.")
    return text is None or text.lower() == "true"


def _number(name: str, text: str, what: str, kind: type[int] | type[float]) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        raise Wrong(f"--{name} must be {what}.") from None
    if number != number or number in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN
        raise Wrong(f"--{name} must be {what}.")
    return int(number) if number == int(number) else number


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise Wrong(f"--{name} is not JSON: {error}.") from None


def _text(value: Any) -> str:
    """A value as it stands in a path or a query."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _loose(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
