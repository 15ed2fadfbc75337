"""Flavors: the sizes an instance can have, computed from the rules that the documented lists follow.

A spec code reads `redis.<type>.<cpu>.<tiny|large>.[r<nodes a shard>.|p<nodes>.][s<shard GB>.]<size>`,
sizes in MB under `tiny` and in GB under `large`.
"""

import platform
from collections.abc import Iterator
from functools import cache

import msgspec

from cacheyard.domain.engines import SOLD

MODES = ("single", "ha", "cluster", "proxy", "ha_rw_split")
CPUS = {"xu1": "x86_64", "au1": "aarch64"}

_SMALL = (128, 256, 512)  # MB
_SINGLE = (1, 2, 4, 8, 16, 24, 32, 48, 64)  # GB, as all that follow
_SPLIT = (1, 2, 4, 8, 16, 32, 64)
_SHARDS = {
    4: 3, 8: 3, 16: 3, 24: 3, 32: 3, 48: 6, 64: 8, 96: 12, 128: 16,
    192: 24, 256: 32, 384: 48, 512: 64, 768: 96, 1024: 128,
}  # fmt: skip
_SHARD_SIZES = (1, 2, 4, 8, 16, 32, 64)  # GB a shard of a cluster can be asked to have
_PROXY_BANDWIDTH = {4: 1000, 8: 2000, 16: 3072, 24: 3072, 32: 3072, 48: 4608, 64: 6144, 96: 9216}
_PROXY_CONNECTIONS = {
    4: 20,
    8: 30,
    16: 30,
    24: 30,
    32: 30,
    48: 60,
    64: 80,
    96: 120,
    128: 160,
    192: 240,
}  # thousand


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """One size of one type. Memory in MB, bandwidth in Mbit/s."""

    spec_code: str
    cache_mode: str
    cpu: str  # x86_64 or aarch64
    capacity_mb: int
    shards: int = 1
    nodes_per_shard: int = 1  # the master and its replicas
    proxies: int = 0
    databases: int = 256
    bandwidth: int
    connections: int  # maxclients to begin with
    connection_limit: int  # what maxclients can be set to
    engine_versions: tuple[str, ...] = SOLD

    @property
    def capacity_text(self) -> str:
        """GB as the API writes it in flavors: `0.125`, `1`."""
        return f"{self.capacity_mb / 1024:g}"

    @property
    def shard_mb(self) -> int:
        """What one shard holds."""
        return self.capacity_mb // self.shards

    @property
    def nodes(self) -> int:
        """Servers that hold data."""
        return self.shards * self.nodes_per_shard

    @property
    def memory_mb(self) -> int:
        """What all servers together may use."""
        return self.shard_mb * self.nodes


def local_cpu() -> str:
    """The processor of this machine as flavors name it."""
    return "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


@cache
def flavors() -> dict[str, Flavor]:
    """All flavors by spec code, this machine's processor first, smallest first."""
    codes = sorted(CPUS, key=lambda code: CPUS[code] != local_cpu())
    return {flavor.spec_code: flavor for code in codes for flavor in _of_cpu(code)}


@cache
def find(spec_code: str) -> Flavor | None:
    """The flavor of a spec code; `redis.ha.xu1.large.2` without a node count means two nodes."""
    found = flavors().get(spec_code)
    if found is None and spec_code.startswith("redis.ha."):
        head, _, size = spec_code.rpartition(".")
        if (full := flavors().get(f"{head}.r2.{size}")) is not None:
            return msgspec.structs.replace(full, spec_code=spec_code)
    return found


def alike(
    flavor: Flavor, *, capacity_mb: int | None = None, nodes_per_shard: int | None = None
) -> Flavor | None:
    """The flavor of the same type and processor with another capacity or another number of nodes a shard. Of
    several, which only clusters have, the one whose shards are as large, or else as many."""
    wanted = (capacity_mb or flavor.capacity_mb, nodes_per_shard or flavor.nodes_per_shard)
    found = [
        other
        for other in flavors().values()
        if (other.cache_mode, other.cpu) == (flavor.cache_mode, flavor.cpu)
        and (other.capacity_mb, other.nodes_per_shard) == wanted
        and (capacity_mb is not None or other.shards == flavor.shards)
    ]
    return min(
        found,
        key=lambda other: (other.shard_mb != flavor.shard_mb, other.shards != flavor.shards),
        default=None,
    )


def memory_of(spec_code: str) -> int:
    """MB that all servers of an instance of this flavor may use; 0 for a code that is sold no more."""
    found = find(spec_code)
    return found.memory_mb if found else 0


def _of_cpu(code: str) -> Iterator[Flavor]:
    cpu = CPUS[code]
    sizes = [*_SMALL, *(gb * 1024 for gb in _SINGLE)]
    for mb in sizes:
        yield _plain("single", code, "", mb, 1)
    for nodes in (2, 3, 4, 5):
        for mb in sizes:
            yield _plain("ha", code, f"r{nodes}.", mb, nodes)
    for nodes in (2, 1, 3, 4, 5):
        for gb, shards in _SHARDS.items():
            yield _cluster(code, nodes, gb, shards, "")
    for shard_gb in _SHARD_SIZES:
        for gb, usual in _SHARDS.items():
            shards, rest = divmod(gb, shard_gb)
            if rest == 0 and 3 <= shards <= 128 and shards != usual:
                yield _cluster(code, 2, gb, shards, f"s{shard_gb}.")
    for gb, shards in _SHARDS.items():
        yield Flavor(
            spec_code=f"redis.proxy.{code}.large.{gb}",
            cache_mode="proxy",
            cpu=cpu,
            capacity_mb=gb * 1024,
            shards=shards,
            nodes_per_shard=2,
            proxies=max(3, shards // 2),
            databases=1,
            bandwidth=_PROXY_BANDWIDTH.get(gb, 10000),
            connections=_PROXY_CONNECTIONS.get(gb, 320 if gb == 256 else 480) * 1000,
            connection_limit=_PROXY_CONNECTIONS.get(gb, 320 if gb == 256 else 500) * 1000,
            engine_versions=SOLD[:3],
        )
    for nodes in (2, 3, 4, 5, 6):
        for gb in _SPLIT:
            yield Flavor(
                spec_code=f"redis.ha.{code}.large.p{nodes}.{gb}",
                cache_mode="ha_rw_split",
                cpu=cpu,
                capacity_mb=gb * 1024,
                nodes_per_shard=nodes,
                proxies=2,
                bandwidth=(384 if gb <= 4 else 768) * nodes,  # 48 and 96 MB/s a node
                connections=10_000 * nodes,
                connection_limit=10_000 * nodes,
                engine_versions=SOLD[:3],
            )


def _plain(mode: str, code: str, infix: str, mb: int, nodes: int) -> Flavor:
    size = f"tiny.{infix}{mb}" if mb < 1024 else f"large.{infix}{mb // 1024}"
    return Flavor(
        spec_code=f"redis.{mode}.{code}.{size}",
        cache_mode=mode,
        cpu=CPUS[code],
        capacity_mb=mb,
        nodes_per_shard=nodes,
        bandwidth=_plain_bandwidth(mb),
        connections=10_000,
        connection_limit=10_000 if mb < 1024 else 50_000,
    )


def _plain_bandwidth(mb: int) -> int:
    for least, bandwidth in ((65536, 384), (16384, 256), (4096, 192), (2048, 128), (256, 80)):
        if mb >= least:
            return bandwidth
    return 40


def _cluster(code: str, nodes: int, gb: int, shards: int, infix: str) -> Flavor:
    return Flavor(
        spec_code=f"redis.cluster.{code}.large.r{nodes}.{infix}{gb}",
        cache_mode="cluster",
        cpu=CPUS[code],
        capacity_mb=gb * 1024,
        shards=shards,
        nodes_per_shard=nodes,
        databases=1,
        bandwidth=shards * (384 if gb == shards else 768),
        connections=10_000 * shards,
        connection_limit=50_000 * shards,
    )
