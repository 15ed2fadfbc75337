"""Which replicas are replaced, and when: decided from rows alone, by a clock that the test holds."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.region import Region, open_region

from cacheyard.clock import now_ms
from cacheyard.domain.flavors import local_cpu
from cacheyard.domain.network import NoAddressLeft
from cacheyard.domain.nodes import LOADING, Node, NodeState, Role, Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, Task, TaskStatus
from cacheyard.services.caretaker import AGAIN_SECONDS, Caretaker
from cacheyard.store import hosts, instances, network, nodes, tasks

CPU = {"x86_64": "xu1", "aarch64": "au1"}[local_cpu()]
PATIENCE = 60.0
LOOK = 5.0


class World:
    """A running instance whose nodes are what the test says, and a caretaker."""

    def __init__(self, region: Region) -> None:
        self.region = region
        region.host(proxy=None)
        self.id = region.create(f"redis.ha.{CPU}.tiny.r3.128")
        self.caretaker = Caretaker(region.call().house)
        self.now = 1000.0
        self.give_back()
        for node in self.nodes():
            self.see(node, NodeState.ACTIVE)

    def nodes(self) -> list[Node]:
        """The master first."""
        with self.region.store.read() as tx:
            found = nodes.of_instance(tx, self.id)
        return sorted(found, key=lambda node: (node.role is not Role.MASTER, node.number))

    def see(self, node: Node, state: NodeState, *, since: int = 1, error: str | None = None) -> None:
        """What its agent says of a node."""
        report = nodes.Report(
            node_id=node.id, state=state, since=since, incarnation=1, generation=1, pid=1, error=error
        )
        with self.region.store.write() as tx:
            nodes.report_all(tx, [report])

    def give_back(self, status: Status = Status.RUNNING) -> None:
        """The task that has the instance ends."""
        self.change(status=status, task_id=None)

    def change(self, **values: Any) -> None:
        """Columns of the instance."""
        with self.region.store.write() as tx:
            instances.change(tx, self.id, **values)

    def pass_by(self, seconds: float, *, heard: bool = True) -> None:
        """The caretaker looks again and again for so long."""
        for _ in range(round(seconds / LOOK)):
            with self.region.store.write() as tx:
                hosts.seen(tx, "local", now_ms() if heard else 1)
            self.now += LOOK
            self.caretaker.look(self.now)

    def replacements(self) -> list[Task]:
        """The tasks that it began."""
        with self.region.store.read() as tx:
            found, _ = tasks.find(tx, project_id=self.region.first.project_id, instance_id=self.id)
        return [task for task in found if task.kind == Change.REPLACE]

    def end(self, task: Task, status: TaskStatus, *, ago: float) -> None:
        """A replacement ended so many seconds ago."""
        with self.region.store.write() as tx:
            tasks.end(tx, task.id, status)
            tx.exec_driver_sql(
                "UPDATE tasks SET updated_at = ? WHERE id = ?", (now_ms() - round(ago * 1000), task.id)
            )
            new = task.arguments["node_ids"]
            network.free_addresses(tx, self.id, [node.ip for node in nodes.by_ids(tx, new)])
            nodes.remove(tx, new)
        self.give_back()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_region(tmp_path, replace_seconds=PATIENCE) as region:
        yield World(region)


def test_a_replica_that_is_away_for_too_long_gets_a_successor_in_its_place(world: World) -> None:
    old = world.nodes()[1]
    world.see(old, NodeState.INACTIVE)
    world.pass_by(PATIENCE)
    assert world.replacements() == []
    world.pass_by(2 * LOOK)
    [task] = world.replacements()
    assert (task.user_id, task.user_name, task.name) == ("", "system", "ReplaceReplica")
    with world.region.store.read() as tx:
        instance = instances.get(tx, world.id)
    assert instance is not None
    assert (instance.status, instance.task_id) == (Status.RUNNING, task.id)
    [new] = [node for node in world.nodes() if node.id in task.arguments["node_ids"]]
    kept = ("shard_id", "logical_id", "replication_id", "az_code", "host_id", "port", "binary", "added")
    assert [getattr(new, name) for name in kept] == [getattr(old, name) for name in kept]
    assert new.ip not in {node.ip for node in world.nodes() if node.id != new.id}
    assert new.number not in {node.number for node in world.nodes() if node.id != new.id}
    assert (new.role, new.priority, new.settings.priority, new.in_dns) == (Role.REPLICA, 0, 0, False)
    assert new.settings.replica_of is not None
    assert new.settings.replica_of.ip == world.nodes()[0].ip
    world.pass_by(2 * PATIENCE)
    assert len(world.replacements()) == 1


def test_one_that_answers_in_between_is_not_replaced(world: World) -> None:
    old = world.nodes()[1]
    for since in range(1, 9, 2):
        world.see(old, NodeState.INACTIVE, since=since)
        world.pass_by(PATIENCE - LOOK)
        world.see(old, NodeState.ACTIVE, since=since + 1)
        world.pass_by(LOOK)
    assert world.replacements() == []


def test_time_in_which_it_reads_its_data_does_not_count(world: World) -> None:
    old = world.nodes()[1]
    world.see(old, NodeState.INACTIVE, error=LOADING)
    world.pass_by(10 * PATIENCE)
    assert world.replacements() == []
    for _ in range(2):  # it reads for long, and dies each time
        world.see(old, NodeState.INACTIVE, error="signal 11")
        world.pass_by(PATIENCE / 2 - LOOK)
        world.see(old, NodeState.INACTIVE, error=LOADING)
        world.pass_by(PATIENCE)
    assert world.replacements() == []
    world.see(old, NodeState.INACTIVE, error="signal 11")
    world.pass_by(2 * LOOK)
    assert len(world.replacements()) == 1


def test_an_agent_that_is_silent_says_nothing(world: World) -> None:
    world.see(world.nodes()[1], NodeState.INACTIVE)
    world.pass_by(2 * PATIENCE, heard=False)
    assert world.replacements() == []
    world.pass_by(PATIENCE)
    assert world.replacements() == []  # counted from when it was heard again
    world.pass_by(2 * LOOK)
    assert len(world.replacements()) == 1


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_nothing_is_replaced_unless_the_instance_runs(world: World, status: Status) -> None:
    world.see(world.nodes()[1], NodeState.INACTIVE)
    world.give_back(status)
    world.pass_by(2 * PATIENCE)
    assert world.replacements() == []


def test_nothing_is_replaced_while_a_task_has_the_instance(world: World) -> None:
    world.see(world.nodes()[1], NodeState.INACTIVE)
    world.change(task_id="t")
    world.pass_by(2 * PATIENCE)
    world.give_back()
    world.pass_by(PATIENCE)
    assert world.replacements() == []


def test_masters_and_replicas_without_one_are_not_replaced(world: World) -> None:
    for node in world.nodes():
        world.see(node, NodeState.INACTIVE)
    world.pass_by(2 * PATIENCE)
    assert world.replacements() == []


def test_what_is_stopped_on_purpose_is_not_replaced(world: World) -> None:
    old = world.nodes()[1]
    with world.region.store.write() as tx:
        nodes.want(tx, old, run=Run.DOWN)
    world.see(old, NodeState.STOPPED)
    world.pass_by(2 * PATIENCE)
    assert world.replacements() == []


def test_a_replacement_that_failed_is_tried_again_some_minutes_later(world: World) -> None:
    world.see(world.nodes()[1], NodeState.INACTIVE)
    world.pass_by(PATIENCE + 2 * LOOK)
    [task] = world.replacements()
    world.end(task, TaskStatus.FAILED, ago=AGAIN_SECONDS - 10)
    world.pass_by(2 * PATIENCE)
    assert len(world.replacements()) == 1
    world.end(task, TaskStatus.FAILED, ago=AGAIN_SECONDS + 10)
    world.pass_by(2 * PATIENCE)
    assert len(world.replacements()) == 2


def test_two_that_are_away_are_replaced_one_after_the_other(world: World) -> None:
    _, one, other = world.nodes()
    for node in (one, other):
        world.see(node, NodeState.INACTIVE)
    world.pass_by(2 * PATIENCE)
    [task] = world.replacements()
    assert task.arguments["old_id"] == one.id
    world.see(one, NodeState.ACTIVE, since=2)
    world.end(task, TaskStatus.SUCCESS, ago=1)
    world.pass_by(PATIENCE + 2 * LOOK)
    assert {task.arguments["old_id"] for task in world.replacements()} == {one.id, other.id}


def test_without_a_free_address_the_instance_stays_as_it_is(tmp_path: Path) -> None:
    with open_region(tmp_path, cidr="127.64.0.0/24", replace_seconds=PATIENCE) as region:
        world = World(region)
        with region.store.write() as tx, suppress(NoAddressLeft):
            while True:
                last = network.take_address(tx, region.first.subnet_id, world.id)
        world.see(world.nodes()[1], NodeState.INACTIVE)
        world.pass_by(2 * PATIENCE)
        assert world.replacements() == []
        assert len(world.nodes()) == 3
        with region.store.write() as tx:
            network.free_addresses(tx, world.id, [last])
        world.pass_by(AGAIN_SECONDS)
        assert len(world.replacements()) == 1
