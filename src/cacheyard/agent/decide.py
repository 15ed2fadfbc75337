"""What to do about a node, given what is wanted and what is seen. Pure; the supervisor asks and acts."""

from enum import StrEnum

import msgspec

from cacheyard.domain.nodes import Node, NodeState, Run

BACKOFF_FIRST = 0.25  # seconds until a server that ended soon after its start is started again
BACKOFF_LAST = 30.0
STEADY = 10.0  # a server that ran this many seconds is started again at once when it ends


class Act(StrEnum):
    """One thing to do."""

    START = "start"
    RESTART = "restart"
    APPLY = "apply"  # change the running server
    STOP = "stop"
    REMOVE = "remove"  # process and directory
    WAIT = "wait"  # until `Seen.not_before`


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the agent sees it."""

    alive: bool
    directory: bool = True
    answering: bool = False  # answers PING, its data loaded
    was_up: bool = False  # has answered at some time in its life
    incarnation: int = 0  # in force in the living process
    generation: int = 0
    not_before: float = 0.0  # monotonic; failed lately, so not again until then


def decide(node: Node, seen: Seen, now: float) -> Act | None:
    """The next thing to do, or None when there is nothing to do, or only to wait for an answer."""
    act = _wanted(node, seen)
    if act is not None and now < seen.not_before:
        return Act.WAIT
    return act


def _wanted(node: Node, seen: Seen) -> Act | None:
    if node.run is Run.GONE:
        return Act.REMOVE if seen.alive or seen.directory else None
    if node.run is Run.DOWN:
        return Act.STOP if seen.alive else None
    if not seen.alive:
        return Act.START
    if seen.incarnation != node.incarnation:
        return Act.RESTART
    if seen.answering and seen.generation != node.generation:
        return Act.APPLY
    return None


def state(node: Node, seen: Seen) -> NodeState:
    """What to report of a node."""
    if node.run is Run.GONE:
        return NodeState.DELETING if seen.alive or seen.directory else NodeState.GONE
    if node.run is Run.DOWN and not seen.alive:
        return NodeState.STOPPED
    if seen.alive and seen.answering:
        return NodeState.ACTIVE
    return NodeState.INACTIVE if seen.was_up else NodeState.CREATING


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return 0.0 if failures == 0 else min(BACKOFF_FIRST * 2.0 ** min(failures - 1, 16), BACKOFF_LAST)
