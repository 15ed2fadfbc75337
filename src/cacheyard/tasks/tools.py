"""What the steps of all tasks work with: the store, the instance and its nodes, its servers."""

from collections.abc import Callable
from ssl import SSLContext
from typing import Any, TypeVar

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain.instances import Instance, encrypted_servers, guarded
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import TaskStatus
from cacheyard.engine.redis import Link
from cacheyard.store import instances, nodes, shards, tasks
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.tasks.settling import Settling

T = TypeVar("T")


class Tools:
    """One per process."""

    def __init__(self, store: Store, sealer: Sealer, trust: SSLContext | None = None) -> None:
        """`trust`: for connections to servers that speak TLS."""
        self.store = store
        self.sealer = sealer
        self.trust = trust
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
        return Link(
            address,
            self.sealer.open(instance.internal_secret),
            renamed=instance.rename_commands,
            trust=self.trust_of(instance),
        )

    def trust_of(self, instance: Instance) -> SSLContext | None:
        """For connections to the instance's servers; None: they speak without TLS."""
        return self.trust if encrypted_servers(instance) else None


def look(tx: Connection, instance_id: str) -> tuple[Instance, list[Node]]:
    """The instance of a task and its nodes, masters first. It is there as long as the task holds it."""
    instance = instances.get(tx, instance_id)
    assert instance is not None  # noqa: S101
    return instance, sorted(nodes.of_instance(tx, instance_id), key=lambda node: node.role is not Role.MASTER)


def release(tx: Connection, instance_id: str, task_id: str, status: Status) -> None:
    """Give the instance back, which ends the task: nobody sees the one without the other, and nothing can
    follow. The first time it runs, that is when it was launched. Whether it runs or is broken, its masters
    are watched: another node may be what helps. When another task has the instance already, as when a last
    step runs once more, nothing is done."""
    instance = instances.get(tx, instance_id)
    if instance is None or instance.task_id != task_id:
        return
    instances.release(tx, instance_id, task_id, status=status)
    task = tasks.get(tx, task_id)
    tasks.end(tx, task_id, TaskStatus.FAILED if task is not None and task.error else TaskStatus.SUCCESS)
    if status is Status.RUNNING and instance.launched_at is None:
        instances.change(tx, instance_id, launched_at=now_ms())
    if guarded(instance) and status in (Status.RUNNING, Status.ERROR):
        shards.watch(tx, instance_id, True)
