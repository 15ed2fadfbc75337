"""Waits until the agents have made an instance's nodes as they are wanted.

One watcher serves all tasks: it asks the store once per change for everybody, so that a hundred
instances being made at once do not ask a hundred times each.
"""

import asyncio

from cacheyard.domain.nodes import Role
from cacheyard.store import nodes
from cacheyard.store.db import Store
from cacheyard.tasks.errors import StepFailed
from cacheyard.waiting import happens

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
        time, and as soon as one of their servers has refused to be."""
        mine, which = asyncio.get_running_loop().create_future(), (instance_id, role)
        self._waiting.setdefault(which, set()).add(mine)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(seconds):
                await mine
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
                refused: set[Which] = set()
                for node in await self._store.run(self._unsettled, {instance_id for instance_id, _ in asked}):
                    waited_for: tuple[Which, Which] = (
                        (node.instance_id, node.role),
                        (node.instance_id, None),
                    )
                    for which in waited_for:
                        if node.refused or which not in refused:
                            late[which] = node.seen
                        if node.refused:
                            refused.add(which)
                for which in asked:
                    if which in refused:
                        why = f"a server refuses what is wanted of it: {late[which]}"
                        self._tell(which, StepFailed(why))
                    elif which in late:
                        self._last[which] = late[which]
                    else:
                        self._tell(which)
                await asyncio.sleep(0)  # those who were told leave the list
                await happens(happened, _LOOK_ANYWAY)

    def _tell(self, which: Which, failed: StepFailed | None = None) -> None:
        self._last.pop(which, None)
        for future in self._waiting.get(which, ()):
            if future.done():
                continue
            if failed is not None:
                future.set_exception(failed)
            else:
                future.set_result(None)

    def _unsettled(self, instance_ids: set[str]) -> list[nodes.Unsettled]:
        with self._store.read() as tx:
            return nodes.unsettled(tx, instance_ids)
