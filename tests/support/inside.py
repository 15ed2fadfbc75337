"""An instance as the service itself knows it: its rows, its servers by the internal user, its tasks."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from support.caches import Cache

from cacheyard.clock import now_ms
from cacheyard.domain.nodes import Address, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, Task, TaskStatus
from cacheyard.engine.replication import standing
from cacheyard.store import instances, nodes
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.tasks.engine import Work
from cacheyard.tasks.tools import Tools


class Inside:
    """Beside a running service, whose agent does what the rows want."""

    def __init__(self, cache: Cache) -> None:
        data = cache.service.data
        self.cache = cache
        self.store = Store(data / "cacheyard.sqlite")
        self.tools = Tools(self.store, Sealer.of(data / "secret.key"))
        with self.store.read() as tx:
            found = instances.get(tx, cache.id)
        assert found is not None
        self.instance = found

    @property
    def nodes(self) -> list[Node]:
        """Their rows, by shard and number."""
        with self.store.read() as tx:
            return nodes.of_instance(tx, self.cache.id)

    @property
    def masters(self) -> dict[str, str]:
        """Ids of the nodes whose rows say that they are masters, by shard."""
        return {node.shard_id: node.id for node in self.nodes if node.role is Role.MASTER}

    def masters_in_fact(self) -> dict[str, str]:
        """Ids of the nodes that say so themselves."""

        async def ask() -> list[Node]:
            found = []
            for node in self.nodes:
                async with self.tools.link(self.instance, Address(node.ip, node.port)) as link:
                    if (await standing(link)).role is Role.MASTER:
                        found.append(node)
            return found

        found = asyncio.run(ask())
        assert len({node.shard_id for node in found}) == len(found), found
        return {node.shard_id: node.id for node in found}

    def call(self, ip: str, *words: str | int) -> Any:
        """Tell a server something that no tenant may."""

        async def tell() -> Any:
            async with self.tools.link(self.instance, Address(ip, self.instance.port)) as link:
                return await link.call(*words)

        return asyncio.run(tell())

    def begun(self, change: Change, arguments: Mapping[str, Any]) -> Work:
        """A task that holds the instance, and of which the service knows nothing: the test does its steps."""
        now = now_ms()
        task = Task(
            id=f"test-{now}",
            project_id=self.instance.project_id,
            instance_id=self.instance.id,
            kind=change,
            name="test",
            status=TaskStatus.EXECUTING,
            arguments=dict(arguments),
            details={},
            user_id="",
            user_name="",
            error=None,
            created_at=now,
            updated_at=now,
        )
        with self.store.write() as tx:
            assert instances.seize(
                tx, task.instance_id, status=Status.RUNNING, task_id=task.id, among=[Status.RUNNING]
            )
        return Work(task, self.tools)


@contextmanager
def inside(cache: Cache) -> Iterator[Inside]:
    """What the service knows of an instance."""
    found = Inside(cache)
    try:
        yield found
    finally:
        found.store.close()
