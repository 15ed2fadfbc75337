"""The rules of bandwidth: what shards have, for how long, and what a policy gives them."""

from typing import Any

import msgspec
import pytest

from cacheyard.domain import bandwidth, flavors
from cacheyard.domain.bandwidth import DAY, MINUTE, UNCHANGED, Bandwidth, Chosen, Policy, Raised
from cacheyard.domain.caps import Cap
from cacheyard.domain.flavors import Flavor
from cacheyard.engine.source import near
from cacheyard.engine.tc import _assign, _render

NOW = 1_800_000_000_000
POLICY = Policy(window_minutes=5, upper_percent=80, grow_pause=600, since=0)


def flavor(code: str) -> Flavor:
    found = flavors.find(f"redis.{code}")
    assert found is not None
    return found


HA = flavor("ha.xu1.tiny.r2.128")  # 40
LARGE = flavor("cluster.xu1.large.r2.4")  # three shards of 768
PROXY = flavor("proxy.xu1.large.128")  # 10000 in 16 shards
SPLIT = flavor("ha.xu1.large.p6.8")  # 6 x 768 for one shard


def ids(of: Flavor) -> list[str]:
    return [f"s{number}" for number in range(of.shards)]


@pytest.mark.parametrize("one", [HA, LARGE, PROXY, SPLIT, flavor("proxy.xu1.large.24")])
def test_without_changes_an_instance_has_what_its_flavor_says(one: Flavor) -> None:
    assert bandwidth.of_instance(UNCHANGED, one, ids(one)) == one.bandwidth


def test_an_increase_doubles_all_shards_and_what_was_chosen_for_one_of_them() -> None:
    chosen = bandwidth.choose(UNCHANGED, {"s1": 1000}, NOW)
    raised = bandwidth.raised(chosen, now=NOW, lasts=7 * DAY)
    assert [bandwidth.of_shard(raised, LARGE, one) for one in ids(LARGE)] == [1536, 2000, 1536]
    assert bandwidth.of_instance(raised, LARGE, ids(LARGE)) == 1536 + 2000 + 1536
    assert bandwidth.lowered(raised).shards == chosen.shards
    assert bandwidth.of_instance(bandwidth.lowered(raised), LARGE, ids(LARGE)) == 768 + 1000 + 768


def test_nothing_is_raised_above_what_there_is() -> None:
    chosen = bandwidth.choose(UNCHANGED, {"s1": 1500}, NOW)
    raised = bandwidth.raised(chosen, now=NOW, lasts=DAY)
    assert bandwidth.of_shard(raised, LARGE, "s1") == bandwidth.most(LARGE) == 2048
    medium = flavor("proxy.xu1.large.96")  # 9216
    assert bandwidth.of_instance(raised, medium, ids(medium)) == 10_000
    assert bandwidth.raise_fault(UNCHANGED, PROXY, ids(PROXY), now=NOW, pause=DAY)  # it has 10000 already


def test_an_increase_waits_a_day_after_the_last_and_there_are_three() -> None:
    def fault(last: Raised | None, now: int) -> str | None:
        return bandwidth.raise_fault(Bandwidth(raised=last), HA, ids(HA), now=now, pause=DAY)

    assert fault(None, NOW) is None
    first = bandwidth.raised(UNCHANGED, now=NOW, lasts=7 * DAY).raised
    assert first is not None
    assert (first.begin_at, first.end_at, first.count) == (NOW, NOW + 7 * DAY, 1)
    assert "already" in str(fault(first, NOW + DAY))
    over = msgspec.structs.replace(first, over=True)
    assert "too short" in str(fault(over, NOW + 8 * DAY - 1))
    assert fault(over, NOW + 8 * DAY) is None
    assert fault(msgspec.structs.replace(over, count=2), NOW + 8 * DAY) is None
    assert "3 times" in str(fault(msgspec.structs.replace(over, count=3), NOW + 80 * DAY))


def test_an_increase_is_due_when_its_time_is_over_and_only_once() -> None:
    raised = bandwidth.raised(UNCHANGED, now=NOW, lasts=DAY)
    assert not bandwidth.is_due(raised, NOW + DAY - 1)
    assert bandwidth.is_due(raised, NOW + DAY)
    assert not bandwidth.is_due(bandwidth.lowered(raised), NOW + 2 * DAY)
    assert not bandwidth.is_due(UNCHANGED, NOW)


@pytest.mark.parametrize(("mbit", "fits"), [(767, False), (768, True), (2048, True), (2049, False)])
def test_a_shard_gets_what_its_flavor_has_or_more_but_not_too_much(mbit: int, fits: bool) -> None:
    assert (bandwidth.target_fault(LARGE, mbit) is None) is fits


def test_what_was_chosen_gives_way_to_another_flavor() -> None:
    small = bandwidth.choose(UNCHANGED, {"s0": 41}, NOW)
    assert bandwidth.of_shard(small, HA, "s0") == 41
    assert bandwidth.of_shard(small, LARGE, "s0") == 768
    large = bandwidth.choose(UNCHANGED, {"s0": 4608}, NOW)
    assert bandwidth.of_shard(large, SPLIT, "s0") == 4608
    assert bandwidth.of_shard(large, HA, "s0") == 2048


def with_policy(**chosen: Chosen) -> Bandwidth:
    return Bandwidth(shards=chosen, policy=POLICY)


@pytest.mark.parametrize(
    ("now", "usage", "grown"),
    [
        (with_policy(), {"s0": 615.0, "s1": 614.0}, {"s0": 1536}),  # 80 % of 768 are 614.4
        (with_policy(), {}, {}),
        (Bandwidth(), {"s0": 768.0}, {}),
        (with_policy(s0=Chosen(1536, NOW - 601_000)), {"s0": 1500.0}, {"s0": 2048}),
        (with_policy(s0=Chosen(1536, NOW - 599_000)), {"s0": 1500.0}, {}),  # within the cooldown
        (with_policy(s0=Chosen(2048, 0)), {"s0": 2048.0}, {}),  # it has all there is
    ],
)
def test_a_policy_doubles_what_is_used_too_much(
    now: Bandwidth, usage: dict[str, float], grown: dict[str, int]
) -> None:
    assert bandwidth.growth(now, LARGE, usage, now=NOW) == grown


def test_without_a_cooldown_a_policy_still_looks_at_a_whole_window_since_the_last_change() -> None:
    eager = msgspec.structs.replace(POLICY, grow_pause=0)
    for ago, grown in ((4 * MINUTE, {}), (5 * MINUTE, {"s0": 2048})):
        now = Bandwidth(shards={"s0": Chosen(1536, NOW - ago)}, policy=eager)
        assert bandwidth.growth(now, LARGE, {"s0": 1500.0}, now=NOW) == grown


def test_a_window_is_whole_minutes_that_the_policy_has_seen() -> None:
    minute = 1000
    at = minute * MINUTE + 30_000
    assert bandwidth.window(POLICY, at) == (995, 999)
    young: Any = msgspec.structs.replace(POLICY, since=995 * MINUTE + 1)
    assert bandwidth.window(young, at) is None
    assert bandwidth.window(young, at + MINUTE) == (996, 1000)


def test_a_cap_keeps_its_class_while_its_addresses_change() -> None:
    mine = {"source": {"a": 1, "b": 1, "c": 2}, "target": {"a": 3, "b": 3, "c": 4}}
    wanted, mbits = _assign(mine, {1, 2, 3, 4, 5}, [Cap(("b", "d"), 80), Cap(("e",), 40), Cap(("c",), 10)])
    assert wanted["source"] == {"b": 1, "d": 1, "e": 6, "c": 2}
    assert wanted["target"] == {"b": 3, "d": 3, "e": 7, "c": 4}
    assert mbits == {1: 80, 6: 40, 2: 10, 3: 80, 7: 40, 4: 10}


def test_addresses_that_part_get_classes_of_their_own() -> None:
    mine = {"source": {"a": 1, "b": 1}, "target": {"a": 2, "b": 2}}
    wanted, _ = _assign(mine, {1, 2}, [Cap(("a",), 80), Cap(("b",), 80)])
    assert len({*wanted["source"].values(), *wanted["target"].values()}) == 4


def test_a_table_that_wants_nothing_is_removed() -> None:
    assert _render("t", None, "127.64.0.0/16", {}) == "add table ip t\ndelete table ip t\n"


@pytest.mark.parametrize(
    ("ip", "source"),
    [("127.64.0.7", ("127.64.0.255", 0)), ("127.64.3.255", ("127.64.3.254", 0)), ("10.0.0.1", None)],
)
def test_servers_are_talked_to_from_an_address_of_their_slice_that_is_not_theirs(
    ip: str, source: tuple[str, int] | None
) -> None:
    assert near(ip) == source
