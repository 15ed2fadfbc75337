"""A proxy: one process that clients of a proxied instance talk to. All of an instance share its address.

Nothing of what a proxy is configured with is kept: it follows from the instance and its nodes, so it
cannot be wrong. Tasks wait until all proxies have taken what the rows say by now (`digest`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from cacheyard.domain.accounts import AccountRole
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance, certified, clustered, in_force, renamed
from cacheyard.domain.nodes import Address, Node, NodeState, Run
from cacheyard.domain.parameters import ProxyParameters, for_proxies
from cacheyard.domain.placement import Host, Spot
from cacheyard.ids import new_id

FEWEST = 2  # one dies, and its clients need another


class Mode(StrEnum):
    """What is behind a proxy."""

    CLUSTER = "cluster"  # a Redis Cluster: commands go where their slot is
    SPLIT = "split"  # a master, which takes writes, and its replicas, which are read


class ProxySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a proxy is configured with but where its own files are."""

    mode: Mode
    listen: Address
    public: Address | None = None  # where it listens too
    siblings: tuple[str, ...]  # ids of all proxies of the instance, of whose clients each tells
    servers: tuple[Address, ...]  # all nodes of the instance; the proxy asks them who is master
    maxclients: int  # of this process
    parameters: ProxyParameters
    readers: tuple[str, ...] = ()  # accounts whose scripts replicas run
    rename_commands: dict[str, str]  # command to new name, both lower case
    internal_secret: str  # sealed; what the proxy's own account at the servers is made from
    client_ip: bool = True  # whether it tells from where clients come
    tls: tuple[str, ...] = ()  # what its certificate is for (`NodeSettings.tls`); empty: no TLS with clients


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `proxies`."""

    id: str
    instance_id: str
    host_id: str
    number: int
    logical_id: str
    az_code: str
    seen_state: NodeState = NodeState.CREATING
    seen_since: int = 0
    seen_digest: str = ""
    seen_version: str = ""  # of the program that runs; empty: not known
    seen_pid: int | None = None
    seen_error: str | None = None
    seen_expires: int | None = None


class ProxyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `proxy_figures`: what a proxy said of itself."""

    proxy_id: str
    seen_at: int
    clients: int
    commands: int  # since the process began
    commands_per_second: int
    input_bytes: int  # from clients, since the process began
    output_bytes: int
    input_kbps: float
    output_kbps: float
    cpu_seconds: float
    memory: int  # bytes


def new_proxies(
    instance: Instance, flavor: Flavor, hosts: Sequence[Host], spots: Iterable[Spot]
) -> list[Proxy]:
    """The proxies of an instance that is to have that flavor, one after the other in its zones. As many as
    the flavor says, but not more than its machines have cores for, and two at least."""
    zones = list(dict.fromkeys(spots))
    cores = sum(host.cores for host in hosts if host.id in {spot.host_id for spot in zones})
    count = max(FEWEST, min(flavor.proxies, cores)) if flavor.proxies else 0
    return [
        Proxy(
            id=new_id(),
            instance_id=instance.id,
            host_id=zones[number % len(zones)].host_id,
            number=number,
            logical_id=new_id(),
            az_code=zones[number % len(zones)].az_code,
        )
        for number in range(count)
    ]


def successor(old: Proxy, proxy_id: str, spot: Spot) -> Proxy:
    """One that takes the place of another."""
    return Proxy(
        id=proxy_id,
        instance_id=old.instance_id,
        host_id=spot.host_id,
        number=old.number,
        logical_id=old.logical_id,
        az_code=spot.az_code,
    )


def wanted(
    instance: Instance, flavor: Flavor, nodes: Iterable[Node], proxies: Sequence[Proxy]
) -> ProxySettings | None:
    """What each of the instance's proxies is configured with; None: they are not to run, as no server is."""
    servers = tuple(
        Address(node.ip, node.port) for node in nodes if node.run is Run.UP and in_force(instance, node)
    )
    if not servers:
        return None
    chosen = for_proxies(instance.parameters, instance.engine_version, flavor)
    readers = [one for one in instance.accounts if one.role is AccountRole.READ]
    if not chosen.readers_scripts_to_replicas:
        readers = []
    return ProxySettings(
        mode=Mode.CLUSTER if clustered(instance) else Mode.SPLIT,
        listen=Address(instance.ip, instance.port),
        public=Address(instance.public_access.address, instance.port) if instance.public_access else None,
        siblings=tuple(sorted(proxy.id for proxy in proxies)),
        servers=tuple(sorted(servers, key=lambda address: (address.ip, address.port))),
        maxclients=-(-chosen.clients // len(proxies)),
        parameters=chosen,
        readers=tuple(sorted(reader.name for reader in readers)),
        rename_commands=renamed(instance),
        internal_secret=instance.internal_secret,
        client_ip=instance.client_ip,
        tls=certified(instance) if instance.ssl else (),
    )


def places(settings: ProxySettings) -> tuple[Address, ...]:
    """Where a proxy listens."""
    return (settings.listen,) if settings.public is None else (settings.listen, settings.public)


def digest(settings: ProxySettings) -> str:
    """Says whether a proxy has taken these settings."""
    return hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest()
