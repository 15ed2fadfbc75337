"""The caches outlive the service: whatever ends it, they answer, and it takes them up again as they are."""

from collections.abc import Callable

import pytest
import redis
from support.caches import HA, made, pid_of
from support.service import Service
from support.waiting import until


def test_caches_answer_while_the_service_is_killed_stopped_and_started(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service()
    with made(service, spec_code=HA) as cache:
        address, before = cache.show()["ip"], pid_of(cache)
        with cache.client(host=address, port=6379) as link:
            link.set("key", "value")
            service.kill()
            assert link.get("key") == "value"
            service.start()
            assert cache.show()["status"] == "RUNNING"
            service.down()
            assert link.get("key") == "value"
            service.start()
            cache.until_running()
            assert pid_of(cache) == before


def test_down_with_instances_stops_them_and_up_brings_them_back_with_their_data(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service()
    with made(service, count=2, name="both") as caches:
        address = caches[0].show()["ip"]
        with caches[0].client() as link:
            link.set("key", "value")
        assert "2 servers are stopped" in service.down(instances=True)
        assert service.processes() == {}
        with pytest.raises(redis.ConnectionError):
            caches[0].client(host=address, port=6379).ping()
        service.start()
        for cache in caches:
            cache.until_running()
        with caches[0].client() as link:  # they are RUNNING when their servers are being started, too
            until(lambda: link.get("key") == "value", seconds=10, what="the value to be there")


def test_what_was_said_at_the_first_start_is_said_at_every_start(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service()
    service.kill()
    told = service.start()
    assert told == {name: getattr(service.facts, name) for name in told}
