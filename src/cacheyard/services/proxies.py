"""What services decide about proxies that are there. `services.lifecycle` makes them."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.domain import placement
from cacheyard.domain.engines import version_of
from cacheyard.domain.instances import Instance
from cacheyard.domain.placement import Host
from cacheyard.domain.proxies import Proxy
from cacheyard.ids import new_id
from cacheyard.store import hosts, proxies

# By the id of the proxy that goes: what `tasks.proxies` needs of the one that comes.
Replacements = dict[str, dict[str, str]]


def replacements(there: Sequence[Host], going: Iterable[tuple[Proxy, str]]) -> Replacements:
    """New proxies in the places of these, each in its zone."""
    able = [host for host in there if host.proxy is not None]
    found = {}
    for proxy, zone in going:
        spots = placement.place(able, [zone], 1, 1)
        if spots is None:
            raise errors.ZoneSoldOut(why=f"no host of {zone} has the proxy's program")
        found[proxy.id] = {"id": new_id(), "az_code": zone, "host_id": spots[0][0].host_id}
    return found


class Versions(msgspec.Struct, frozen=True):
    """Of the program that an instance's proxies are."""

    running: str | None  # the oldest; None: not known
    installed: str | None
    old: list[Proxy]  # those that run, and run another than what is installed


def versions(tx: Connection, instance: Instance) -> Versions:
    """What runs, and what could."""
    there = proxies.of_instance(tx, instance.id)
    installed = {host.id: host.proxy_version for host in hosts.every(tx)}
    running = [proxy for proxy in there if proxy.seen_pid is not None]
    return Versions(
        min(filter(None, (proxy.seen_version for proxy in running)), key=version_of, default=None),
        max(filter(None, (installed.get(proxy.host_id) for proxy in there)), key=version_of, default=None),
        [proxy for proxy in running if installed.get(proxy.host_id) not in (None, proxy.seen_version)],
    )
