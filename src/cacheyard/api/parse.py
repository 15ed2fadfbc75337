"""Turns what clients really send into the contract's types, and refuses what cannot be meant.

Called by the request handlers before a service runs. Clients write `"1"` for 1, 0 for "0", `""` or null for
"not set", and leave `{}` behind; `api.checks` forgives that and holds the limits of the contract. Nothing
here raises anything but `Refused`, whatever the bytes are.
"""

from collections.abc import Iterable, Mapping

import msgspec

from cacheyard.api.checks import ABSENT, Bad, Check, check_named, compiled
from cacheyard.contract.model import Operation, Parameter
from cacheyard.errors import EmptyBody, Invalid, NotJson

_checks: dict[str, tuple[tuple[Parameter, Check], ...]] = {}
"""The compiled parameters of an operation, by its id."""


def parse_parameters(
    operation: Operation,
    path: Mapping[str, str],
    query: Iterable[tuple[str, str]],
    headers: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """The parameters of path, query and headers by name, with the contract's defaults; what was not sent is
    missing. `headers` has its names in lower case.

    Of a query parameter that is sent twice the first value that is not empty counts. Unknown ones are
    ignored.
    """
    headers = headers or {}
    sent: dict[str, list[str]] = {}
    for name, text in query:
        sent.setdefault(name, []).append(text)
    named = {p.name: [headers[p.name.lower()]] for p in operation.parameters if p.name.lower() in headers}
    sent_by_place = {"path": {name: [text] for name, text in path.items()}, "query": sent, "header": named}
    values: dict[str, object] = {}
    for parameter, check in _compiled(operation):
        name = parameter.name
        value = _first(parameter, check, sent_by_place[parameter.where].get(name, []))
        if value is not ABSENT:
            values[name] = value
        elif "default" in parameter.schema:
            values[name] = parameter.schema["default"]
        elif parameter.required:
            raise _refused(parameter, "it is required")
    return values


def parse_body(operation: Operation, raw: bytes) -> msgspec.Struct | None:
    """The body as the type that `operation.body` names; None for an operation that takes none.

    A body that is left out where none is needed is one that sets nothing. A property that was not sent is
    None, also where the contract has a default: what an update leaves out must stay apart from what it sets.
    """
    if operation.body is None:
        return None
    sent = _decoded(raw) if raw and not raw.isspace() else None
    if sent is None:
        if operation.body_required:
            raise EmptyBody
        sent = {}
    if not isinstance(sent, dict):
        raise NotJson
    try:
        body = check_named(operation.body)(sent)
    except Bad as bad:
        raise Invalid(code=bad.code, parameter=bad.parameter, why=bad.why) from None
    assert isinstance(body, msgspec.Struct)  # noqa: S101 - the contract tests hold it for every operation
    return body


def _compiled(operation: Operation) -> tuple[tuple[Parameter, Check], ...]:
    if operation.id not in _checks:
        _checks[operation.id] = tuple((p, compiled(p.schema)) for p in operation.parameters)
    return _checks[operation.id]


def _first(parameter: Parameter, check: Check, texts: list[str]) -> object:
    for text in texts:
        try:
            value = check(text)
        except Bad as bad:
            raise _refused(parameter, bad.why) from None
        if value is not ABSENT:
            return value
    return ABSENT


def _refused(parameter: Parameter, why: str) -> Invalid:
    code = parameter.schema.get("x-error-code")
    return Invalid(code=str(code) if code else None, parameter=parameter.name, why=why)


def _decoded(raw: bytes) -> object:
    try:
        decoded: object = msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number out of every range, too deep
        raise NotJson from None
    return decoded
