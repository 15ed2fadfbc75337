"""Runs tasks to their end, through crashes.

A service writes a task's row in the transaction of its request, then says `start`. Which steps are
done is in `task_steps`, which the API shows too; that is all there is to remember. What was under
way when the process died is begun again at the next `launch`, from the first step that is not done:
a step may run twice and must then change nothing. docs/architecture.md says why no library of
durable workflows stands here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import StepStatus, Task, TaskStatus
from cacheyard.store import tasks as task_rows
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.tools import Tools, release

log = structlog.get_logger()

_STORE_PAUSE = 5.0  # seconds


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
    """One per data directory: whoever launches it holds the directory's lock."""

    def __init__(self, tools: Tools, kinds: Mapping[str, Kind]) -> None:
        self._tools = tools
        self._store = tools.store
        self._kinds = kinds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[str, asyncio.Task[None]] = {}

    async def launch(self) -> None:
        """Begin what was under way, and be ready for more."""
        self._loop = asyncio.get_running_loop()
        for task_id in await self._tools.read(task_rows.unfinished):
            self._begin(task_id)

    def start(self, task_id: str) -> None:
        """Begin a task whose row has been committed. Any thread may call."""
        assert self._loop is not None  # noqa: S101
        self._loop.call_soon_threadsafe(self._begin, task_id)

    async def ended(self, task_id: str, seconds: float) -> Task | None:
        """Wait for a task that was started; the task as it is then, None if its record is gone."""
        await asyncio.sleep(0)  # `start` goes through the loop's queue
        if (running := self._running.get(task_id)) is not None:
            await asyncio.wait([running], timeout=seconds)
        return await self._tools.read(task_rows.get, task_id)

    async def close(self) -> None:
        """Stop where we are; the next launch goes on from there."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _begin(self, task_id: str) -> None:
        running = self._running[task_id] = asyncio.create_task(self._run(task_id))
        running.add_done_callback(lambda _: self._running.pop(task_id))

    async def _run(self, task_id: str) -> None:
        """The life of one task. While the store cannot be written (a full disk), it waits."""
        while True:
            try:
                return await self._live(task_id)
            except DBAPIError:
                log.exception("task waits for the store", task=task_id)
                await asyncio.sleep(_STORE_PAUSE)

    async def _live(self, task_id: str) -> None:
        """From the first step that is not done to the end."""
        task, done = await self._tools.read(_read, task_id)
        if task is None or task.status is not TaskStatus.EXECUTING:
            return
        kind, work, error = self._kinds[task.kind], Work(task, self._tools), task.error
        for number in range(done, len(kind.steps)):
            if error is not None:
                break
            error = await _attempt(kind.steps[number], work)
            await self._store.run(self._record, task_id, number, number + 1 == len(kind.steps), error)
        if error is not None:
            if await _attempt(kind.undo, work) is not None:
                await self._tools.write(release, task.instance_id, task_id, Status.ERROR)
            await self._store.run(self._end_failed, task_id)

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


def _read(tx: Connection, task_id: str) -> tuple[Task | None, int]:
    """The task, and how many of its steps are done."""
    steps = task_rows.steps(tx, task_id)
    return task_rows.get(tx, task_id), sum(step.status is StepStatus.FINISH for step in steps)


async def _attempt(act: Callable[[Work], Awaitable[None]], work: Work) -> str | None:
    """Do a step, or undo the work; why it failed, None if it did not."""
    task = work.task
    about = log.bind(task=task.id, kind=task.kind, step=act.__name__, instance=task.instance_id)
    try:
        await act(work)
    except StepFailed as failed:
        about.warning("step failed", why=str(failed))
        return str(failed)
    except Exception:  # noqa: BLE001 - the task loop: whatever a step does, the task must end
        about.exception("step broke")
        return "internal error"
    return None
