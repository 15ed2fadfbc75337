"""What the kernel is to hold each instance's clients to. Follows from the rows; the agent makes it so."""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from cacheyard.domain import bandwidth
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance, floats, in_force, proxied
from cacheyard.domain.nodes import Node, Run, Shard


class Cap(msgspec.Struct, frozen=True):
    """What goes to these addresses together, and what comes from them, may be so many Mbit/s each."""

    addresses: tuple[str, ...]
    mbit: int


def caps(
    instance: Instance, flavor: Flavor, shards: Sequence[Shard], nodes: Iterable[Node]
) -> tuple[Cap, ...]:
    """One for each shard whose servers clients talk to, or one for the address of all proxies; none while
    nothing runs. All nodes of a shard share, so a failover changes nothing."""
    there = [node for node in nodes if node.run is Run.UP and in_force(instance, node)]
    chosen = instance.bandwidth or bandwidth.UNCHANGED
    if not there:
        return ()
    public = {instance.public_access.address} if instance.public_access is not None else set()
    if proxied(instance):
        mbit = bandwidth.of_instance(chosen, flavor, [shard.id for shard in shards])
        return (Cap(tuple(sorted({instance.ip, *public})), mbit),)
    floating = public | ({instance.ip} if floats(instance) else set())
    found = []
    for shard in shards:
        addresses = floating | {node.ip for node in there if node.shard_id == shard.id}
        found.append(Cap(tuple(sorted(addresses)), bandwidth.of_shard(chosen, flavor, shard.id)))
    return tuple(one for one in found if one.addresses)


def digest(found: Sequence[Cap]) -> str:
    """Says whether these are in force."""
    return hashlib.sha256(msgspec.json.encode(found, order="deterministic")).hexdigest()
