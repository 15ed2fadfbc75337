"""What stands in the rows while the type of an instance changes, and how many proxies a flavor has."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.region import Region, open_region

from cacheyard import errors
from cacheyard.contract.types import ResizeInstanceBody
from cacheyard.domain import flavors
from cacheyard.domain.instances import Instance, in_force, with_master
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.domain.proxies import Mode, ProxySettings
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, Task
from cacheyard.services import resize, room
from cacheyard.store import hosts, instances, nodes, proxies, shards, tasks
from cacheyard.tasks import retype
from cacheyard.tasks.flavor import set_flavor

HA, SPLIT = "redis.ha.xu1.large.r2.1", "redis.ha.xu1.large.p2.1"
PROXY, PROXY_64 = "redis.proxy.xu1.large.4", "redis.proxy.xu1.large.64"


class Yard:
    """A region with one instance, whose servers nobody starts."""

    def __init__(self, region: Region, spec_code: str) -> None:
        self.region = region
        region.host(cores=8)
        self.id = region.running(spec_code, engine_version="6.0")

    def read(self, look: Any, *arguments: Any) -> Any:
        with self.region.store.read() as tx:
            return look(tx, *arguments)

    def write(self, act: Any, *arguments: Any) -> Any:
        with self.region.store.write() as tx:
            return act(tx, *arguments)

    def resize(self, spec_code: str, change_type: str | None = "instanceType") -> None:
        size = int(spec_code.rpartition(".")[2])
        body = ResizeInstanceBody(spec_code=spec_code, new_capacity=size, change_type=change_type)
        resize.resize_instance(self.region.call(body, instance_id=self.id))

    @property
    def instance(self) -> Instance:
        found: Instance = self.read(instances.get, self.id)
        return found

    @property
    def nodes(self) -> list[Node]:
        found: list[Node] = self.read(nodes.of_instance, self.id)
        return found

    @property
    def settings(self) -> ProxySettings | None:
        found: ProxySettings | None = self.read(proxies.settings_of, self.id)
        return found

    @property
    def task(self) -> Task:
        found: Task = self.read(tasks.get, self.instance.task_id)
        return found

    def change_type(self) -> None:
        self.write(retype._write_type, self.task, time.monotonic() + 60)

    def masters(self) -> list[int]:
        """How many each shard has, in the order of the shards."""
        order = [shard.id for shard in self.read(shards.of_instance, self.id)]
        there = [node.shard_id for node in self.nodes if node.role is Role.MASTER]
        return [there.count(shard_id) for shard_id in order]


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path, overcommit=1.0, memory_quota=10_000) as opened:
        yield opened


def addresses(these: list[Node]) -> set[Address]:
    return {Address(node.ip, node.port) for node in these}


def test_until_the_type_has_changed_proxies_know_the_old_servers_alone(region: Region) -> None:
    yard = Yard(region, SPLIT)
    old = yard.nodes
    before, rows = yard.settings, yard.read(proxies.of_instance, yard.id)
    yard.resize(PROXY)
    assert len(yard.nodes) == 2 + 6
    assert (yard.instance.cache_mode, yard.instance.spec_code) == ("ha_rw_split", SPLIT)
    assert {node.run for node in yard.nodes if node not in old} == {Run.DOWN}
    yard.write(retype._want_heir, yard.task)
    assert [node.run for node in yard.nodes].count(Run.UP) == 3
    assert yard.settings == before
    assert yard.masters() == [1, 1, 1]

    yard.change_type()
    now = yard.settings
    assert now is not None
    [heir] = [node for node in yard.nodes if node.settings.clustered and node.run is Run.UP]
    assert (now.mode, set(now.servers)) == (Mode.CLUSTER, {Address(heir.ip, heir.port)})
    assert (heir.role, heir.settings.replica_of, heir.priority) == (Role.MASTER, None, 100)
    assert yard.masters() == [1, 1, 1]
    there = yard.read(proxies.of_instance, yard.id)
    assert not {row.id for row in rows} & {row.id for row in there}  # none can change its mode
    assert [row.logical_id for row in there][:2] == [row.logical_id for row in rows]


def test_the_type_does_not_change_when_writes_may_go_on_again(region: Region) -> None:
    yard = Yard(region, HA)
    yard.resize(PROXY)
    before = yard.instance, yard.nodes
    with pytest.raises(OSError, match="too long"):
        yard.write(retype._write_type, yard.task, time.monotonic() - 1)
    assert (yard.instance, yard.nodes) == before


def test_who_has_clients_of_its_own_ends_with_the_old_type(region: Region) -> None:
    pair, split = Yard(region, HA), Yard(region, PROXY)
    pair.resize(PROXY)
    pair.change_type()
    assert {node.run for node in pair.nodes if not node.settings.clustered} == {Run.GONE}
    split.resize(SPLIT)
    split.change_type()
    assert {node.run for node in split.nodes if node.settings.clustered} == {Run.UP}
    assert split.masters()[0] == 1


def test_a_failover_before_the_change_is_followed_across_the_types(region: Region) -> None:
    """In both directions, by all that are not members of one cluster."""
    for spec_code, to in ((HA, PROXY), (PROXY, HA)):
        yard = Yard(region, spec_code)
        [first, *_] = yard.read(shards.of_instance, yard.id)
        yard.resize(to)
        shard = yard.read(nodes.of_shard, first.id)
        new = next(node for node in shard if node.role is Role.REPLICA and in_force(yard.instance, node))
        for node, role, settings in with_master(yard.instance, shard, new.id):
            together = spec_code == PROXY and node.settings.clustered
            follows = None if node.id == new.id or together else Address(new.ip, new.port)
            assert settings.replica_of == follows
            assert role is (Role.MASTER if node.id == new.id else Role.REPLICA)


def test_both_types_are_promised_their_memory_until_the_end(region: Region) -> None:
    yard = Yard(region, HA)
    old, new = flavors.memory_of(HA), flavors.memory_of(PROXY)
    assert yard.read(room.promised) == old
    yard.resize(PROXY)
    assert yard.read(room.promised) == old + new
    yard.change_type()
    assert yard.read(room.promised) == old + new
    task = yard.task
    yard.write(tasks.end, task.id, "SUCCESS")
    assert yard.read(room.promised) == new


def test_the_number_of_proxies_follows_the_flavor_and_those_that_can_stay(region: Region) -> None:
    yard = Yard(region, PROXY)
    first = yard.read(proxies.of_instance, yard.id)
    assert [row.number for row in first] == [0, 1, 2]
    yard.resize(PROXY_64, None)
    task = yard.task
    assert task.kind == Change.ADD_SHARDS
    for spec_code, count in ((PROXY_64, 4), (PROXY, 3), (PROXY_64, 4)):
        flavor = flavors.find(spec_code)
        for _ in range(2):  # a step may run twice
            assert yard.write(set_flavor, task, flavor)
            there = yard.read(proxies.of_instance, yard.id)
            assert [row.number for row in there] == list(range(count))
            assert [row.id for row in there][:3] == [row.id for row in first]
        now, connections = yard.settings, flavor.connections if flavor else 0
        assert now is not None
        assert now.maxclients == -(-connections // count)


def test_a_task_that_has_ended_changes_nothing(region: Region) -> None:
    yard = Yard(region, PROXY)
    yard.resize(PROXY_64, None)
    task = yard.task
    with region.store.write() as tx:
        instances.release(tx, yard.id, task.id, status=Status.RUNNING)
    assert not yard.write(set_flavor, task, flavors.find(PROXY))
    assert yard.instance.spec_code == PROXY_64


def test_there_is_no_room_beside_both(region: Region) -> None:
    yard = Yard(region, HA)
    with region.store.write() as tx:
        host = hosts.every(tx)[0]
        hosts.register(tx, msgspec.structs.replace(host, memory_mb=9000))
    with pytest.raises(errors.ZoneSoldOut, match="8190 MB are needed"):
        yard.resize(PROXY)
    assert yard.instance.status is Status.RUNNING
    assert len(yard.nodes) == 2
