"""Redis Clusters in tests: asked as their clients ask them, through every node."""

import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from support import servers
from support.caches import PASSWORD, Cache, first_ip
from support.waiting import until

from cacheyard.engine.cluster import Member, parse_members

SLOTS = 16384


def spec(rest: str) -> dict[str, Any]:
    """Spec code and capacity of a flavor: `r2.4`, `r2.s1.8`."""
    return {"spec_code": f"redis.cluster.xu1.large.{rest}", "capacity": int(rest.rpartition(".")[2])}


def ips(cache: Cache) -> list[str]:
    """Of all nodes, as the API shows them."""
    found: list[str] = cache.show()["ip"].split(",")
    return found


def client(cache: Cache, password: str | None = PASSWORD) -> RedisCluster:
    """The usual client of a cluster, which follows its nodes wherever they send it."""
    shown = cache.show()
    return RedisCluster(
        host=first_ip(shown),
        port=shown["port"],
        password=password,
        decode_responses=True,
        socket_timeout=10,
        retry=Retry(NoBackoff(), 5),
    )


def at(cache: Cache, ip: str, password: str | None = PASSWORD) -> "redis.Redis":
    """A client of one node."""
    return cache.client(password, host=ip, port=cache.show()["port"])


def members(link: "redis.Redis") -> list[Member]:
    """All nodes, as one of them sees them."""
    answer: Any = link.execute_command("CLUSTER", "NODES")  # type: ignore[no-untyped-call]
    return parse_members(answer)


def seen_by(cache: Cache) -> dict[str, list[Member]]:
    """What every node says of all."""
    found = {}
    for ip in ips(cache):
        with at(cache, ip) as link:
            found[ip] = members(link)
    return found


def masters(cache: Cache) -> list[Member]:
    """The masters that serve slots, by their first slot, as the first node sees them."""
    seen = next(iter(seen_by(cache).values()))
    return sorted((one for one in seen if one.slots), key=lambda one: one.slots)


def until_whole(cache: Cache, seconds: float = 20) -> None:
    """Wait until all nodes see the same nodes, all well, and all slots served, and serve their own."""

    def whole() -> bool:
        everyone = set(ips(cache))
        for ip in everyone:
            with at(cache, ip) as link:
                said: Any = link.execute_command("CLUSTER", "INFO")
                if "cluster_state:ok" not in said:
                    return False
        for seen in seen_by(cache).values():
            addresses = {one.address.ip for one in seen if one.address is not None}
            served = sum(last - first + 1 for one in seen for first, last in one.slots)
            ill = [one for one in seen if one.flags & {"fail", "fail?", "handshake", "noaddr"}]
            if addresses != everyone or len(seen) != len(everyone) or served != SLOTS or ill:
                return False
        return True

    def tried() -> bool:
        try:
            return whole()
        except redis.RedisError as error:
            raise OSError(str(error)) from error

    until(tried, seconds=seconds, what=f"the cluster of {cache.id} to be whole", pause=0.05)


def check(cache: Cache) -> str:
    """What `redis-cli --cluster check` says of it; it must find nothing wrong."""
    program = shutil.which("redis-cli") or str(Path(servers.NEWEST).with_name("redis-cli"))
    shown = cache.show()
    where = f"{first_ip(shown)}:{shown['port']}"
    done = subprocess.run(
        [program, "-a", PASSWORD, "--no-auth-warning", "--cluster", "check", where],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[ERR]" not in done.stdout, done.stdout
    assert "[WARNING]" not in done.stdout, done.stdout
    return done.stdout


def fill(cache: Cache, keys: int, size: int = 10) -> dict[str, str]:
    """Write so many keys, which fall to all shards; what was written."""
    written = {f"key-{number}": f"{number}".rjust(size, "x") for number in range(keys)}
    with closing(client(cache)) as link:
        for key, value in written.items():
            assert link.set(key, value)
    return written


def missing(cache: Cache, written: dict[str, str]) -> list[str]:
    """The keys whose values are not as written."""
    with closing(client(cache)) as link:
        return [key for key, value in written.items() if link.get(key) != value]
