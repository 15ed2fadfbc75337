"""HTTP in, HTTP out: each request goes through the list of handlers below, in one of the store's threads."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cacheyard import errors
from cacheyard.api import audit, downloads, reference, refusals
from cacheyard.api.bindings import BINDINGS
from cacheyard.api.keystone import Reply
from cacheyard.api.parse import parse_body, parse_parameters
from cacheyard.api.router import Router
from cacheyard.clock import now_ms
from cacheyard.contract.model import Family, Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.contract.types import DryRunResponse
from cacheyard.domain import signature
from cacheyard.domain.identity import Principal
from cacheyard.domain.permissions import allows
from cacheyard.domain.tasks import Task, TaskStatus
from cacheyard.ids import new_id
from cacheyard.services import identity
from cacheyard.services.call import DRY_RUN, Begun, Call, House, NoContent

log = structlog.get_logger()

TaskEnded = Callable[[str, float], Awaitable[Task | None]]  # waits for a task that many seconds

WAIT_SECONDS = 10.0  # how long a request waits for a task whose end its answer promises
_NOBODY = Principal(user_id="", user_name="", domain_id="", domain_name="")


@dataclass
class Exchange:
    """One request on its way; each handler adds what it found."""

    id: str
    method: str
    path: str  # percent-encoded
    query: str
    headers: dict[str, str]
    query_items: list[tuple[str, str]]
    body: bytes
    base_url: str
    connection: str  # the client's address and port
    operation: Operation | None = None
    path_values: dict[str, str] = field(default_factory=dict)
    who: Principal = _NOBODY
    parameters: dict[str, Any] = field(default_factory=dict)
    parsed: Any = None
    answer: Any = None

    @property
    def family(self) -> Family:
        """How this request's errors are written."""
        return self.operation.family if self.operation is not None else refusals.family_of(self.path)


class Api:
    """The ASGI application behind everything but the reference."""

    def __init__(self, house: House, task_ended: TaskEnded, audit_log: audit.AuditLog) -> None:
        self._house = house
        self._audit = audit_log
        self._task_ended = task_ended
        self._router = Router(OPERATIONS.values())
        self._signatures = identity.Signatures(house.store)
        self._handlers = (
            self._find_operation,
            self._authenticate,
            self._authorize,
            self._parse,
            self._perform,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever happens inside, an answer comes out."""
        began = time.perf_counter()
        request = Request(scope, receive)
        exchange = Exchange(
            id=new_id(),
            method=request.method,
            path=scope["raw_path"].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            query_items=request.query_params.multi_items(),
            body=b"",
            base_url=f"{request.url.scheme}://{request.url.netloc}",
            connection=f"{request.client.host}:{request.client.port}" if request.client else "",
        )
        refusal: errors.Refused | None = None
        try:
            exchange.body = await self._read(request)
            await self._house.store.run(self._handle, exchange)
            response = await self._finish(exchange)
        except errors.Refused as refused:
            refusal = refused
        except Exception:
            log.exception("request broke", request=exchange.id, method=exchange.method, path=exchange.path)
            refusal = errors.Failed(request_id=exchange.id)
        if refusal is not None:
            response = _refusal(refusal, exchange)
        self._keep(exchange, response.status_code, refusal)
        response.headers["X-Request-Id"] = exchange.id
        await response(scope, receive, send)
        log.info(
            "request",
            request=exchange.id,
            method=exchange.method,
            path=exchange.path,
            status=response.status_code,
            user=exchange.who.user_name,
            took_ms=round((time.perf_counter() - began) * 1000, 1),
        )

    def _keep(self, exchange: Exchange, status: int, refusal: errors.Refused | None) -> None:
        operation = exchange.operation
        tried_out = bool(exchange.parameters.get(DRY_RUN))
        if operation is None or not self._audit.wants(operation, refusal, tried_out=tried_out):
            return
        answer = exchange.answer if refusal is None else None
        kept = audit.entry(
            exchange.id,
            operation,
            who=exchange.who,
            path_values=exchange.path_values,
            body=exchange.parsed,
            answer=answer.answer if isinstance(answer, Begun | Reply) else answer,
            status=status,
            refused=refusal,
            source=exchange.connection.rpartition(":")[0],
        )
        self._audit.add(kept)

    async def _read(self, request: Request) -> bytes:
        limit = self._house.settings.body_limit
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise errors.Invalid(parameter="body", why=f"it is larger than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    def _handle(self, exchange: Exchange) -> None:
        for handler in self._handlers:
            handler(exchange)

    # The handlers, in their order.

    def _find_operation(self, exchange: Exchange) -> None:
        exchange.operation, exchange.path_values = self._router.find(exchange.method, exchange.path)

    def _authenticate(self, exchange: Exchange) -> None:
        if _operation(exchange).public:
            return
        store, now = self._house.store, now_ms()
        if signature.is_signed(exchange.headers.get("authorization")):
            facts = signature.Request(
                method=exchange.method,
                path=exchange.path,
                query=exchange.query,
                headers=exchange.headers,
                body=exchange.body,
            )
            sealer = self._house.sealer
            exchange.who = identity.authenticate_signature(
                store, sealer, self._signatures, facts, connection=exchange.connection, now=now
            )
        else:
            exchange.who = identity.authenticate_token(store, exchange.headers.get("x-auth-token"), now=now)

    def _authorize(self, exchange: Exchange) -> None:
        operation = _operation(exchange)
        if operation.public:
            return
        store = self._house.store
        if operation.project_scoped:
            exchange.who = identity.for_project(store, exchange.who, exchange.path_values["project_id"])
        elif operation.family in ("vpc", "ecs") and exchange.headers.get("x-project-id"):
            exchange.who = identity.for_project(store, exchange.who, exchange.headers["x-project-id"])
        else:
            exchange.who = identity.any_role(store, exchange.who)
        who = exchange.who
        if operation.action is not None and not allows(who.roles, operation.action, who.policies):
            raise errors.Forbidden(action=operation.action)

    def _parse(self, exchange: Exchange) -> None:
        operation = _operation(exchange)
        if operation.id not in BINDINGS:
            raise errors.NotBuilt(what=operation.id)
        exchange.parameters = parse_parameters(
            operation, exchange.path_values, exchange.query_items, exchange.headers
        )
        _check_trial(operation, exchange)
        exchange.parsed = parse_body(operation, exchange.body)

    def _perform(self, exchange: Exchange) -> None:
        call: Call[Any] = Call(
            house=self._house,
            who=exchange.who,
            parameters=exchange.parameters,
            body=exchange.parsed,
            base_url=exchange.base_url,
            headers=exchange.headers,
        )
        exchange.answer = BINDINGS[_operation(exchange).id](call)

    async def _finish(self, exchange: Exchange) -> Response:
        answer, headers = exchange.answer, {}
        if isinstance(answer, Begun):
            if answer.wait:
                task = await self._task_ended(answer.task_id, WAIT_SECONDS)
                if task is not None and task.status is TaskStatus.FAILED:
                    raise errors.WorkFailed(why=task.error)
            answer = answer.answer
        if exchange.parameters.get(DRY_RUN):
            headers = {DRY_RUN: "true"}  # clients may see that it was understood
        if isinstance(answer, DryRunResponse):
            return _json(200, answer, headers)
        if isinstance(answer, NoContent):
            return _json(204, None, headers)
        if isinstance(answer, Reply):
            answer, headers = answer.answer, answer.headers
        return _json(_operation(exchange).success, answer, headers)


def application(house: House, task_ended: TaskEnded, audit_log: audit.AuditLog) -> Starlette:
    """The whole of what is served: the reference, and the API for every other path."""
    app = Starlette(routes=[*reference.routes(BINDINGS), *downloads.routes(house)])
    # a route would let a path with a line break slip by
    app.router.default = Api(house, task_ended, audit_log)
    return app


def _operation(exchange: Exchange) -> Operation:
    assert exchange.operation is not None  # noqa: S101 - the first handler found it, or refused
    return exchange.operation


def _check_trial(operation: Operation, exchange: Exchange) -> None:
    """Who believes to try out must not really change something."""
    asked = exchange.headers.get(DRY_RUN.lower(), "").strip().lower() not in ("", "false")
    if asked and operation.method != "GET" and all(p.name != DRY_RUN for p in operation.parameters):
        raise errors.Invalid(parameter=DRY_RUN, why=f"{operation.id} cannot be tried out")


def _refusal(refused: errors.Refused, exchange: Exchange) -> Response:
    return _json(refused.status, refusals.body(refused, exchange.family))


def _json(status: int, answer: Any, headers: dict[str, str] | None = None) -> Response:
    if status == 204:
        return Response(status_code=status, headers=headers)
    if isinstance(answer, str):  # as clients want it of the few operations that the contract types so
        return Response(answer, status_code=status, headers=headers, media_type="text/plain")
    content = b"{}" if answer is None else msgspec.json.encode(answer)
    return Response(content, status_code=status, headers=headers, media_type="application/json")
