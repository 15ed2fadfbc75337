"""What the steps of all tasks work with: the store, the instance and its nodes, its servers."""

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.engine.redis import Link
from cacheyard.store import instances, nodes
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.tasks.settling import Settling

T = TypeVar("T")


class Tools:
    """One per process."""

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self.store = store
        self.sealer = sealer
        self.settling = Settling(store)

    async def read(self, look: Callable[..., T], *arguments: Any) -> T:
        """What `look(tx, …)` finds, looked up in one of the store's threads."""

        def inside() -> T:
            with self.store.read() as tx:
                return look(tx, *arguments)

        return await self.store.run(inside)

    async def write(self, act: Callable[..., T], *arguments: Any) -> T:
        """Do `act(tx, …)` in one transaction, in one of the store's threads."""

        def inside() -> T:
            with self.store.write() as tx:
                return act(tx, *arguments)

        return await self.store.run(inside)

    def link(self, instance: Instance, address: Address) -> Link:
        """A connection to one of the instance's servers as the internal user."""
        return Link(address, self.sealer.open(instance.internal_secret), renamed=instance.rename_commands)


def look(tx: Connection, instance_id: str) -> tuple[Instance, list[Node]]:
    """The instance of a task and its nodes, masters first. It is there as long as the task holds it."""
    instance = instances.get(tx, instance_id)
    assert instance is not None  # noqa: S101
    return instance, sorted(nodes.of_instance(tx, instance_id), key=lambda node: node.role is not Role.MASTER)


def release(tx: Connection, instance_id: str, task_id: str, status: Status) -> None:
    """Give the instance back. The first time it runs, that is when it was launched."""
    instance = instances.get(tx, instance_id)
    instances.release(tx, instance_id, task_id, status=status)
    if instance is not None and instance.launched_at is None and status is Status.RUNNING:
        instances.change(tx, instance_id, launched_at=now_ms())
