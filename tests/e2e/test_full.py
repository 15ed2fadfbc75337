"""A cache that is full of its owner's data can still be changed."""

import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from support.caches import PASSWORD, made
from support.service import Service


def fill(link: "redis.Redis") -> None:
    for number in range(200):
        link.set(f"key-{number}", "x" * 1_048_576)


def test_a_full_cache_takes_a_new_password(service: Service) -> None:
    with made(service) as cache:
        with cache.client() as link, pytest.raises(redis.OutOfMemoryError):
            fill(link)
        body = dcs.ModifyInstancePasswordBody(old_password=PASSWORD, new_password="Another_pass.2")
        request = dcs.UpdatePasswordRequest(instance_id=cache.id, body=body)
        assert service.sdk().update_password(request).result == "success"
        cache.until_running()
        with cache.client("Another_pass.2") as link:
            assert link.strlen("key-0") == 1_048_576
