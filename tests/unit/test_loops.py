"""The agent's loops outlive what fails in them, and tell of it."""

import asyncio

import pytest
import structlog

from cacheyard.agent import loops
from cacheyard.agent.loops import forever, tell_failure


def test_a_turn_that_fails_is_told_and_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "PAUSE_SECONDS", 0.0)
    turns = iter((None, ZeroDivisionError(), None, OSError("no disk"), None))

    async def turn() -> None:
        if (error := next(turns, asyncio.CancelledError())) is not None:
            raise error

    async def live() -> None:
        await forever(turn, "here")

    with structlog.testing.capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        asyncio.run(live())
    assert [(entry["event"], entry["at"], entry["exc_info"]) for entry in logs] == [
        ("agent stumbled", "here", True)
    ] * 2
    assert next(turns, None) is None


@pytest.mark.parametrize("fails", [True, False])
def test_a_task_that_nobody_waits_for_tells_why_it_failed(fails: bool) -> None:
    async def work() -> None:
        if fails:
            raise ZeroDivisionError

    async def live() -> None:
        task = asyncio.create_task(work())
        task.add_done_callback(lambda task: tell_failure(task, shard="s"))
        await asyncio.wait([task])
        given_up = asyncio.create_task(asyncio.sleep(60))
        given_up.add_done_callback(tell_failure)
        given_up.cancel()
        await asyncio.wait([given_up])

    with structlog.testing.capture_logs() as logs:
        asyncio.run(live())
    assert [(entry["shard"], type(entry["exc_info"])) for entry in logs] == [("s", ZeroDivisionError)] * fails
