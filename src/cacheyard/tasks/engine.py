"""Runs tasks to their end, through crashes: the only module that knows DBOS.

A service writes a task's row in the transaction of its request, then says `start`. From then on a
DBOS workflow of the same id sees to it that the task is run until it ends, whatever crashes; which
steps are done is in `task_steps`, which the API shows too. DBOS could journal each step as well, but
that would be the same fact in two places, and cost 6 ms a step. Tasks that were written but not yet
started when the process died are started at the next `launch`. A step may run twice and must then
change nothing.

DBOS lives in a file of its own: sharing ours, its connections would fight ours for SQLite's one
write lock. So a task is not enqueued inside the request's transaction; the sweep at launch closes
that gap. docs/architecture.md says why DBOS was chosen.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from dbos import DBOS, SetWorkflowID
from sqlalchemy.exc import DBAPIError

from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import StepStatus, Task, TaskStatus
from cacheyard.store import tasks as task_rows
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.tools import Tools, release

log = structlog.get_logger()

_EXECUTOR = "control"
_UNDER_WAY = ("PENDING", "ENQUEUED", "DELAYED")
_STORE_PAUSE = 5.0  # seconds
_VERSION = "1"  # constant: with another version DBOS would not take up what an older one began


@dataclass(frozen=True)
class Kind:
    """How a kind of task is done: its steps in order, and what to do when one of them fails."""

    steps: Sequence[Callable[["Work"], Awaitable[None]]]
    undo: Callable[["Work"], Awaitable[None]]

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names that `domain.tasks.RUNBOOKS` must have."""
        return tuple(step.__name__ for step in self.steps)


@dataclass(frozen=True)
class Work:
    """What a step has to work with."""

    task: Task
    tools: Tools


class Engine:
    """One per process; DBOS itself is one per process."""

    def __init__(self, tools: Tools, kinds: Mapping[str, Kind], journal: Path) -> None:
        self._tools = tools
        self._store = tools.store
        self._kinds = kinds
        self._journal = journal
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: dict[str, asyncio.Event] = {}
        self._starting: set[asyncio.Task[None]] = set()

    async def launch(self) -> None:
        """Take up what was under way, then be ready for more. Must run on the loop that steps will run on."""
        global _engine  # noqa: PLW0603 - DBOS wants its workflow at module level
        _engine = self
        self._loop = asyncio.get_running_loop()
        with self._store.read() as tx:
            unfinished = task_rows.unfinished(tx)
        if not unfinished or not _is_whole(self._journal):
            _forget(self._journal)
        _use_wal(self._journal)
        logging.getLogger("dbos").setLevel(logging.ERROR)
        DBOS(
            config={
                "name": "cacheyard",
                "system_database_url": f"sqlite:///{self._journal}",
                "executor_id": _EXECUTOR,
                "application_version": _VERSION,
                "log_level": "ERROR",
            }
        )
        DBOS.launch()
        for task_id in unfinished:
            workflow = await DBOS.get_workflow_status_async(task_id)
            if workflow is not None and workflow.status in _UNDER_WAY:
                continue  # DBOS has taken it up
            if workflow is not None:
                await DBOS.delete_workflow_async(task_id)
            await self._begin(task_id)

    def start(self, task_id: str) -> None:
        """Begin a task whose row has been committed. Any thread may call."""
        assert self._loop is not None  # noqa: S101
        self._loop.call_soon_threadsafe(self._start_here, task_id)

    async def ended(self, task_id: str, seconds: float) -> bool:
        """Wait for a task to end; whether it has."""
        event = self._ended.setdefault(task_id, asyncio.Event())
        try:
            if await self._store.run(self._has_ended, task_id):
                return True
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._ended.pop(task_id, None)
        return True

    async def close(self) -> None:
        """Stop where we are; the next launch goes on from there."""
        DBOS.destroy()

    def _start_here(self, task_id: str) -> None:
        starting = asyncio.ensure_future(self._begin(task_id))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)

    async def _begin(self, task_id: str) -> None:
        async def begin() -> None:
            with SetWorkflowID(task_id):
                await DBOS.start_workflow_async(_run, task_id)

        await _patiently(begin, task_id)

    async def run(self, task_id: str) -> None:
        """The life of one task; DBOS calls it again after a crash."""
        await _patiently(partial(self._live, task_id), task_id)

    async def _live(self, task_id: str) -> None:
        """From the first step that is not done to the end."""
        task, done = await self._store.run(self._read, task_id)
        if task is None or task.status is not TaskStatus.EXECUTING:
            return
        kind = self._kinds[task.kind]
        work = Work(task, self._tools)
        error = task.error
        for number in range(done, len(kind.steps)):
            if error is not None:
                break
            error = await self._attempt(kind.steps[number], work)
            await self._store.run(self._record, task_id, number, number + 1 == len(kind.steps), error)
        if error is not None:
            if await self._attempt(kind.undo, work) is not None:
                await self._tools.write(release, task.instance_id, task_id, Status.ERROR)
            await self._store.run(self._end_failed, task_id)
        if (event := self._ended.get(task_id)) is not None:
            event.set()

    async def _attempt(self, act: Callable[[Work], Awaitable[None]], work: Work) -> str | None:
        """Do a step, or undo the work; why it failed, None if it did not."""
        about = log.bind(
            task=work.task.id, kind=work.task.kind, step=act.__name__, instance=work.task.instance_id
        )
        try:
            await act(work)
        except StepFailed as failed:
            about.warning("step failed", why=str(failed))
            return str(failed)
        except Exception:  # noqa: BLE001 - the task loop: whatever a step does, the task must end
            about.exception("step broke")
            return "internal error"
        return None

    # The store's side, in its threads.

    def _read(self, task_id: str) -> tuple[Task | None, int]:
        """The task, and how many of its steps are done."""
        with self._store.read() as tx:
            steps = task_rows.steps(tx, task_id)
            return task_rows.get(tx, task_id), sum(step.status is StepStatus.FINISH for step in steps)

    def _has_ended(self, task_id: str) -> bool:
        with self._store.read() as tx:
            task = task_rows.get(tx, task_id)
        return task is None or task.status is not TaskStatus.EXECUTING

    def _record(self, task_id: str, number: int, last: bool, error: str | None) -> None:
        with self._store.note() as tx:
            task_rows.end_step(tx, task_id, number, error)
            if error is not None:
                task_rows.note_error(tx, task_id, error)
            elif last:
                task_rows.end(tx, task_id, TaskStatus.SUCCESS)
            else:
                task_rows.begin_step(tx, task_id, number + 1)

    def _end_failed(self, task_id: str) -> None:
        with self._store.note() as tx:
            task_rows.end(tx, task_id, TaskStatus.FAILED)


_engine: Engine


@DBOS.workflow(name="task")
async def _run(task_id: str) -> None:
    await _engine.run(task_id)


async def _patiently(act: Callable[[], Awaitable[None]], task_id: str) -> None:
    """Do it; as long as a database cannot be written (a full disk), try again."""
    while True:
        try:
            return await act()
        except DBAPIError:
            log.exception("task waits for the database", task=task_id)
            await asyncio.sleep(_STORE_PAUSE)


def _forget(journal: Path) -> None:
    """With no task under way the journal says nothing that our rows do not; this keeps it small."""
    for suffix in ("", "-wal", "-shm"):
        journal.with_name(journal.name + suffix).unlink(missing_ok=True)


def _is_whole(journal: Path) -> bool:
    """Whether the journal can be read. One that cannot must not keep the service from starting: which tasks
    are under way, and how far, is in our rows."""
    connection = sqlite3.connect(journal)
    try:
        whole: tuple[str] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        log.warning("journal of tasks cannot be read, begun anew", journal=str(journal), why=str(error))
        return False
    finally:
        connection.close()
    return whole[0] == "ok"


def _use_wal(journal: Path) -> None:
    """WAL is kept in the file, and halves what a step costs."""
    connection = sqlite3.connect(journal)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
