"""What becomes of bandwidth by itself, decided from rows by a clock that the test holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.region import NOW, Region, open_region

from cacheyard.domain import bandwidth
from cacheyard.domain.bandwidth import DAY, MINUTE, UNCHANGED, Bandwidth, Policy
from cacheyard.domain.caps import Cap, digest
from cacheyard.domain.flavors import local_cpu
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Figures, Role, Run
from cacheyard.domain.proxies import ProxyFigures
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, TaskStatus
from cacheyard.services import bandwidth_clock
from cacheyard.store import caps, instances, nodes, proxies, tasks
from cacheyard.store.caps import SeenCaps

CPU = {"x86_64": "xu1", "aarch64": "au1"}[local_cpu()]
HA = f"redis.ha.{CPU}.tiny.r2.128"  # 40 Mbit/s
FIGURES = (
    "used_memory",
    "max_memory",
    "keys",
    "expires",
    "avg_ttl",
    "clients",
    "hits",
    "misses",
    "gets",
    "sets",
)
PROXY_FIGURES = ("clients", "commands", "commands_per_second", "input_bytes", "output_bytes", "memory")
KB = 1e6 / 8 / 1024  # a second, for each Mbit/s: what servers count in


class World:
    """A running instance, and the chores of the clock."""

    def __init__(self, region: Region, spec_code: str = HA) -> None:
        region.host(proxy="/usr/bin/cacheyard-proxy")
        self.region, self.house = region, region.call().house
        self.id = region.running(spec_code)

    @property
    def instance(self) -> Instance:
        with self.region.store.read() as tx:
            found = instances.get(tx, self.id)
        assert found is not None
        return found

    @property
    def chosen(self) -> Bandwidth:
        return self.instance.bandwidth or UNCHANGED

    @property
    def shard_ids(self) -> list[str]:
        with self.region.store.read() as tx:
            return sorted({node.shard_id for node in nodes.of_instance(tx, self.id)})

    def set(self, chosen: Bandwidth) -> None:
        with self.region.store.write() as tx:
            instances.change(tx, self.id, bandwidth=msgspec.to_builtins(chosen))

    def follow(self, *, minutes: int, said: dict[Role, tuple[float, float]], begin: int = NOW) -> int:
        """The policy looks once a minute, for so many, at servers that say that they take and send so many
        Mbit/s; the moment after that."""
        for minute in range(minutes):
            at = begin + minute * MINUTE
            with self.region.store.note() as tx:
                nodes.record_figures(
                    tx,
                    [
                        figures(node.id, node.role, at, *said[node.role])
                        for node in nodes.of_instance(tx, self.id)
                    ],
                )
            bandwidth_clock.follow_policies(self.house, at)
        return begin + minutes * MINUTE

    def begun(self, change: Change = Change.SET_BANDWIDTH) -> Any:
        with self.region.store.read() as tx:
            return tasks.latest(tx, self.id, change)


def figures(node_id: str, role: Role, at: int, taken: float, sent: float) -> Figures:
    return Figures(
        node_id=node_id,
        seen_at=at,
        role=role,
        input_kbps=taken * KB,
        output_kbps=sent * KB,
        databases="",
        cpu_seconds=0.0,
        link_up=True,
        **dict.fromkeys(
            FIGURES,
            0,
        ),
        commands_per_second=0,
        offset=0,
    )


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as region:
        yield region


@pytest.fixture
def world(region: Region) -> World:
    return World(region)


POLICY = Policy(window_minutes=5, upper_percent=80, grow_pause=0, since=NOW - DAY)


def test_an_increase_ends_when_its_time_is_over_with_a_task_of_its_own(world: World) -> None:
    world.set(bandwidth.raised(UNCHANGED, now=NOW, lasts=DAY))
    bandwidth_clock.end_increases(world.house, NOW + DAY - 1)
    assert world.chosen.is_raised
    assert world.begun() is None
    bandwidth_clock.end_increases(world.house, NOW + 30 * DAY)  # the service was away
    assert not world.chosen.is_raised
    assert world.chosen.raised is not None
    assert world.chosen.raised.end_at == NOW + DAY
    assert (world.begun().name, world.begun().status) == ("RestoreBandwidth", TaskStatus.EXECUTING)
    assert world.instance.task_id == world.begun().id


def test_an_increase_of_a_busy_or_stopped_instance_ends_later(world: World) -> None:
    world.set(bandwidth.raised(UNCHANGED, now=NOW, lasts=DAY))
    for values in ({"task_id": "t"}, {"task_id": None, "status": Status.CLOSED}):
        with world.region.store.write() as tx:
            instances.change(tx, world.id, **values)
        bandwidth_clock.end_increases(world.house, NOW + 2 * DAY)
        assert world.chosen.is_raised
    world.region.free(world.id)
    bandwidth_clock.end_increases(world.house, NOW + 2 * DAY)
    assert not world.chosen.is_raised


def test_what_could_not_take_effect_is_not_tried_again_at_once(world: World) -> None:
    world.set(bandwidth.raised(UNCHANGED, now=NOW, lasts=DAY))
    bandwidth_clock.end_increases(world.house, NOW + DAY)
    first = world.begun()
    with world.region.store.write() as tx:
        tasks.end(tx, first.id, TaskStatus.FAILED)
    world.region.free(world.id)
    world.set(bandwidth.raised(UNCHANGED, now=NOW, lasts=DAY))
    bandwidth_clock.end_increases(world.house, NOW + DAY)
    assert world.begun().id == first.id
    assert world.chosen.is_raised


@pytest.mark.parametrize("way", [{"taken": 33.0, "sent": 1.0}, {"taken": 1.0, "sent": 33.0}])
def test_a_policy_gives_a_shard_twice_as_much_when_its_window_was_busy(
    world: World, way: dict[str, float]
) -> None:
    world.set(Bandwidth(policy=POLICY))
    master = (way["taken"], way["sent"] + way["taken"])  # which sends what it takes to its replica
    said = {Role.MASTER: master, Role.REPLICA: (way["taken"], 0.0)}
    world.follow(minutes=5, said=said)
    assert world.begun() is None  # four minutes are whole
    world.follow(minutes=1, said=said, begin=NOW + 5 * MINUTE)
    assert [chosen.mbit for chosen in world.chosen.shards.values()] == [80]
    assert world.begun().name == "AutoScaleBandwidth"
    assert world.chosen.policy == POLICY


def test_a_policy_leaves_a_shard_alone_that_is_used_for_less_than_it_says(world: World) -> None:
    world.set(Bandwidth(policy=POLICY))
    world.follow(minutes=12, said={Role.MASTER: (31.0, 62.0), Role.REPLICA: (31.0, 0.0)})
    assert world.begun() is None


def test_minutes_in_which_nobody_looked_do_not_count_as_busy(world: World) -> None:
    world.set(Bandwidth(policy=POLICY))
    busy = {Role.MASTER: (40.0, 40.0), Role.REPLICA: (40.0, 0.0)}
    world.follow(minutes=2, said=busy)
    world.follow(minutes=2, said=busy, begin=NOW + 5 * MINUTE)
    assert world.begun() is None


def test_a_policy_that_grew_waits_for_its_cooldown(world: World) -> None:
    world.set(Bandwidth(policy=msgspec.structs.replace(POLICY, grow_pause=20 * 60)))
    busy = {Role.MASTER: (1000.0, 1000.0), Role.REPLICA: (1000.0, 0.0)}
    later = world.follow(minutes=2, said=busy)  # the second time there is a whole minute to look at
    assert [chosen.mbit for chosen in world.chosen.shards.values()] == [80]
    world.region.free(world.id)
    later = world.follow(minutes=19, said=busy, begin=later)
    assert [chosen.mbit for chosen in world.chosen.shards.values()] == [80]
    world.follow(minutes=1, said=busy, begin=later)
    assert [chosen.mbit for chosen in world.chosen.shards.values()] == [160]


def test_all_shards_behind_proxies_grow_together(region: Region) -> None:
    world = World(region, f"redis.proxy.{CPU}.large.4")  # 1000 for three shards
    world.set(Bandwidth(policy=POLICY))
    for minute in range(6):
        at = NOW + minute * MINUTE
        with region.store.note() as tx:
            there = proxies.of_instance(tx, world.id)
            proxies.write_figures(
                tx,
                [
                    ProxyFigures(
                        proxy_id=proxy.id,
                        seen_at=at,
                        input_kbps=0.0,
                        output_kbps=900 * KB / len(there),
                        cpu_seconds=0.0,
                        **dict.fromkeys(
                            PROXY_FIGURES,
                            0,
                        ),
                    )
                    for proxy in there
                ],
            )
        bandwidth_clock.follow_policies(world.house, at)
    assert {shard: chosen.mbit for shard, chosen in world.chosen.shards.items()} == dict.fromkeys(
        world.shard_ids, 666
    )


# --- Caps ------------------------------------------------------------------------------------------


def wanted(world: World) -> tuple[Cap, ...]:
    with world.region.store.read() as tx:
        return caps.of_host(tx, "local").get(world.id, ())


@pytest.mark.parametrize(
    ("spec_code", "mbits"),
    [
        ("single.{}.tiny.128", [40]),
        ("ha.{}.tiny.r3.128", [40]),
        ("cluster.{}.large.r2.4", [768, 768, 768]),
        ("proxy.{}.large.4", [1000]),
        ("ha.{}.large.p3.1", [3 * 384]),
    ],
)
def test_caps_follow_the_flavor_and_cover_every_address_that_clients_use(
    region: Region, spec_code: str, mbits: list[int]
) -> None:
    world = World(region, f"redis.{spec_code.format(CPU)}")
    found = wanted(world)
    assert [cap.mbit for cap in found] == mbits
    covered = [address for cap in found for address in cap.addresses]
    assert len(set(covered)) == len(covered)
    with region.store.read() as tx:
        there = {node.ip for node in nodes.of_instance(tx, world.id)}
    expected = {
        "proxy": {world.instance.ip},
        "ha_rw_split": {world.instance.ip},
        "ha": there | {world.instance.ip},
    }
    assert set(covered) == expected.get(world.instance.cache_mode, there)


def test_a_stopped_instance_needs_no_caps(world: World) -> None:
    with world.region.store.write() as tx:
        for node in nodes.of_instance(tx, world.id):
            nodes.want(tx, node, run=Run.DOWN, keep_data=True)
    assert wanted(world) == ()


def test_a_task_knows_whether_the_caps_are_in_force(world: World) -> None:
    def fault() -> str | None:
        with world.region.store.read() as tx:
            return caps.unsettled(tx, world.id)

    def say(**seen: Any) -> None:
        with world.region.store.write() as tx:
            caps.report(tx, "local", [SeenCaps(host_id="local", instance_id=world.id, **seen)])

    assert fault() is None  # the host caps nothing
    world.region.host(caps=True)
    assert fault() == "the caps are not in force yet"
    say(digest="", error="no tc")
    assert fault() == "no tc"
    say(digest=digest(wanted(world)))
    assert fault() is None
    world.set(bandwidth.raised(UNCHANGED, now=NOW, lasts=DAY))
    assert fault() == "the caps are not in force yet"
