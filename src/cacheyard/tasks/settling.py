"""Waits until the agents have made an instance's nodes as they are wanted.

One watcher serves all tasks: it asks the store once per change for everybody, so that a hundred
instances being made at once do not ask a hundred times each.
"""

import asyncio
from contextlib import suppress

from cacheyard.domain.nodes import Role
from cacheyard.store import nodes
from cacheyard.store.db import Store
from cacheyard.tasks.errors import StepFailed

Which = tuple[str, Role | None]  # an instance and those of its nodes that are waited for; None: all

_LOOK_ANYWAY = 0.1  # seconds; agents in other processes change rows without waking us


class Settling:
    """Who waits for which nodes of which instance."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[Which, set[asyncio.Future[None]]] = {}
        self._last: dict[Which, str] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def settled(self, instance_id: str, seconds: float, *, role: Role | None = None) -> None:
        """Return when the nodes of the instance (in that role) are as wanted; `StepFailed` if they are not in
        time."""
        mine, which = asyncio.get_running_loop().create_future(), (instance_id, role)
        self._waiting.setdefault(which, set()).add(mine)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            await asyncio.wait_for(mine, seconds)
        except TimeoutError:
            last = self._last.pop(which, "nothing")
            raise StepFailed(f"the nodes were not ready in {seconds:g} s; last seen: {last}") from None
        finally:
            if (others := self._waiting.get(which)) is not None:
                others.discard(mine)
                if not others:
                    del self._waiting[which]

    async def _watch(self) -> None:
        with self._store.changes() as happened:
            while self._waiting:
                happened.clear()
                asked = list(self._waiting)
                late: dict[Which, str] = {}
                for node in await self._store.run(self._unsettled, {instance_id for instance_id, _ in asked}):
                    late[node.instance_id, node.role] = late[node.instance_id, None] = node.seen
                for which in asked:
                    if which in late:
                        self._last[which] = late[which]
                        continue
                    self._last.pop(which, None)
                    for future in self._waiting.get(which, ()):
                        if not future.done():
                            future.set_result(None)
                await asyncio.sleep(0)  # those who were told leave the list
                with suppress(TimeoutError):
                    await asyncio.wait_for(happened.wait(), _LOOK_ANYWAY)

    def _unsettled(self, instance_ids: set[str]) -> list[nodes.Unsettled]:
        with self._store.read() as tx:
            return nodes.unsettled(tx, instance_ids)
