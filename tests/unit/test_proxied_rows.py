"""What services say and decide of instances behind proxies, from rows alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from support.region import Region, open_region

from cacheyard import errors
from cacheyard.clock import now_ms
from cacheyard.contract.types import (
    MigrateAZRequestBody,
    UpgradeMinorVersionRequestBody,
)
from cacheyard.domain.nodes import NodeState
from cacheyard.domain.proxies import Proxy
from cacheyard.domain.tasks import Change, Task
from cacheyard.services import capabilities, dims, offers, upgrade, views, zones
from cacheyard.store import proxies, tables, tasks

LONG_AGO = 1  # ms since the epoch
SPLIT = "redis.ha.xu1.large.p2.1"


class Yard:
    """A region with one read/write splitting instance, which nobody makes."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.zones = region.first.az_codes
        region.host(proxy_version="0.2.0")
        self.id = region.running(SPLIT)

    def call(self, body: Any = None, **parameters: Any) -> Any:
        return self.region.call(body, instance_id=self.id, **parameters)

    @property
    def proxies(self) -> list[Proxy]:
        with self.region.store.read() as tx:
            return proxies.of_instance(tx, self.id)

    def write(self, proxy: Proxy, **columns: Any) -> None:
        with self.region.store.write() as tx:
            tx.execute(update(tables.proxies).where(tables.proxies.c.id == proxy.id).values(**columns))

    def see(self, **columns: Any) -> None:
        """The same was seen of all proxies."""
        for proxy in self.proxies:
            self.write(proxy, **{f"seen_{name}": value for name, value in columns.items()})

    def task(self, change: Change) -> Task | None:
        """The newest of that kind."""
        with self.region.store.read() as tx:
            return tasks.latest(tx, self.id, change)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with open_region(tmp_path) as region:
        yield Yard(region)


def statuses(yard: Yard) -> set[str | None]:
    """In all answers that have one."""
    listed = views.list_instances(yard.call()).instances or []
    monitored = dims.list_monitored_objects(yard.call(dim_name="dcs_instance_id")).instances or []
    shown = {views.show_instance(yard.call()).status}
    return shown | {one.status for one in listed} | {one.status for one in monitored}


def test_without_any_proxy_for_long_the_instance_is_shown_as_faulty(yard: Yard) -> None:
    yard.see(state=NodeState.INACTIVE, since=LONG_AGO)
    assert statuses(yard) == {"ERROR"}
    yard.write(yard.proxies[1], seen_state=NodeState.ACTIVE)
    assert statuses(yard) == {"RUNNING"}


def test_proxies_that_have_just_gone_are_no_fault_yet(yard: Yard) -> None:
    yard.see(state=NodeState.INACTIVE, since=now_ms())
    assert statuses(yard) == {"RUNNING"}


def test_proxies_that_stopped_as_they_were_to_are_no_fault(yard: Yard) -> None:
    yard.see(state=NodeState.STOPPED, since=LONG_AGO)
    assert statuses(yard) == {"RUNNING"}


# --- Versions -------------------------------------------------------------------------------------


def versions(yard: Yard) -> tuple[str | None, str | None, bool | None]:
    shown = capabilities.show_instance_version(yard.call())
    return (
        shown.proxy_minor_version,
        shown.latest_proxy_minor_version,
        shown.proxy_minor_version_upgradable,
    )


def upgraded(yard: Yard, **wanted: str) -> dict[str, Any]:
    """The replacements of the task that was begun."""
    upgrade.upgrade_instance_minor_version(yard.call(UpgradeMinorVersionRequestBody(**wanted)))
    task = yard.task(Change.UPGRADE)
    assert task is not None
    found: dict[str, Any] = task.arguments["proxies"]
    return found


def test_a_version_that_nobody_has_asked_for_is_not_told(yard: Yard) -> None:
    assert versions(yard) == (None, None, False)
    assert upgraded(yard, engine_minor_version="latest", proxy_minor_version="latest") == {}


def test_of_several_versions_the_oldest_is_shown_and_only_its_proxies_are_replaced(yard: Yard) -> None:
    yard.see(pid=4242, version="0.2.0")
    old = yard.proxies[1]
    yard.write(old, seen_version="0.1.9")
    assert versions(yard) == ("0.1.9", "0.2.0", True)
    found = upgraded(yard, proxy_minor_version="0.2.0")
    assert set(found) == {old.id}
    assert (found[old.id]["az_code"], found[old.id]["host_id"]) == (old.az_code, "local")


def test_one_that_runs_in_a_version_nobody_knows_is_replaced(yard: Yard) -> None:
    yard.see(pid=4242, version="0.2.0")
    unknown = yard.proxies[1]
    yard.write(unknown, seen_version="")
    assert versions(yard) == ("0.2.0", "0.2.0", True)
    assert set(upgraded(yard, proxy_minor_version="0.2.0")) == {unknown.id}


def test_versions_are_compared_as_numbers(yard: Yard) -> None:
    yard.region.host(proxy_version="0.10.0")
    yard.see(pid=4242, version="0.9.0")
    yard.write(yard.proxies[0], seen_version="0.10.0")
    assert versions(yard) == ("0.9.0", "0.10.0", True)


def test_while_the_program_is_away_there_is_nothing_to_upgrade_to(yard: Yard) -> None:
    yard.region.host(proxy=None)
    yard.see(pid=4242, version="0.1.0")
    assert versions(yard) == ("0.1.0", "0.1.0", False)
    assert upgraded(yard, proxy_minor_version="latest") == {}


# --- Zones ----------------------------------------------------------------------------------------


def migrate(yard: Yard, *chosen: str) -> None:
    zones.migrate_az(yard.call(MigrateAZRequestBody(new_available_zones=list(chosen))))


def test_proxies_alone_move_when_all_nodes_are_there_already(yard: Yard) -> None:
    a, b, c = yard.zones
    stray = yard.proxies[0]
    yard.write(stray, az_code=c)
    migrate(yard, a, b)
    task = yard.task(Change.MIGRATE)
    assert task is not None
    assert task.arguments["node_ids"] == []
    assert {old: new["az_code"] for old, new in task.arguments["proxies"].items()} == {stray.id: a}


def test_a_zone_without_the_program_is_refused(yard: Yard) -> None:
    yard.region.host(proxy=None)
    with pytest.raises(errors.ZoneSoldOut, match="program"):
        migrate(yard, yard.zones[2])
    assert yard.task(Change.MIGRATE) is None


# --- Offers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["proxy", "ha_rw_split"])
def test_flavors_behind_proxies_are_to_be_had_where_the_program_is(yard: Yard, mode: str) -> None:
    def zones_offered() -> set[tuple[str, ...]]:
        found = offers.list_flavors(
            yard.region.call(cache_mode=mode, capacity="4", cpu_type="x86_64")
        ).flavors
        return {tuple((one.flavors_available_zones or [])[0].az_codes or ()) for one in found or []}

    assert zones_offered() == {tuple(yard.zones)}
    yard.region.host(proxy=None)
    assert zones_offered() == {()}
    with pytest.raises(errors.ZoneSoldOut, match="cacheyard doctor"):
        yard.region.create(SPLIT)
