"""What the agent puts in force follows from rows, whatever the kernel says to it; `nft` is played here."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.region import Region, open_region

from cacheyard.agent import firewall
from cacheyard.agent.firewall import Firewall, NotClosed
from cacheyard.domain.whitelist import Group, Whitelist
from cacheyard.engine import nft, ours, sockets
from cacheyard.store import fences, instances

LIST = Whitelist(True, (Group("a", ("10.0.0.1",)),))


class Kernel:
    """Has one table, or none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.table = ""
        self.works = True
        self.flushed_at_once = 0  # so often, before anybody can look
        self.cuts = 0
        self.boot = "first"
        patch.setattr(nft, "apply", self.apply)
        patch.setattr(nft, "listing", lambda _table: self.table)
        patch.setattr(sockets, "cut", self.cut)
        patch.setattr(ours, "is_ours", lambda _pid: True)
        patch.setattr(firewall, "boot_id", lambda: self.boot)

    def apply(self, text: str) -> None:
        if not self.works:
            raise nft.NftError("it does not work")
        self.table = "\n".join(text.splitlines()[2:])
        if self.flushed_at_once:
            self.flushed_at_once -= 1
            self.table = ""

    def cut(self, _fences: object) -> int:
        self.cuts += 1
        return 0

    def begin_anew(self) -> None:
        self.table, self.boot = "", self.boot + "+"


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as found:
        found.host()
        yield found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def instance(region: Region, whitelist: Whitelist | None = LIST) -> str:
    found = region.running("redis.ha.xu1.tiny.r2.128", az_codes=region.first.az_codes[:1])
    say(region, found, whitelist)
    return found


def say(region: Region, instance_id: str, whitelist: Whitelist | None) -> None:
    with region.store.write() as tx:
        instances.change(tx, instance_id, whitelist=msgspec.to_builtins(whitelist))


def agent(region: Region, fault: str | None = None) -> Firewall:
    return Firewall(region.store, "local", Path("/data"), fault)


def standing(region: Region, instance_id: str) -> tuple[bool, str | None]:
    with region.store.read() as tx:
        found = fences.standing(tx, instance_id)
    return found.in_force, found.error


def settle(one: Firewall, *instance_ids: str) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(one.settled(instance_id) for instance_id in instance_ids))

    asyncio.run(all_of_them())


def addresses(region: Region, instance_id: str) -> tuple[str, ...]:
    with region.store.read() as tx:
        found = fences.of_instance(tx, instance_id)
    assert found is not None
    return found.addresses


def test_all_addresses_of_an_instance_are_closed_and_that_is_reported(region: Region, kernel: Kernel) -> None:
    open_one, closed_one = instance(region, None), instance(region)
    assert standing(region, open_one) == (True, None)
    assert standing(region, closed_one) == (False, None)
    settle(agent(region), open_one, closed_one)
    assert len(addresses(region, closed_one)) == 3  # two nodes, and the one that floats
    assert all(f"{ip} : goto" in kernel.table for ip in addresses(region, closed_one))
    assert standing(region, closed_one) == (True, None)
    assert kernel.cuts == 1


def test_what_cannot_be_put_in_force_lets_no_server_start(region: Region, kernel: Kernel) -> None:
    open_one, closed_one = instance(region, None), instance(region)
    kernel.works, one = False, agent(region)
    with pytest.raises(NotClosed, match="it does not work"):
        settle(one, closed_one)
    settle(one, open_one)
    assert standing(region, closed_one) == (False, "it does not work")
    kernel.works = True
    settle(one, closed_one)
    assert standing(region, closed_one) == (True, None)


def test_what_cannot_be_taken_out_of_force_is_still_there(region: Region, kernel: Kernel) -> None:
    closed_one = instance(region)
    one = agent(region)
    settle(one, closed_one)
    say(region, closed_one, None)
    assert standing(region, closed_one) == (False, None)
    kernel.works = False
    with pytest.raises(NotClosed):
        settle(one, closed_one)
    assert standing(region, closed_one) == (False, "it does not work")
    kernel.works = True
    settle(one, closed_one)
    assert standing(region, closed_one) == (True, None)
    assert kernel.table == ""


@pytest.mark.parametrize("restarted", [False, True])
def test_without_the_right_to_filter_only_a_restarted_machine_is_open(
    region: Region, kernel: Kernel, restarted: bool
) -> None:
    closed_one = instance(region)
    settle(agent(region), closed_one)
    if restarted:
        kernel.begin_anew()
    one = agent(region, "no right")
    with pytest.raises(NotClosed, match="no right"):
        settle(one, closed_one)
    assert standing(region, closed_one) == (False, "no right")
    say(region, closed_one, Whitelist(False, LIST.groups))
    if restarted:
        settle(one, closed_one)
        assert standing(region, closed_one) == (True, None)
    else:
        with pytest.raises(NotClosed, match="no right"):
            settle(one, closed_one)
        assert standing(region, closed_one) == (False, "no right")


def test_a_table_that_is_removed_again_and_again_is_there_again(region: Region, kernel: Kernel) -> None:
    closed_one, one = instance(region), agent(region)
    kernel.flushed_at_once = 1
    settle(one, closed_one)
    assert kernel.table == ""
    for _ in range(3):
        asyncio.run(one.verify())
        assert f"{addresses(region, closed_one)[0]} : goto" in kernel.table
        kernel.table = ""
        kernel.flushed_at_once = 1
        asyncio.run(one.verify())
        assert kernel.table == ""


def test_an_agent_that_comes_later_puts_it_in_force_anew_and_removes_what_nobody_wants(
    region: Region, kernel: Kernel
) -> None:
    closed_one = instance(region)
    kernel.begin_anew()
    settle(agent(region), closed_one)
    assert kernel.table != ""
    say(region, closed_one, Whitelist(True, ()))
    settle(agent(region), closed_one)
    assert kernel.table == ""


def test_servers_that_would_be_shut_out_are_not(
    region: Region, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_one = instance(region)
    monkeypatch.setattr(ours, "is_ours", lambda _pid: False)
    monkeypatch.setattr(fences, "processes_of", lambda _tx, _id: [1])
    one = agent(region)
    with pytest.raises(NotClosed, match="restart it first"):
        settle(one, closed_one)
    assert kernel.table == ""
