"""Waits until the agents have made an instance's nodes as they are wanted.

One watcher serves all tasks: it asks the store once per change for everybody, so that a hundred
instances being made at once do not ask a hundred times each.
"""

import asyncio
from contextlib import suppress

from cacheyard.store import nodes
from cacheyard.store.db import Store
from cacheyard.tasks.errors import StepFailed

_LOOK_ANYWAY = 0.1  # seconds; agents in other processes change rows without waking us


class Settling:
    """Who waits for which instance."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._last: dict[str, str] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def settled(self, instance_id: str, seconds: float) -> None:
        """Return when all nodes of the instance are as wanted; `StepFailed` if they are not in time."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(instance_id, set()).add(mine)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            await asyncio.wait_for(mine, seconds)
        except TimeoutError:
            last = self._last.pop(instance_id, "nothing")
            raise StepFailed(f"the nodes were not ready in {seconds:g} s; last seen: {last}") from None
        finally:
            if (others := self._waiting.get(instance_id)) is not None:
                others.discard(mine)
                if not others:
                    del self._waiting[instance_id]

    async def _watch(self) -> None:
        with self._store.changes() as happened:
            while self._waiting:
                happened.clear()
                asked = list(self._waiting)
                unsettled = await self._store.run(self._unsettled, asked)
                for instance_id in asked:
                    if instance_id in unsettled:
                        self._last[instance_id] = unsettled[instance_id]
                        continue
                    self._last.pop(instance_id, None)
                    for future in self._waiting.get(instance_id, ()):
                        if not future.done():
                            future.set_result(None)
                await asyncio.sleep(0)  # those who were told leave the list
                with suppress(TimeoutError):
                    await asyncio.wait_for(happened.wait(), _LOOK_ANYWAY)

    def _unsettled(self, instance_ids: list[str]) -> dict[str, str]:
        with self._store.read() as tx:
            return nodes.unsettled(tx, instance_ids)
