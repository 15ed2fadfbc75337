"""The audit log: who did what, when, from where and with which result.

`api.app` tells it of each request when the answer is made; nobody waits for the entry to be written.
Entries that come while others are being written are written together. What is lost when the process
is killed is the last moment; when it is stopped, nothing.
"""

import asyncio
import re
from collections import deque
from collections.abc import Iterator, Mapping

import msgspec
import structlog

from cacheyard.clock import now_ms
from cacheyard.contract.model import Operation
from cacheyard.domain.identity import Principal
from cacheyard.errors import Forbidden, Refused, Unauthenticated
from cacheyard.store import audit as rows
from cacheyard.store.audit import Entry
from cacheyard.store.db import FAULTS, Store

log = structlog.get_logger()

WAITING = 10_000  # entries in memory, when the database cannot be written
PAUSE = 1.0  # seconds, until that is tried again
DAY = 86_400_000  # ms
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_RESOURCES = 200  # ids of an entry; batches have up to 50


class AuditLog:
    """One in a process. `add` what is to be kept; `close` waits until all of it is written."""

    def __init__(self, store: Store, *, reads: bool = False) -> None:
        """`reads`: whether requests that change nothing are kept too."""
        self._store = store
        self._reads = reads
        self._waiting: deque[Entry] = deque()
        self._writing: asyncio.Task[None] | None = None

    def wants(self, operation: Operation, refused: Refused | None, *, tried_out: bool) -> bool:
        """Whether a request is kept: what may have changed something, and who was not let in."""
        if self._reads or isinstance(refused, Unauthenticated | Forbidden):
            return True
        return operation.method not in ("GET", "HEAD") and not tried_out

    def add(self, entry: Entry) -> None:
        """Keep an entry; it is written soon."""
        if len(self._waiting) >= WAITING:
            log.error("audit entry lost", request=entry.request_id, operation=entry.operation)
            return
        self._waiting.append(entry)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what is left, if that can be done."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=5 * PAUSE)

    async def _write(self) -> None:
        while self._waiting:
            entries = list(self._waiting)
            try:
                await self._store.run(self._add, entries)
            except FAULTS as error:
                log.error("audit log not written", entries=len(entries), error=str(error))
                await asyncio.sleep(PAUSE)
            else:
                for _ in entries:
                    self._waiting.popleft()

    def _add(self, entries: list[Entry]) -> None:
        with self._store.note() as tx:
            rows.add(tx, entries)


def forget(store: Store, days: float) -> None:
    """Delete what is older than that many days."""
    with store.note() as tx:
        rows.forget(tx, now_ms() - int(days * DAY))


def entry(
    request_id: str,
    operation: Operation,
    *,
    who: Principal,
    path_values: Mapping[str, str],
    body: object,
    answer: object,
    status: int,
    refused: Refused | None,
    source: str,
) -> Entry:
    """What is kept of a request. Of its body and its answer ids alone, so that no secret can be among it."""
    user_id, user_name = who.user_id or None, who.user_name or None
    if refused is not None and user_id is None:  # not let in, but the user is known
        user_id, user_name = refused.facts.get("user_id"), refused.facts.get("user_name")  # type: ignore[assignment]
    told = msgspec.to_builtins(answer) if answer is not None and operation.method != "GET" else None
    if operation.id == "keystone_create_user_token_by_password":
        if isinstance(told, dict):
            user = told["token"]["user"]
            user_id, user_name = user["id"], user["name"]
        told = None
    return Entry(
        at=now_ms(),
        request_id=request_id,
        user_id=user_id,
        user_name=user_name,
        project_id=who.project_id or (path_values.get("project_id") if operation.project_scoped else None),
        operation=operation.id,
        action=operation.action,
        resources=list(dict.fromkeys(_resources(path_values, body, told)))[:_RESOURCES],
        status=status,
        error_code=refused.code if refused is not None else None,
        source=source,
    )


def _resources(path_values: Mapping[str, str], body: object, answer: object) -> Iterator[str]:
    """Ids that a request was about: of its path, of a batch, and of what it made."""
    named = [value for name, value in path_values.items() if name != "project_id"]
    batch = getattr(body, "instances", None)
    for value in (*named, *(batch if isinstance(batch, list) else ())):
        if isinstance(value, str) and _ID.fullmatch(value):
            yield value
    yield from _made(answer)


def _made(answer: object, depth: int = 2) -> Iterator[str]:
    match answer:
        case list():
            for each in answer:
                yield from _made(each, depth)
        case dict():
            for name, value in answer.items():
                if name in ("instance_id", "id", "template_id") and isinstance(value, str):
                    yield value
                elif depth and isinstance(value, dict | list):
                    yield from _made(value, depth - 1)
