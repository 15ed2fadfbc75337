"""What a proxy is configured with follows from rows, and is written so that the proxy understands it."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.region import Region, a_host, open_region
from support.rows import node, settings

from cacheyard.domain import flavors
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Address, Role, Run
from cacheyard.domain.placement import Spot
from cacheyard.domain.proxies import Mode, ProxySettings, digest, new_proxies, wanted
from cacheyard.engine import proxy
from cacheyard.store import instances

SPLIT = "redis.ha.xu1.large.p2.1"
SPOTS = [Spot(az_code="a", host_id="local"), Spot(az_code="b", host_id="local")]


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as found:
        found.host()
        yield found


@pytest.fixture
def instance(region: Region) -> Instance:
    """A read/write splitting one, which nobody makes."""
    instance_id = region.create(SPLIT)
    with region.store.read() as tx:
        found = instances.get(tx, instance_id)
    assert found is not None
    return found


def flavor(spec_code: str = SPLIT, **changes: Any) -> flavors.Flavor:
    found = flavors.find(spec_code)
    assert found is not None
    return msgspec.structs.replace(found, **changes)


@pytest.mark.parametrize(
    ("sold", "cores", "count"),
    [(2, 8, 2), (3, 8, 3), (3, 1, 2), (16, 4, 4), (64, 64, 64), (0, 8, 0)],
)
def test_there_are_as_many_as_sold_but_no_more_than_cores_and_two_at_least(
    instance: Instance, sold: int, cores: int, count: int
) -> None:
    found = new_proxies(instance, flavor(proxies=sold), [a_host(cores=cores)], SPOTS)
    assert [one.number for one in found] == list(range(count))
    assert [one.az_code for one in found] == (["a", "b"] * count)[:count]
    assert len({one.id for one in found} | {one.logical_id for one in found}) == 2 * count


def of(instance: Instance, *there: Any, **changes: Any) -> ProxySettings | None:
    changed = msgspec.structs.replace(instance, **changes)
    return wanted(changed, flavor(), there, new_proxies(changed, flavor(), [a_host()], SPOTS))


def test_they_are_told_the_servers_that_are_to_run_and_run_as_long_as_one_is(instance: Instance) -> None:
    up, down = node(0, ip="127.0.0.9"), node(1, run=Run.DOWN)
    found = of(instance, up, down)
    assert found is not None
    assert found.servers == (Address("127.0.0.9", 6379),)
    assert (found.mode, found.listen) == (Mode.SPLIT, Address(instance.ip, instance.port))
    assert of(instance, down, node(2, run=Run.GONE)) is None
    in_cluster = node(0, settings=settings(clustered=True))
    other = of(instance, in_cluster, cache_mode="proxy")
    assert other is not None
    assert other.mode is Mode.CLUSTER


def test_together_they_take_as_many_clients_as_the_flavor_says(instance: Instance) -> None:
    three = new_proxies(instance, flavor(proxies=3), [a_host(cores=3)], SPOTS)
    found = wanted(instance, flavor(connections=10_000), [node()], three)
    assert found is not None
    assert found.maxclients * 3 >= 10_000 > (found.maxclients - 1) * 3


def test_a_failover_changes_nothing_and_any_other_address_or_name_does(instance: Instance) -> None:
    both = new_proxies(instance, flavor(), [a_host()], SPOTS)

    def known(*there: Any, **changes: Any) -> str:
        found = wanted(msgspec.structs.replace(instance, **changes), flavor(), there, both)
        assert found is not None
        return digest(found)

    first, second = node(0), node(1)
    before = known(first, second)
    moved = (
        msgspec.structs.replace(second, role=Role.MASTER),
        msgspec.structs.replace(first, role=Role.REPLICA),
    )
    assert known(*moved) == before
    others = {
        known(first),
        known(first, second, port=6500),
        known(first, second, ip="127.0.0.200"),
        known(first, second, rename_commands={"keys": "keys_new"}),
        known(first, msgspec.structs.replace(second, port=6500)),
    }
    assert len(others | {before}) == 6


def test_the_file_says_all_of_it_and_no_secret(instance: Instance) -> None:
    found = of(instance, node(0), node(1), rename_commands={"keys": "k-1", "hgetall": "All_of"})
    assert found is not None
    text = proxy.conf(found)
    said = tomllib.loads(text)
    assert said["servers"] == ["127.0.0.0:6379", "127.0.0.1:6379"]
    assert said["listen"] == [f"{instance.ip}:{instance.port}"]
    assert said["rename"] == {"keys": "k-1", "hgetall": "all_of"}
    assert said["limits"] == {"maxclients": found.maxclients}
    assert said["siblings"] == [f"../{one}/control" for one in found.siblings]
    assert (said["digest"], said["password_from"]) == (digest(found), "stdin")
    assert proxy.gate("secret").strip() not in text
    assert instance.internal_secret not in text
    assert "secret" not in proxy.gate("secret")
