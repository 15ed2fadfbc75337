"""What the agent does about a node, as a table; what it reports of one; how long it waits."""

import msgspec
import pytest
from support.rows import node

from cacheyard.agent.decide import BACKOFF_FIRST, BACKOFF_LAST, Act, Seen, backoff, decide, state
from cacheyard.domain.nodes import NodeState, Run

NOW = 1000.0
NODE = node(ip="127.128.0.2", incarnation=2, generation=5)
UP = Seen(alive=True, answering=True, was_up=True, incarnation=2, generation=5)
DEAD = Seen(alive=False, was_up=True)
CLEAN = Seen(alive=False, directory=False)


@pytest.mark.parametrize(
    ("run", "seen", "act"),
    [
        # wanted up
        (Run.UP, UP, None),
        (Run.UP, DEAD, Act.START),
        (Run.UP, CLEAN, Act.START),
        (Run.UP, {"incarnation": 1}, Act.RESTART),
        (Run.UP, {"incarnation": 1, "answering": False}, Act.RESTART),
        (Run.UP, {"incarnation": 1, "generation": 4}, Act.RESTART),
        (Run.UP, {"generation": 4}, Act.APPLY),
        (Run.UP, {"generation": 4, "answering": False}, None),  # it loads, or hangs: when it answers
        (Run.UP, {"answering": False}, None),  # a hung server is not killed
        # wanted down
        (Run.DOWN, UP, Act.STOP),
        (Run.DOWN, {"answering": False}, Act.STOP),
        (Run.DOWN, DEAD, None),
        # wanted gone
        (Run.GONE, UP, Act.REMOVE),
        (Run.GONE, DEAD, Act.REMOVE),
        (Run.GONE, CLEAN, None),
        # failed lately
        (Run.UP, {"alive": False, "not_before": NOW + 1}, Act.WAIT),
        (Run.UP, {"alive": False, "not_before": NOW}, Act.START),
        (Run.UP, {"generation": 4, "not_before": NOW + 1}, Act.WAIT),
        (Run.UP, {"not_before": NOW + 1}, None),
        (Run.GONE, {"not_before": NOW + 1}, Act.WAIT),
    ],
)
def test_the_next_act(run: Run, seen: Seen | dict[str, object], act: Act | None) -> None:
    shown = seen if isinstance(seen, Seen) else msgspec.structs.replace(UP, **seen)
    assert decide(msgspec.structs.replace(NODE, run=run), shown, NOW) is act


@pytest.mark.parametrize(
    ("run", "seen", "reported"),
    [
        (Run.UP, UP, NodeState.ACTIVE),
        (Run.UP, msgspec.structs.replace(UP, answering=False), NodeState.INACTIVE),
        (Run.UP, msgspec.structs.replace(UP, answering=False, was_up=False), NodeState.CREATING),
        (Run.UP, DEAD, NodeState.INACTIVE),
        (Run.UP, CLEAN, NodeState.CREATING),
        (Run.DOWN, UP, NodeState.ACTIVE),
        (Run.DOWN, DEAD, NodeState.STOPPED),
        (Run.GONE, UP, NodeState.DELETING),
        (Run.GONE, DEAD, NodeState.DELETING),
        (Run.GONE, CLEAN, NodeState.GONE),
    ],
)
def test_the_state_that_is_reported(run: Run, seen: Seen, reported: NodeState) -> None:
    assert state(msgspec.structs.replace(NODE, run=run), seen) is reported


def test_waiting_grows_from_a_quarter_of_a_second_to_half_a_minute() -> None:
    assert backoff(0) == 0
    assert backoff(1) == BACKOFF_FIRST
    assert [backoff(n) for n in range(1, 5)] == [0.25, 0.5, 1.0, 2.0]
    assert backoff(9) == backoff(1000) == BACKOFF_LAST
