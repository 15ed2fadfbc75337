"""What the supervisor remembers: of each node, and of the work it does every so many seconds."""

import asyncio
import time
from collections.abc import Callable, Coroutine

from cacheyard.agent.decide import Seen, state
from cacheyard.agent.loops import tell_failure
from cacheyard.agent.pulse import Pulse
from cacheyard.agent.server import Server
from cacheyard.clock import now_ms
from cacheyard.domain.nodes import Node, NodeState
from cacheyard.store import nodes


class Watched:
    """A node, its server, and what the supervisor remembers of it."""

    def __init__(self, node: Node, server: Server) -> None:
        self.node = node
        self.server = server
        self.vanished = False  # its row is no longer there
        self.directory = server.directory.exists()
        self.answering = False
        self.sure = True  # whether `answering` is known; not so between adoption and the first answer
        self.stopped = False  # when the keeper last looked
        self.was_up = node.seen_incarnation > 0
        self.failures = 0
        self.not_before = 0.0
        self.error: str | None = None
        self.refused = node.seen_refused  # the generation that the server refused last
        self.task: asyncio.Task[None] | None = None
        self.pulse: Pulse | None = None
        self.reported = nodes.Report(
            node_id=node.id,
            state=node.seen_state,
            since=node.seen_since,
            incarnation=node.seen_incarnation,
            generation=node.seen_generation,
            pid=node.seen_pid,
            error=node.seen_error,
            expires=node.seen_expires,
            refused=node.seen_refused,
        )

    @property
    def seen(self) -> Seen:
        """For `decide`."""
        record = self.server.process.record if self.server.process is not None else None
        return Seen(
            alive=self.server.alive,
            directory=self.directory,
            answering=self.answering,
            was_up=self.was_up,
            incarnation=record.incarnation if record else 0,
            generation=record.generation if record else 0,
            not_before=self.not_before,
        )

    def report(self) -> nodes.Report:
        """What the row should say."""
        seen = self.seen
        now = state(self.node, seen)
        known = seen.alive and self.was_up  # else what its last process had stays
        return nodes.Report(
            node_id=self.node.id,
            state=now,
            since=self.reported.since if now is self.reported.state else now_ms(),
            incarnation=seen.incarnation if known else self.reported.incarnation,
            generation=seen.generation if known else self.reported.generation,
            pid=self.server.process.pid if now is NodeState.ACTIVE and self.server.process else None,
            error=self.error,
            expires=self.server.expires if self.node.settings.tls else None,
            refused=self.refused,
        )


class Chore:
    """Work that the loop starts every so many seconds, if it is not still at it.

    When it fails, that is logged, and it is done again when it is due.
    """

    def __init__(self, name: str, seconds: float, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._due = time.monotonic() + seconds
        self._task: asyncio.Task[None] | None = None

    def start_if_due(self) -> None:
        """Called each turn of the loop."""
        if self._task is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._seconds
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(self._done)

    def stop(self) -> None:
        """Give it up."""
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._task = None
        tell_failure(task, at=self._name)
