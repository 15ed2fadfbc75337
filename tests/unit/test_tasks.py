"""Tasks end, whatever their steps do, and go on after a crash from the first step that is not done."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.region import open_region

from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import RUNBOOKS, StepStatus, Task, TaskStatus
from cacheyard.ids import new_id
from cacheyard.store import instances, tasks
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer
from cacheyard.tasks.engine import Engine, Kind, Work
from cacheyard.tasks.errors import StepFailed
from cacheyard.tasks.kinds import KINDS
from cacheyard.tasks.tools import Tools, release

Step = Callable[[Work], Awaitable[None]]


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    migrate(tmp_path / "db.sqlite")
    store = Store(tmp_path / "db.sqlite")
    yield Tools(store, Sealer.of(tmp_path / "key"))
    store.close()


def written(tools: Tools, steps: int) -> str:
    """The id of a task as a service writes it."""
    task = Task(
        id=new_id(),
        project_id="p",
        instance_id="i",
        kind="kind",
        name="name",
        status=TaskStatus.EXECUTING,
        arguments={},
        details={},
        user_id="u",
        user_name="user",
        error=None,
        created_at=1,
        updated_at=1,
    )
    with tools.store.write() as tx:
        tasks.add(tx, task, [f"step {number}" for number in range(steps)])
    return task.id


def run(tools: Tools, kind: Kind, task_id: str) -> Task:
    """The task when its life in one process is over."""

    async def live() -> Task | None:
        engine = Engine(tools, {"kind": kind})
        await engine.launch()
        return await engine.ended(task_id, 10)

    ended = asyncio.run(live())
    assert ended is not None
    return ended


def statuses(tools: Tools, task_id: str) -> list[StepStatus]:
    with tools.store.read() as tx:
        return [step.status for step in tasks.steps(tx, task_id)]


def noted(done: list[str], name: str, error: Exception | None = None) -> Step:
    async def step(_: Work) -> None:
        done.append(name)
        if error is not None:
            raise error

    return step


def test_every_kind_of_change_has_its_runbook() -> None:
    assert {change: kind.step_names for change, kind in KINDS.items()} == RUNBOOKS


def test_steps_are_done_in_order_and_recorded(tools: Tools) -> None:
    done: list[str] = []
    kind = Kind((noted(done, "a"), noted(done, "b")), noted(done, "undo"))
    task_id = written(tools, 2)
    assert run(tools, kind, task_id).status is TaskStatus.SUCCESS
    assert done == ["a", "b"]
    assert statuses(tools, task_id) == [StepStatus.FINISH, StepStatus.FINISH]


@pytest.mark.parametrize(
    ("error", "told"),
    [(StepFailed("the disk is full"), "the disk is full"), (ZeroDivisionError(), "internal error")],
)
def test_a_step_that_fails_is_undone_and_says_why(tools: Tools, error: Exception, told: str) -> None:
    done: list[str] = []
    kind = Kind((noted(done, "a"), noted(done, "b", error), noted(done, "c")), noted(done, "undo"))
    task_id = written(tools, 3)
    task = run(tools, kind, task_id)
    assert (task.status, task.error, done) == (TaskStatus.FAILED, told, ["a", "b", "undo"])
    assert statuses(tools, task_id) == [StepStatus.FINISH, StepStatus.FAILED, StepStatus.WAITING]


def test_a_task_ends_even_when_it_cannot_be_undone(tools: Tools) -> None:
    done: list[str] = []
    kind = Kind((noted(done, "a", StepFailed("no")),), noted(done, "undo", ZeroDivisionError()))
    assert run(tools, kind, written(tools, 1)).status is TaskStatus.FAILED


def test_after_a_crash_it_goes_on_with_the_first_step_that_is_not_done(tools: Tools) -> None:
    done: list[str] = []
    task_id = written(tools, 3)
    with tools.store.write() as tx:
        tasks.end_step(tx, task_id, 0)
        tasks.begin_step(tx, task_id, 1)
    kind = Kind((noted(done, "a"), noted(done, "b"), noted(done, "c")), noted(done, "undo"))
    assert run(tools, kind, task_id).status is TaskStatus.SUCCESS
    assert done == ["b", "c"]


def test_a_crash_between_failing_and_undoing_is_made_good(tools: Tools) -> None:
    done: list[str] = []
    task_id = written(tools, 2)
    with tools.store.write() as tx:
        tasks.end_step(tx, task_id, 0, "no")
        tasks.note_error(tx, task_id, "no")
    kind = Kind((noted(done, "a"), noted(done, "b")), noted(done, "undo"))
    task = run(tools, kind, task_id)
    assert (task.status, task.error, done) == (TaskStatus.FAILED, "no", ["undo"])


def test_what_has_ended_stays_as_it_is(tools: Tools) -> None:
    """Its last step ends it, and then it is done: nobody sees two times at which it ended."""
    task_id = written(tools, 1)

    def seen() -> tuple[Task | None, Sequence[object]]:
        with tools.store.read() as tx:
            return tasks.get(tx, task_id), tasks.steps(tx, task_id)

    with tools.store.write() as tx:
        tasks.end(tx, task_id, TaskStatus.SUCCESS)
    before = seen()
    with tools.store.write() as tx:
        tasks.end_step(tx, task_id, 0, "no")
        tasks.end(tx, task_id, TaskStatus.FAILED)
    assert seen() == before


@pytest.mark.parametrize(
    ("error", "ended", "status"),
    [(None, TaskStatus.SUCCESS, Status.RUNNING), ("no", TaskStatus.FAILED, Status.CREATEFAILED)],
)
def test_an_instance_is_given_back_and_its_task_ended_in_one(
    tmp_path: Path, error: str | None, ended: TaskStatus, status: Status
) -> None:
    with open_region(tmp_path) as region:
        region.host()
        instance_id = region.create("redis.single.xu1.tiny.128")
        with region.store.write() as tx:
            instance = instances.get(tx, instance_id)
            assert instance is not None
            assert instance.task_id is not None
            if error is not None:
                tasks.end_step(tx, instance.task_id, 0, error)
                tasks.note_error(tx, instance.task_id, error)
            release(tx, instance_id, instance.task_id, status)
            after, task = instances.get(tx, instance_id), tasks.get(tx, instance.task_id)
            first = tasks.steps(tx, instance.task_id)[0].status
        assert after is not None
        assert task is not None
        assert (after.status, after.task_id, task.status) == (status, None, ended)
        assert first is (StepStatus.FINISH if error is None else StepStatus.FAILED)
