"""`cacheyard call <operation> --name=value …`: any operation of the contract, over HTTP, as a client.

It signs requests with the first user's key, which it takes from the data directory, or with the key
of the environment; `arguments` reads the words, `table` shows the answer.
"""

import os
import secrets
import ssl
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import msgspec

from cacheyard.cli.arguments import FILLED_IN, OWN, Asked, Option, Wrong, find, options, read
from cacheyard.cli.places import settings_of
from cacheyard.clock import now_ms
from cacheyard.contract.document import load
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.domain import signature
from cacheyard.errors import Refused

if TYPE_CHECKING:
    import httpx

SECONDS = 60.0  # for an answer; the slowest operations wait 10 s for a task
ENVIRONMENT = (
    "CACHEYARD_ENDPOINT",
    "CACHEYARD_ACCESS_KEY",
    "CACHEYARD_SECRET_KEY",
    "CACHEYARD_PROJECT_ID",
)
CA = "CACHEYARD_CA"  # the file with the authority of an endpoint that this machine does not trust anyway
_NONCE = "X-Cacheyard-Nonce"  # signatures count seconds: it tells two equal calls within one apart


class NotReachable(Exception):  # noqa: N818 - reads as what it says
    """Why no service can be asked, and what to do."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Where the service is and who asks it."""

    endpoint: str
    access_key: str
    secret_key: str
    project_id: str
    ca_file: str = ""  # whom to trust; empty: whom this machine trusts

    def __repr__(self) -> str:
        return f"Account(endpoint={self.endpoint!r}, …)"


def call(operation: str, arguments: list[str]) -> int:
    """Call an operation and show its answer; without one, list them."""
    if operation in ("", "--help", "-h"):
        _list()
        return 0
    try:
        wanted = find(operation)
        known = options(wanted, load())
        asked = read(wanted, known, arguments)
        if asked.help:
            _help(wanted, known)
            return 0
        account = _account(asked.data)
    except Wrong as wrong:
        return _sorry(str(wrong), 2)
    except (NotReachable, Refused) as missing:
        return _sorry(str(missing), 1)
    return _ask(wanted, asked, account)


def _ask(operation: Operation, asked: Asked, account: Account) -> int:
    import httpx

    trusted: ssl.SSLContext | bool = False
    try:
        if account.endpoint.startswith("https:"):
            trusted = ssl.create_default_context(cafile=account.ca_file or None)
    except OSError as error:
        return _sorry(f"{account.ca_file} has no certificate to trust: {error}", 1)
    with httpx.Client(timeout=SECONDS, trust_env=False, verify=trusted) as client:
        try:
            answer = client.send(_request(client, operation, asked, account))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            return _sorry(f"{account.endpoint} does not answer ({why}). {_how_to_start(asked.data)}", 1)
    if answer.is_error:
        return _sorry(_refusal(answer), 1)
    if not answer.content.strip():
        if not asked.json:
            print("Done.")
        return 0
    if answer.headers.get("Content-Type", "").startswith("text/plain"):
        print(answer.text)
        return 0
    try:
        body = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return _sorry(f"{account.endpoint} did not answer with JSON: is it cacheyard?", 1)
    from cacheyard.cli import table

    if asked.json:
        table.print_json(answer.content)
    else:
        table.answer(table.console(), body, listing="list" in operation.id.split("_"))
    return 0


def _request(client: "httpx.Client", operation: Operation, asked: Asked, account: Account) -> "httpx.Request":
    """The request, signed over all that is sent."""
    values = {FILLED_IN: account.project_id} | asked.path
    path = operation.path
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    query = f"?{urlencode(asked.query, quote_via=quote)}" if asked.query else ""
    body = msgspec.json.encode(asked.body) if asked.body is not None else b""
    headers = {"Content-Type": "application/json", _NONCE: secrets.token_hex(8), **asked.headers}
    url = f"{account.endpoint.rstrip('/')}{path}{query}"
    request = client.build_request(operation.method, url, headers=headers, content=body)
    if not operation.public:
        raw_path, _, raw_query = request.url.raw_path.decode("ascii").partition("?")
        signed = signature.Request(
            method=operation.method,
            path=raw_path,
            query=raw_query,
            headers={**headers, "Host": request.headers["Host"]},
            body=body,
        )
        request.headers.update(signature.sign(signed, account.access_key, account.secret_key, now_ms()))
    return request


def _refusal(answer: "httpx.Response") -> str:
    """Code and message, in whichever of the API's forms they came."""
    try:
        body = msgspec.json.decode(answer.content, type=dict[str, object])
    except msgspec.DecodeError:
        return f"{answer.status_code} {answer.reason_phrase}"
    inner = body.get("error")
    told = inner if isinstance(inner, dict) else body
    code = told.get("error_code") or told.get("code") or answer.status_code
    return f"{code}: {told.get('error_msg') or told.get('message') or answer.reason_phrase}"


def _account(data: str | None) -> Account:
    """From the environment, unless a data directory is named."""
    if data is None and os.environ.get(ENVIRONMENT[0]):
        if missing := [name for name in ENVIRONMENT if not os.environ.get(name)]:
            raise Wrong(f"{ENVIRONMENT[0]} is set, so {', '.join(missing)} must be, too.")
        endpoint, access_key, secret_key, project_id = (os.environ[name] for name in ENVIRONMENT)
        if not endpoint.startswith(("http://", "https://")):
            raise Wrong(f"{ENVIRONMENT[0]} must begin with http:// or https://.")
        return Account(
            endpoint=endpoint,
            access_key=access_key,
            secret_key=secret_key,
            project_id=project_id,
            ca_file=os.environ.get(CA, ""),
        )
    from cacheyard.cli.running import running

    settings = settings_of(data)
    found = running(settings.run)
    if found is None or not found.endpoint:
        raise NotReachable(f"nothing serves from {settings.data}. {_how_to_start(data)}")
    from cacheyard.cli.yard import first_user, opened

    with opened(settings) as (store, sealer):
        first = first_user(store, sealer)
    return Account(
        endpoint=found.local or found.endpoint,
        access_key=first["access_key"],
        secret_key=first["secret_key"],
        project_id=first["project_id"],
        ca_file=found.ca_file or os.environ.get(CA, ""),
    )


def _how_to_start(data: str | None) -> str:
    where = f" --data {Path(data)}" if data else ""
    return f"`cacheyard up{where}` starts the service."


def _list() -> None:
    """Every operation, by chapter."""
    from cacheyard.api.bindings import BINDINGS
    from cacheyard.cli import table

    out = table.console()
    chapters: dict[str, list[Operation]] = {}
    for operation in OPERATIONS.values():
        chapters.setdefault(operation.tag, []).append(operation)
    for tag, operations in chapters.items():
        out.print(f"\n{tag}", style="bold", markup=False)
        for operation in operations:
            rest = "" if operation.id in BINDINGS else " (not built)"
            out.print(f"  {operation.id:<46} {operation.summary}{rest}", markup=False, no_wrap=True)
    print("\n`cacheyard call <operation> --help` lists its parameters.")


def _help(operation: Operation, known: dict[str, Option]) -> None:
    """How to call one operation."""
    from cacheyard.cli import table

    out = table.console()
    print(f"{operation.summary}: {operation.method} {operation.path}\n")
    print(f"cacheyard call {operation.id}{_usage(known.values())}\n")
    told = [
        {"parameter": f"--{option.name}", "kind": _kind(option), "": _about(option)}
        for option in known.values()
        if option.name != FILLED_IN
    ]
    own = {
        "data": "the data directory of the service",
        "json": "print the answer as JSON",
        "help": "print this",
        "body": "the whole body: JSON, or @file",
    }
    told += [
        {"parameter": f"--{name}", "kind": kind, "": own[name]}
        for name, kind in OWN.items()
        if name != "body" or operation.body is not None
    ]
    table.folded(out, told)


def _usage(known: Iterable[Option]) -> str:
    needed = [option for option in known if option.required]
    return "".join(f" --{option.name}=…" for option in needed)


def _kind(option: Option) -> str:
    kind = f"{option.kind} of {option.items}s" if option.kind == "array" and option.items else option.kind
    return f"{kind}, needed" if option.required else kind


def _about(option: Option) -> str:
    """The limits and the description of a parameter in a line."""
    schema = option.schema
    said = [option.description.rstrip(".")] if option.description else []
    if "enum" in schema:
        said.append(" | ".join(str(value) for value in schema["enum"]))
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None or most is not None:
        said.append(f"{'' if least is None else least}…{'' if most is None else most}")
    if "default" in schema:
        default = msgspec.json.encode(schema["default"]).decode().strip('"')
        said.append(f"{default} unless given")
    return "; ".join(said)


def _sorry(why: str, code: int) -> int:
    print(f"cacheyard: {why}", file=sys.stderr)
    return code
