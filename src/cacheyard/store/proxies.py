"""Rows of `proxies` and `proxy_figures`, and what follows for the processes."""

from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain import flavors
from cacheyard.domain.instances import PROXIED_MODES
from cacheyard.domain.nodes import NodeState
from cacheyard.domain.proxies import Proxy, ProxyFigures, ProxySettings, digest, wanted
from cacheyard.store import instances, nodes, rows
from cacheyard.store.tables import proxies, proxy_figures

_ORDER = (proxies.c.instance_id, proxies.c.number)


def add(tx: Connection, new: Iterable[Proxy]) -> None:
    """Insert proxies; the agents of their hosts then start them."""
    if found := [msgspec.to_builtins(proxy) for proxy in new]:
        tx.execute(insert(proxies), found)


def of_instance(tx: Connection, instance_id: str) -> list[Proxy]:
    """The instance's proxies, by number."""
    return of_instances(tx, [instance_id])


def of_instances(tx: Connection, instance_ids: Sequence[str]) -> list[Proxy]:
    """The proxies of several instances, by instance and number."""
    query = select(proxies).where(proxies.c.instance_id.in_(instance_ids)).order_by(*_ORDER)
    return rows.all_of(Proxy, tx.execute(query))


def remove(tx: Connection, proxy_ids: Iterable[str]) -> None:
    """Delete proxies; the agents of their hosts then end them."""
    tx.execute(delete(proxies).where(proxies.c.id.in_(list(proxy_ids))))


def remove_of_instance(tx: Connection, instance_id: str) -> None:
    """Delete all proxies of an instance."""
    tx.execute(delete(proxies).where(proxies.c.instance_id == instance_id))


def figures_of(tx: Connection, instance_id: str) -> dict[str, ProxyFigures]:
    """What the instance's proxies last said, by proxy."""
    query = select(proxy_figures).join(proxies).where(proxies.c.instance_id == instance_id)
    return {found.proxy_id: found for found in rows.all_of(ProxyFigures, tx.execute(query))}


def figures_of_all(tx: Connection, instance_ids: Sequence[str]) -> dict[str, list[ProxyFigures]]:
    """What the proxies of several instances last said, by instance."""
    found: dict[str, list[ProxyFigures]] = {instance_id: [] for instance_id in instance_ids}
    if found:
        there = {proxy.id: proxy.instance_id for proxy in of_instances(tx, instance_ids)}
        query = select(proxy_figures).where(proxy_figures.c.proxy_id.in_(there))
        for figures in rows.all_of(ProxyFigures, tx.execute(query)):
            found[there[figures.proxy_id]].append(figures)
    return found


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A proxy and what it is to be configured with."""

    proxy: Proxy
    settings: ProxySettings | None  # None: it is not to run now


def of_host(tx: Connection, host_id: str) -> list[Wanted]:
    """All proxies of a host. (Instances without any cost nothing.)"""
    query = select(proxies).where(proxies.c.host_id == host_id).order_by(*_ORDER)
    there = rows.all_of(Proxy, tx.execute(query))
    settings = {
        instance_id: settings_of(tx, instance_id) for instance_id in {proxy.instance_id for proxy in there}
    }
    return [Wanted(proxy=proxy, settings=settings[proxy.instance_id]) for proxy in there]


def settings_of(tx: Connection, instance_id: str) -> ProxySettings | None:
    """What the rows want of each proxy of an instance; None: that none runs."""
    instance = instances.get(tx, instance_id)
    there = of_instance(tx, instance_id)
    if instance is None or not there or instance.cache_mode not in PROXIED_MODES:
        return None
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance was made
    return wanted(instance, flavor, nodes.of_instance(tx, instance_id), there)


def unsettled(tx: Connection, instance_id: str) -> list[str]:
    """What was last seen of those proxies of the instance that do not serve as the rows want."""
    settings = settings_of(tx, instance_id)
    known = digest(settings) if settings is not None else ""
    state = NodeState.ACTIVE if settings is not None else NodeState.STOPPED
    return [
        f"proxy {proxy.number}: {proxy.seen_error or proxy.seen_state.value}"
        for proxy in of_instance(tx, instance_id)
        if proxy.seen_state is not state or proxy.seen_digest != known
    ]


class ProxyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent saw of a proxy."""

    proxy_id: str
    state: NodeState
    since: int
    digest: str  # of the settings in force; empty: it does not run
    pid: int | None
    error: str | None
    version: str = ""  # of the program that runs; empty: not known
    expires: int | None = None  # until when its certificate is valid


def report_all(tx: Connection, reports: Iterable[ProxyReport]) -> None:
    """Write what agents saw; of proxies that are gone, nothing."""
    for report in reports:
        seen = {f"seen_{name}": value for name, value in msgspec.to_builtins(report).items()}
        tx.execute(update(proxies).where(proxies.c.id == seen.pop("seen_proxy_id")).values(**seen))


def write_figures(tx: Connection, said: Iterable[ProxyFigures]) -> None:
    """Write what proxies said of themselves; of those that are gone, nothing."""
    values = [msgspec.to_builtins(figures) for figures in said]
    there = set(
        tx.scalars(select(proxies.c.id).where(proxies.c.id.in_([value["proxy_id"] for value in values])))
    )
    for value in values:
        if value["proxy_id"] in there:
            tx.execute(
                upsert(proxy_figures)
                .values(**value)
                .on_conflict_do_update(index_elements=["proxy_id"], set_=value)
            )
