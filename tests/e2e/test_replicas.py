"""Master/standby instances: replicas really replicate, read-only, wherever the flavor puts them."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, Cache, made
from support.service import Service
from support.waiting import until


@pytest.fixture(scope="module")
def pair(service: Service) -> Iterator[Cache]:
    with made(service, name="pair-1", spec_code=HA, az_codes=service.facts.az_codes[:2]) as cache:
        yield cache


def at(cache: Cache, address: str) -> "redis.Redis":
    return cache.client(host=address, port=6379)


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_a_flavor_has_as_many_replicas_as_it_says(service: Service, nodes: int) -> None:
    with made(service, spec_code=f"redis.ha.xu1.tiny.r{nodes}.128") as cache:
        shown, addresses = cache.show(), cache.addresses()
        assert shown["replica_count"] == nodes
        assert len(set(addresses)) == nodes
        with cache.client() as link:
            link.set("key", "value")
            assert link.wait(nodes - 1, 5000) == nodes - 1
        for address in addresses[1:]:
            with at(cache, address) as link:
                assert link.get("key") == "value"
                assert link.info("replication")["role"] == "slave"


def test_a_flavor_without_a_node_count_has_two(service: Service) -> None:
    with made(service, spec_code="redis.ha.xu1.tiny.128") as cache:
        assert len(cache.addresses()) == 2
        assert cache.show()["spec_code"] == "redis.ha.xu1.tiny.128"


def test_a_replica_refuses_writes(pair: Cache) -> None:
    with at(pair, pair.addresses()[1]) as link, pytest.raises(redis.ReadOnlyError):
        link.set("key", "value")


def test_the_instance_keeps_an_append_only_file(pair: Cache) -> None:
    for address in pair.addresses():
        with at(pair, address) as link:
            assert link.config_get("append*")["appendonly"] == "yes"


def test_the_address_of_the_instance_is_the_master(pair: Cache) -> None:
    with pair.client() as link:
        role: Any = link.role()
    assert role[0] == "master"


def test_a_replica_wants_the_same_password(pair: Cache) -> None:
    with pytest.raises(redis.AuthenticationError):
        pair.client("Wrong-pass-1", host=pair.addresses()[1], port=6379).ping()


def test_tenants_do_not_see_the_secret_of_replication(pair: Cache) -> None:
    """What `CONFIG GET` tells opens nothing that the tenant may not have anyway."""
    with at(pair, pair.addresses()[1]) as link:
        told: Any = link.config_get("master*")
    user, secret = told.get("masteruser"), told.get("masterauth")
    with redis.Redis(
        host=pair.show()["ip"], port=6379, username=user, password=secret, decode_responses=True
    ) as link:
        for command in ("CONFIG SET maxmemory 0", "FLUSHALL", "SET key value", "ACL LIST", "SHUTDOWN NOSAVE"):
            with pytest.raises(redis.ResponseError):
                link.execute_command(*command.split())


def test_statistics_come_from_the_servers(service: Service, sdk: Any, pair: Cache) -> None:
    with pair.client() as link:
        link.flushall()
        for number in range(50):
            link.set(f"key-{number}", "x" * (1 << 20))
            link.get(f"key-{number}")

    def figures() -> Any:
        answer = sdk.list_statistics_of_running_instances(dcs.ListStatisticsOfRunningInstancesRequest())
        return next(each for each in answer.statistics if each.instance_id == pair.id)

    seen: Any = until(lambda: (f := figures()).keys == 50 and f, seconds=10, what="the figures of 50 keys")
    assert 50 <= seen.used_memory < 128
    assert seen.max_memory == 128
    assert seen.cmd_set_count >= 50
    assert seen.cmd_get_count >= 50
    assert float(seen.used_cpu) > 0
    assert pair.show()["used_memory"] == seen.used_memory
