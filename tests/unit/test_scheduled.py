"""A resize that waits for its window: it begins inside it and not before, as if it were asked for then."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import update

from cacheyard import errors
from cacheyard.contract.types import CreateInstanceBody, ResizeInstanceBody
from cacheyard.domain.engines import Engine
from cacheyard.domain.identity import Principal
from cacheyard.domain.instances import Instance, in_maintenance
from cacheyard.domain.placement import Host
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import TaskStatus
from cacheyard.services import background, change, lifecycle, resize, scheduled
from cacheyard.services.bootstrap import bootstrap
from cacheyard.services.call import Begun, Call, House
from cacheyard.services.resizing import begin
from cacheyard.settings import Settings
from cacheyard.store import hosts, instances, nodes, tables, tasks
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

HOUR = 3_600_000
DAY = 24 * HOUR
BEGINS: scheduled.Begins = {"ResizeInstanceBody": (ResizeInstanceBody, begin)}
HA = "redis.ha.xu1.tiny.r{}.{}"


class Yard:
    """A service without an agent or an engine: rows alone."""

    def __init__(self, data: Path) -> None:
        settings = Settings(data=data)
        migrate(settings.database)
        store, sealer = Store(settings.database), Sealer.of(data / "key")
        self.first = bootstrap(store, sealer, settings)
        self.started: list[str] = []
        self.house = House(settings, self.first.region, store, sealer, self.started.append)
        with store.write() as tx:
            engine = Engine(name="redis", version=(7, 0, 15), binary="/usr/bin/redis-server", tls=True)
            zones = self.first.az_codes
            hosts.register(
                tx,
                Host(
                    id="h", az_codes=zones, memory_mb=4096, cores=2, engines=(engine,), proxy=None, seen_at=1
                ),
            )
        body = CreateInstanceBody(
            name="cache-1",
            engine="Redis",
            engine_version="7.0",
            capacity=0.125,
            spec_code=HA.format(2, 128),
            az_codes=list(self.first.az_codes[:1]),
            vpc_id=self.first.vpc_id,
            subnet_id=self.first.subnet_id,
            password="Cache-yard-1",
            maintain_begin="22:00:00",
            maintain_end="02:00:00",
        )
        (made,) = lifecycle.create_instance(self.call(body)).instances or []
        self.id = str(made.instance_id)
        self.free()
        self.started.clear()

    def call(self, body: Any, **parameters: Any) -> Call[Any]:
        who = Principal(user_id="u", user_name="user", domain_id="d", domain_name="domain")
        return Call(self.house, who, {"project_id": self.first.project_id} | parameters, body, "")

    def on(self, body: Any, **parameters: Any) -> Call[Any]:
        """A request on the instance."""
        return self.call(body, instance_id=self.id, **parameters)

    def free(self) -> None:
        """As if its task had ended."""
        with self.house.store.write() as tx:
            found = instances.get(tx, self.id)
            assert found is not None
            if found.task_id is not None:
                tasks.end(tx, found.task_id, TaskStatus.SUCCESS)
                instances.release(tx, self.id, found.task_id, status=Status.RUNNING)

    def wait(self, spec_code: str, capacity: float, change_type: str | None = None) -> str:
        body = ResizeInstanceBody(
            spec_code=spec_code,
            new_capacity=capacity,
            change_type=change_type,
            execute_immediately=False,
        )
        begun = resize.resize_instance(self.on(body))
        assert isinstance(begun, Begun)
        return begun.task_id

    def tick(self, hour: float) -> None:
        """The clock's chore, at that hour of some day."""
        scheduled.begin_due(self.house, BEGINS, int(20_000 * DAY + hour * HOUR))

    def task(self, task_id: str) -> Any:
        with self.house.store.read() as tx:
            return tasks.get(tx, task_id)

    @property
    def instance(self) -> Instance:
        with self.house.store.read() as tx:
            found = instances.get(tx, self.id)
        assert found is not None
        return found


@pytest.fixture
def yard() -> Iterator[Yard]:
    with TemporaryDirectory() as data:  # its part of the network is free again when it is gone
        yard = Yard(Path(data))
        yield yard
        yard.house.store.close()


@pytest.mark.parametrize(
    ("begin", "end", "hours"),
    [
        ("02:00:00", "06:00:00", {2, 3, 4, 5}),
        ("22:00:00", "02:00:00", {22, 23, 0, 1}),
        ("23:00:00", "00:00:00", {23}),
    ],
)
def test_a_window_is_utc_and_may_go_over_midnight(begin: str, end: str, hours: set[int]) -> None:
    there = {hour for hour in range(24) if in_maintenance(begin, end, 20_000 * DAY + hour * HOUR)}
    assert there == hours
    assert in_maintenance(begin, end, 20_000 * DAY + max(hours) * HOUR + HOUR - 1)


def test_it_begins_in_the_window_under_the_id_it_was_given(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    assert (yard.instance.status, yard.instance.task_id) == (Status.RUNNING, None)
    assert yard.instance.spec_code == HA.format(2, 128)
    for hour in (2, 12, 21.99):
        yard.tick(hour)
        assert yard.task(task_id).status is TaskStatus.WAITING
    assert yard.started == []
    yard.tick(22)
    assert yard.started == [task_id]
    assert yard.task(task_id).status is TaskStatus.EXECUTING
    assert (yard.instance.status, yard.instance.task_id) == (Status.EXTENDING, task_id)
    yard.tick(22.001)
    assert yard.started == [task_id]
    with yard.house.store.read() as tx:
        assert tasks.steps(tx, task_id)[0].name == "Check fit."
        assert len(tasks.find(tx, project_id=yard.first.project_id)[0]) == 2  # the creation, and it


def test_replicas_are_written_when_it_begins(yard: Yard) -> None:
    task_id = yard.wait(HA.format(4, 128), 0.125, "createReplication")
    with yard.house.store.read() as tx:
        assert len(nodes.of_instance(tx, yard.id)) == 2
    assert yard.task(task_id).name == "AddReplica"
    yard.tick(23)
    with yard.house.store.read() as tx:
        there = nodes.of_instance(tx, yard.id)
    assert len(there) == 4
    assert set(yard.task(task_id).arguments["node_ids"]) == {node.id for node in there if node.added}


def test_it_moves_with_the_window(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    with yard.house.store.write() as tx:
        instances.change(tx, yard.id, maintain_begin="10:00:00", maintain_end="11:00:00")
    yard.tick(22)
    assert yard.started == []
    yard.tick(10.5)
    assert yard.started == [task_id]


def test_it_waits_while_the_instance_is_being_changed(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    with yard.house.store.write() as tx:
        assert instances.seize(tx, yard.id, status=Status.RESTARTING, task_id="other", among=[Status.RUNNING])
    yard.tick(22)
    with yard.house.store.write() as tx:
        instances.release(tx, yard.id, "other", status=Status.CLOSED)
    yard.tick(22)
    assert yard.task(task_id).status is TaskStatus.WAITING
    with yard.house.store.write() as tx:
        instances.change(tx, yard.id, status=Status.RUNNING)
    yard.tick(22)
    assert yard.started == [task_id]


def test_what_is_no_longer_possible_has_failed(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    with yard.house.store.write() as tx:
        tx.execute(update(tables.hosts).values(memory_mb=300))
    yard.tick(22)
    task = yard.task(task_id)
    assert task.status is TaskStatus.FAILED
    assert "512 MB are needed" in task.error or "256 MB are needed" in task.error
    assert (yard.instance.status, yard.instance.task_id) == (Status.RUNNING, None)
    assert yard.instance.spec_code == HA.format(2, 128)
    yard.tick(22)
    assert yard.started == []


def test_what_is_not_possible_now_is_refused_now(yard: Yard) -> None:
    with pytest.raises(errors.SameSize):
        yard.wait(HA.format(2, 128), 0.125)
    with pytest.raises(errors.ZoneSoldOut):
        yard.wait(HA.format(2, 64).replace("tiny", "large"), 64)
    with yard.house.store.read() as tx:
        assert tasks.waiting(tx) == []


def test_one_at_a_time(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    for now in (True, False):
        with pytest.raises(errors.ResizeWaits, match=task_id):
            resize.resize_instance(
                yard.on(
                    ResizeInstanceBody(spec_code=HA.format(2, 512), new_capacity=0.5, execute_immediately=now)
                )
            )


def test_to_delete_its_record_is_to_cancel_it(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    background.delete_background_task(yard.on(None, task_id=task_id))
    yard.tick(22)
    assert yard.started == []
    assert yard.wait(HA.format(2, 512), 0.5) != task_id


def test_a_deleted_instance_takes_it_along(yard: Yard) -> None:
    task_id = yard.wait(HA.format(2, 256), 0.25)
    change.delete_single_instance(yard.on(None))
    assert yard.task(task_id) is None
