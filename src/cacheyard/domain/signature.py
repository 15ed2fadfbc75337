"""SDK-HMAC-SHA256: how clients with an access key sign requests.

Pure functions for both sides: `services.signatures` rebuilds the signature of a request that came
in, the command line's `call` signs one that goes out. A signature covers the headers that its
SignedHeaders list names and no others: some clients sign no Host, some add X-Project-Id afterwards.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

import msgspec

ALGORITHM = "SDK-HMAC-SHA256"
DATE_HEADER = "x-sdk-date"
CONTENT_HEADER = "x-sdk-content-sha256"
UNSIGNED = "UNSIGNED-PAYLOAD"
WINDOW_MS = 15 * 60 * 1000  # a signature is good this long before and after its date
_DATE = "%Y%m%dT%H%M%SZ"
_SIGNATURE_DIGITS = 64
_HEX = frozenset("0123456789abcdef")


class Fault(Exception):  # noqa: N818 - reads as "what is wrong with the signature"
    """What is wrong with an Authorization header or the headers around it, for people."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a request that a signature covers, as they came over the wire."""

    method: str
    path: str  # raw: percent-encoded as sent, without the query
    query: str  # raw, without the question mark
    headers: Mapping[str, str]  # found by lower-case name; values as latin-1 text, as HTTP servers give them
    body: bytes = b""

    @property
    def reads(self) -> bool:
        """Whether the request changes nothing."""
        return self.method.upper() in ("GET", "HEAD")


class Authorization(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed Authorization header."""

    access: str
    signed_headers: tuple[str, ...]
    signature: str


def is_signed(header: str | None) -> bool:
    """Whether an Authorization header is meant for this module."""
    return header is not None and header.split(" ", 1)[0] == ALGORITHM


def parse(header: str) -> Authorization:
    """Take `SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=…` apart. Raises `Fault`."""
    algorithm, _, rest = header.strip().partition(" ")
    if algorithm != ALGORITHM:
        raise Fault(f"the algorithm must be {ALGORITHM}")
    fields: dict[str, str] = {}
    for part in rest.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name in fields:
            raise Fault("the Authorization header must be Access=…, SignedHeaders=…, Signature=…")
        fields[name] = value
    if fields.keys() != {"Access", "SignedHeaders", "Signature"} or not fields["Access"]:
        raise Fault("the Authorization header must have Access, SignedHeaders and Signature")
    signature = fields["Signature"].lower()
    if len(signature) != _SIGNATURE_DIGITS or not _HEX.issuperset(signature):
        raise Fault("the signature must be 64 hexadecimal digits")
    names = tuple(fields["SignedHeaders"].lower().split(";"))
    if len(set(names)) != len(names):
        raise Fault("a header is listed twice in SignedHeaders")
    # without it, a request that somebody caught could be given a new date
    if DATE_HEADER not in names:
        raise Fault("x-sdk-date must be among the signed headers")
    return Authorization(access=fields["Access"], signed_headers=names, signature=signature)


def signed_at(request: Request) -> int:
    """The date of a signature in epoch milliseconds. Raises `Fault`."""
    text = request.headers.get(DATE_HEADER)
    if text is None:
        raise Fault("the X-Sdk-Date header is missing")
    return int(_date(text).timestamp()) * 1000


def fits(request: Request, authorization: Authorization, secret: str) -> bool:
    """Whether the signature was made for this request with this secret. Raises `Fault`."""
    date = _date(request.headers.get(DATE_HEADER, "")).strftime(_DATE)
    good = False
    for payload in _payload_hashes(request):
        made = _sign(secret, date, _canonical(request, authorization.signed_headers, payload))
        good |= hmac.compare_digest(made, authorization.signature)
    return good


def sign(request: Request, access: str, secret: str, now_ms: int) -> dict[str, str]:
    """The headers to add to `request` so that it is signed: Authorization and X-Sdk-Date."""
    date = datetime.fromtimestamp(now_ms / 1000, UTC).strftime(_DATE)
    headers = {name.lower(): value for name, value in request.headers.items()} | {DATE_HEADER: date}
    names = tuple(sorted(name for name in headers if "_" not in name and name != "authorization"))
    dated = msgspec.structs.replace(request, headers=headers)
    made = _sign(secret, date, _canonical(dated, names, _digest(request.body)))
    signed = ";".join(names)
    return {
        "X-Sdk-Date": date,
        "Authorization": f"{ALGORITHM} Access={access}, SignedHeaders={signed}, Signature={made}",
    }


def show_date(ms: int) -> str:
    """A time as X-Sdk-Date spells it, for messages about clocks."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime(_DATE)


def _payload_hashes(request: Request) -> Sequence[str]:
    """What the last line of the canonical request may be."""
    digest = _digest(request.body)
    given = request.headers.get(CONTENT_HEADER)
    if given is None:
        return (digest,)
    if given == UNSIGNED:
        # Signers leave out a body only when it is not JSON; JSON is all that changes anything here.
        if request.body and "json" in request.headers.get("content-type", "json").lower():
            raise Fault(f"a JSON body must be signed, not {UNSIGNED}")
        return (UNSIGNED,) if request.body else (UNSIGNED, digest)
    if not hmac.compare_digest(given.lower().encode("latin-1", "replace"), digest.encode()):
        raise Fault("X-Sdk-Content-Sha256 does not match the body")
    return (given,) if given == digest else (given, digest)


def _canonical(request: Request, names: Sequence[str], payload: str) -> str:
    lines = [request.method.upper(), _canonical_path(request.path), _canonical_query(request.query)]
    for name in names:
        value = request.headers.get(name)
        if value is None:
            raise Fault(f"the signed header {name} is missing")
        lines.append(f"{name}:{_text(value).strip()}")
    return "\n".join([*lines, "", ";".join(names), payload])


def _canonical_path(raw: str) -> str:
    decoded = unquote_to_bytes(raw)
    path = "/".join(quote(segment, safe="~") for segment in decoded.split(b"/"))
    return path if path.endswith("/") else path + "/"


def _canonical_query(raw: str) -> str:
    pairs = []
    for part in raw.split("&"):
        if part:
            name, _, value = part.replace("+", " ").partition("=")
            pairs.append((unquote_to_bytes(name), unquote_to_bytes(value)))
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(pairs))


def _text(value: str) -> str:
    """A header's value as its sender meant it: HTTP servers show UTF-8 as latin-1."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _date(text: str) -> datetime:
    try:
        return datetime.strptime(text.strip(), _DATE).replace(tzinfo=UTC)
    except ValueError:
        raise Fault("X-Sdk-Date must look like 20260131T235959Z") from None


def _sign(secret: str, date: str, canonical: str) -> str:
    to_sign = f"{ALGORITHM}\n{date}\n{_digest(canonical.encode())}"
    return hmac.new(secret.encode(), to_sign.encode(), hashlib.sha256).hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
