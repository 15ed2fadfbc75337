"""Which replicas of a cluster may go together, what its nodes are called, and which patch is newer."""

import msgspec
import pytest
from support import rows

from cacheyard.domain.engines import Engine, newer_patch
from cacheyard.domain.nodes import Node, NodeState, Role, Run
from cacheyard.domain.shape import by_shard, dimension, label, removable, shown_state


def node(shard: int, number: int, zone: str) -> Node:
    """Upper case: the master."""
    return rows.node(
        number,
        id=f"{shard}{number}",
        shard_id=f"s{shard}",
        logical_id=f"0000-{shard}-{number}",
        replication_id=f"r{shard}{number}",
        role=Role.MASTER if zone.isupper() else Role.REPLICA,
        az_code=zone.lower(),
        ip=f"127.0.{shard}.{number}",
        settings=rows.settings(clustered=True),
        seen_state=NodeState.ACTIVE,
    )


def cluster(*shards: str) -> list[list[Node]]:
    """A word of zones for each shard: `Abc`."""
    return [[node(s, number, zone) for number, zone in enumerate(zones)] for s, zones in enumerate(shards)]


@pytest.mark.parametrize(
    ("shards", "going"),
    [
        (("Aa", "Aa"), ["01", "11"]),  # one zone is all there is
        (("Abc", "Abc"), ["02", "12"]),  # those that came last
        (("Abc", "aBc", "acB"), ["02", "12", "21"]),  # one zone has replicas of all
        (("Abc", "cBa", "aCb"), ["02", "12", "22"]),  # none has: masters are spread
        (("Abb", "bbA"), ["02", "11"]),
        (("Abc", "Ab"), ["02"]),  # a shard that has fewer already loses none
        (("A", "A"), []),
    ],
)
def test_each_large_shard_can_spare_a_replica(shards: tuple[str, ...], going: list[str]) -> None:
    assert [one.id for one in removable(cluster(*shards), "127.0.9.9")] == going


def test_the_address_that_clients_know_stays_if_another_can_go() -> None:
    assert [one.id for one in removable(cluster("Abb", "bAb"), "127.0.0.2")] == ["01", "12"]
    assert [one.id for one in removable(cluster("Ab", "bA"), "127.0.0.1")] == ["01", "10"]


def test_a_shard_begins_with_its_master() -> None:
    ((first, second), (other, *_)) = by_shard(node for shard in cluster("aB", "Bc") for node in shard)
    assert (first.id, second.id, other.id) == ("01", "00", "10")
    assert (label(first), label(second)) == ("(master)127.0.0.1", "(replica)127.0.0.0")


@pytest.mark.parametrize(
    ("run", "seen", "added", "growing", "shown"),
    [
        (Run.UP, NodeState.CREATING, "", False, "Creating"),
        (Run.UP, NodeState.CREATING, "b", True, "Creating"),  # a replica more in an old shard
        (Run.UP, NodeState.CREATING, "Ab", True, "AddSharding"),
        (Run.UP, NodeState.ACTIVE, "Ab", True, "Active"),
        (Run.UP, NodeState.INACTIVE, "", False, "Inactive"),
        (Run.DOWN, NodeState.STOPPED, "", False, "Inactive"),
        (Run.GONE, NodeState.ACTIVE, "", False, "Deleting"),  # the agent has not heard of it yet
        (Run.GONE, NodeState.GONE, "", False, "Deleting"),
    ],
)
def test_states_are_those_that_clients_know(
    run: Run, seen: NodeState, added: str, growing: bool, shown: str
) -> None:
    ((master, replica),) = cluster("Ab")
    shard = [
        msgspec.structs.replace(one, run=run, seen_state=seen, added=zone in added)
        for one, zone in ((master, "A"), (replica, "b"))
    ]
    assert shown_state(shard[1], shard, growing=growing) == shown


def test_metrics_know_the_place_not_the_process() -> None:
    old = node(0, 1, "a")
    new = msgspec.structs.replace(old, id="new", ip="127.0.0.9", role=Role.MASTER)
    assert dimension(old) == dimension(new) == "000001"


def test_the_newest_patch_of_the_line_that_runs_is_newer_or_none_is() -> None:
    def engine(version: tuple[int, int, int], name: str = "redis") -> Engine:
        return Engine(name=name, version=version, binary=f"/{name}-{version}", tls=False)

    there = [
        engine((6, 2, 14)),
        engine((7, 0, 9)),
        engine((7, 0, 15)),
        engine((7, 2, 5)),
        engine((7, 2, 8), "valkey"),
        engine((7, 2, 8)),
    ]
    told = {old: newer_patch(there, old) for old in ("6.2.14", "7.0.9", "7.0.15", "7.0.16", "7.2.4", "8.0.0")}
    newer = {old: f"{found.name} {found.version_text}" for old, found in told.items() if found is not None}
    assert newer == {"7.0.9": "redis 7.0.15", "7.2.4": "redis 7.2.8"}
