"""Which replicas go first, and in which zones new ones come."""

from typing import Any

import msgspec
import pytest
from support import rows

from cacheyard.domain.nodes import Node, NodeState, Role
from cacheyard.domain.replicas import empties_name, expendable, zones_for


def node(number: int, **changes: Any) -> Node:
    """The master is number 0; zones are a, b, c in turn."""
    return rows.node(number, **({"az_code": "abc"[number % 3], "seen_state": NodeState.ACTIVE} | changes))


def going(*shard: Node, count: int = 1, **conditions: Any) -> list[str]:
    return [one.id for one in expendable(shard, count, **conditions)]


def test_the_newest_replica_goes_first_and_the_master_never() -> None:
    shard = [node(number) for number in range(4)]
    assert going(*shard, count=2) == ["n3", "n2"]
    assert going(*shard, count=9) == ["n3", "n2", "n1"]
    swapped = [
        msgspec.structs.replace(one, role=Role.MASTER if one.number == 3 else Role.REPLICA) for one in shard
    ]
    assert going(*swapped, count=2) == ["n2", "n1"]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({1: {"priority": 90}, 2: {"priority": 80}, 3: {"priority": 70}}, "n1"),
        ({1: {"priority": 90}, 2: {"priority": 0}, 3: {"priority": 100}}, "n2"),
        ({1: {"seen_state": NodeState.INACTIVE, "priority": 1}, 2: {"priority": 0}}, "n1"),
        ({3: {"in_dns": True}, 2: {"in_dns": False}, 1: {"in_dns": False}}, "n2"),
    ],
    ids=["the highest number", "never promoted", "not there", "not the last in the name"],
)
def test_of_lower_standing_is(changes: dict[int, dict[str, Any]], first: str) -> None:
    assert going(*(node(number, **changes.get(number, {})) for number in range(4))) == [first]


def test_conditions_are_held() -> None:
    shard = [node(number) for number in range(6)]
    assert going(*shard, spared=["127.0.0.5", "127.0.0.4"]) == ["n3"]
    assert going(*shard, zones=["b"], count=3) == ["n4", "n1"]
    assert going(*shard, zones=["b"], spared=["127.0.0.4"], count=2) == ["n1"]


def test_the_read_only_name_is_emptied_by_the_last_that_it_has() -> None:
    shard = [node(0), node(1, in_dns=False), node(2), node(3)]
    assert not empties_name(shard, shard[1:3])
    assert empties_name(shard, shard[2:])
    assert not empties_name(shard[:2], shard[1:2])  # it has none anyway


@pytest.mark.parametrize(
    ("count", "zones", "chosen"),
    [
        (1, ["c"], ["c"]),
        (2, ["c", "a"], ["c", "a"]),
        (3, ["c", "a"], ["c", "a", "c"]),
        (1, ["a", "b", "c"], ["c"]),
        (2, ["a", "b", "c"], ["c", "a"]),
        (1, ["a", "b"], ["a"]),
    ],
)
def test_zones_of_new_replicas(count: int, zones: list[str], chosen: list[str]) -> None:
    pair = [node(0), node(1)]  # in a and b
    assert zones_for(pair, count, zones) == chosen
