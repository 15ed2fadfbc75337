"""A change that needs a restart is undone with another one: else a server would stay on the new port."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.region import Region, open_region

from cacheyard.contract.types import ModifyInstanceBody
from cacheyard.domain.nodes import Node
from cacheyard.domain.statuses import Status
from cacheyard.services.call import Begun
from cacheyard.services.change import update_instance
from cacheyard.store import instances, nodes, tasks
from cacheyard.tasks import reconfigure
from cacheyard.tasks.engine import Work
from cacheyard.tasks.settling import Settling
from cacheyard.tasks.tools import Tools


class Settled(Settling):
    """Agents that are done at once."""

    async def settled(self, *_: object, **__: object) -> None:
        return


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as opened:
        yield opened


def test_a_port_that_was_taken_is_given_back_with_a_restart_however_often_its_step_runs(
    region: Region,
) -> None:
    region.host()
    instance_id = region.running("redis.ha.xu1.tiny.r2.128", az_codes=region.first.az_codes[:1])
    begun = update_instance(region.call(ModifyInstanceBody(port=7000), instance_id=instance_id))
    assert isinstance(begun, Begun)
    tools = Tools(region.store, region.sealer)
    tools.settling = Settled(region.store)
    with region.store.read() as tx:
        task = tasks.get(tx, begun.task_id)
    assert task is not None

    def seen() -> set[tuple[int, int]]:
        with region.store.read() as tx:
            there: list[Node] = nodes.of_instance(tx, instance_id)
        assert len(there) == 2
        return {(node.settings.port, node.incarnation) for node in there}

    for _ in range(2):
        asyncio.run(reconfigure.configure_nodes(Work(task, tools)))
        assert seen() == {(7000, 2)}
    for _ in range(2):
        asyncio.run(reconfigure.undo(Work(task, tools)))
        assert seen() == {(6379, 3)}
    with region.store.read() as tx:
        instance = instances.get(tx, instance_id)
    assert instance is not None
    assert (instance.port, instance.status, instance.task_id) == (6379, Status.RUNNING, None)
