"""What was in an instance before: keys that must outlive all that is done to it."""

from contextlib import closing
from typing import Any

import redis
from chaos.service import PASSWORD

AT_ONCE = 5000


def client(shown: dict[str, Any], password: str = PASSWORD) -> Any:
    """A tenant's client, of whatever kind the instance is."""
    options: dict[str, Any] = {"port": shown["port"], "password": password, "decode_responses": True}
    host = shown["ip"].split(",")[0]
    if shown["cache_mode"] == "cluster":
        return redis.RedisCluster(host=host, **options)
    return redis.Redis(host=host, **options)


def fill(shown: dict[str, Any], count: int, password: str = PASSWORD) -> None:
    """Write so many keys."""
    with closing(client(shown, password)) as tenant:
        for start in range(0, count, AT_ONCE):
            with tenant.pipeline(transaction=False) as pipe:
                for number in range(start, min(count, start + AT_ONCE)):
                    pipe.set(f"old:{number}", f"{number:050}")
                pipe.execute()


def missing(shown: dict[str, Any], count: int, password: str = PASSWORD) -> list[int]:
    """Of those keys, the ones that are not as they were."""
    gone = []
    with closing(client(shown, password)) as tenant:
        for start in range(0, count, AT_ONCE):
            with tenant.pipeline(transaction=False) as pipe:
                for number in range(start, min(count, start + AT_ONCE)):
                    pipe.get(f"old:{number}")
                values = pipe.execute()
            gone += [start + at for at, value in enumerate(values) if value != f"{start + at:050}"]
    return gone
