"""Whitelists: who is named gets in at every address of an instance, nobody else does, whatever happens to it.

Clients come from other addresses of 127.0.0.0/8; who does not choose one comes from 127.0.0.1, a stranger.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support import clusters, outside
from support.caches import HA, SINGLE, Cache, made, refused
from support.outside import FRIEND, NAMED, OTHER_FRIEND, STRANGER, gets_in, needs_filter
from support.proxied import PROXY, SPLIT, job, needs_program
from support.service import Service
from support.waiting import until

from cacheyard.domain.whitelist import Fence
from cacheyard.engine import nft

CLUSTER = clusters.spec("r2.s1.4")
FORMS: dict[str, Any] = {
    "single": {"spec_code": SINGLE},
    "ha": {"spec_code": HA},
    "cluster": CLUSTER,
    "proxy": PROXY,
    "ha_rw_split": SPLIT,
}
PROXIED = ("proxy", "ha_rw_split")
BUS = 16379
Login = Callable[[str, str], socket.socket]


@pytest.fixture
def logged_in() -> Iterator[Login]:
    """Makes clients that have shown their password, by the address of the instance and their own."""
    with ExitStack() as open_links:
        yield lambda ip, source: open_links.enter_context(outside.logged_in(ip, source))


def groups(*given: tuple[str, list[str]]) -> list[Any]:
    return [dcs.Whitelist(group_name=name, ip_list=ips) for name, ips in given]


def by_sdk(client: Any, cache: Cache, enabled: bool, *given: tuple[str, list[str]]) -> None:
    body = dcs.ModifyIpWhitelistBody(enable_whitelist=enabled, whitelist=groups(*given))
    client.update_ip_whitelist(dcs.UpdateIpWhitelistRequest(cache.id, body))


def succeeded(cache: Cache) -> None:
    """The last task; its record ends a little after it has given the instance back."""

    def ended() -> str | None:
        status = str(cache.tasks()[0]["status"])
        return status if status != "EXECUTING" else None

    assert until(ended, seconds=20, what="the task to be recorded") == "SUCCESS"


def replicas_linked(cache: Cache, master_ip: str, count: int) -> None:
    def linked() -> bool:
        said = outside.info(master_ip, "replication")
        return said["role"] == "master" and said["connected_slaves"] == str(count)

    until(linked, seconds=20, what=f"{count} replicas at {master_ip}", pause=0.02)


# --- every type -------------------------------------------------------------------------------------


@needs_filter
@pytest.mark.parametrize(
    "form", ["single", "ha", "cluster", *(pytest.param(form, marks=needs_program) for form in PROXIED)]
)
def test_who_is_named_gets_in_at_every_address_and_nobody_else(
    yard: Service, dcs_client: Any, logged_in: Login, form: str
) -> None:
    with made(yard, name=f"fenced-{form}", **FORMS[form]) as cache:
        there = outside.addresses(cache)
        assert len(there) == {"single": 1, "ha": 3, "cluster": 8, "proxy": 7, "ha_rw_split": 4}[form]
        for ip in there:
            assert gets_in(ip)
        ip = cache.show()["ip"].partition(",")[0]
        stranger, friend, listener = (logged_in(ip, source) for source in (STRANGER, FRIEND, STRANGER))
        assert outside.says(listener, "SUBSCRIBE news").startswith(b"*3")

        by_sdk(dcs_client, cache, True, ("friends", [FRIEND]), ("more", ["127.10.1.128/25"]))

        for link in (stranger, listener):  # cut off before the answer: no news is theirs any more
            assert outside.is_cut(link)
        assert outside.says(friend, "PING") == b"+PONG\r\n"
        assert outside.says(friend, "PUBLISH news hello") == b":0\r\n"
        for ip, what in there.items():
            for port in (6379, BUS) if "cluster" in form else (6379,):
                assert not gets_in(ip, port), f"{what} {ip}:{port}"
            assert not gets_in(ip, source="127.10.1.127")
            assert gets_in(ip, source=FRIEND)
            assert gets_in(ip, source=OTHER_FRIEND)
        # and the servers among themselves, and cacheyard, go on
        assert outside.says(friend, "SET key value") == b"+OK\r\n" or form == "cluster"
        assert cache.act("restart").status_code in (200, 204)
        cache.until_running()
        succeeded(cache)
        assert not any(gets_in(ip) for ip in there)

        by_sdk(dcs_client, cache, False)
        assert all(gets_in(ip) for ip in there)
        assert outside.shown(cache) == {
            "instance_id": cache.id,
            "enable_whitelist": False,
            "whitelist": [],
        }


# --- what clients send ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fenced(yard: Service) -> Iterator[Cache]:
    """An instance whose whitelist tests set as they like."""
    with made(yard, name="fenced-1", spec_code=HA) as cache:
        yield cache


@needs_filter
def test_groups_outlive_being_switched_off(fenced: Cache, dcs_client: Any) -> None:
    outside.close_to_strangers(fenced)
    ip = fenced.show()["ip"]
    assert outside.put(fenced, enable_whitelist=False).status_code == 204
    assert outside.shown(fenced)["whitelist"] == NAMED
    assert gets_in(ip)
    assert outside.put(fenced, enable_whitelist=True).status_code == 204
    assert not gets_in(ip)
    answer = dcs_client.show_ip_whitelist(dcs.ShowIpWhitelistRequest(fenced.id))
    assert answer.enable_whitelist is True
    assert [(group.group_name, group.ip_list) for group in answer.whitelist] == [
        (group["group_name"], group["ip_list"]) for group in NAMED
    ]
    by_sdk(dcs_client, fenced, True)
    assert gets_in(ip), "an empty whitelist lets everybody in"


@needs_filter
def test_whose_range_is_taken_away_is_cut_off_and_the_others_are_not_disturbed(
    fenced: Cache, dcs_client: Any, logged_in: Login
) -> None:
    outside.close_to_strangers(fenced)
    ip = fenced.show()["ip"]
    stays, goes = logged_in(ip, FRIEND), logged_in(ip, OTHER_FRIEND)
    by_sdk(dcs_client, fenced, True, ("friends", [FRIEND]))
    assert outside.is_cut(goes)
    assert outside.says(stays, "PING") == b"+PONG\r\n"
    assert not gets_in(ip, source=OTHER_FRIEND)


@needs_filter
def test_as_a_job_it_is_in_force_when_the_job_is_done(fenced: Cache, dcs_client: Any) -> None:
    outside.put(fenced, enable_whitelist=False)
    body = dcs.ModifyIpWhitelistBody(enable_whitelist=True, whitelist=groups(("a", [FRIEND])))
    answer = dcs_client.update_ip_whitelist_async(dcs.UpdateIpWhitelistAsyncRequest(fenced.id, body))
    assert job(fenced, answer.job_id) == "SUCCESS"
    assert not gets_in(fenced.show()["ip"])
    assert fenced.tasks()[0]["name"] == "AddWhitelist"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([("a", ["0.0.0.0"])], "ip_list"),
        ([("a", ["10.0.0.1", "0.0.0.0/0"])], "ip_list"),
        ([("a", ["10.0.0.0/33"])], "ip_list"),
        ([("a", ["nobody"])], "ip_list"),
        ([("a", ["fe80::1"])], "ip_list"),
        ([("a", [])], "ip_list"),
        ([("a", ["10.0.0.1"]), ("b", ["10.0.0.1"])], "ip_list"),
        ([("a", ["10.0.0.1"]), ("a", ["10.0.0.2"])], "group_name"),
        ([(f"g{n}", [f"10.0.0.{n}"]) for n in range(5)], "whitelist"),
        ([(f"g{n}", [f"10.0.{n}.{m}" for m in range(7)]) for n in range(3)], "ip_list"),
    ],
)
def test_what_cannot_be_had_changes_nothing(
    fenced: Cache, dcs_client: Any, given: list[tuple[str, list[str]]], named: str
) -> None:
    before = outside.shown(fenced)
    with refused(400, "DCS.4800", named):
        by_sdk(dcs_client, fenced, True, *given)
    assert outside.shown(fenced) == before


# --- whatever happens -------------------------------------------------------------------------------


def master_pid(cache: Cache) -> int:
    return int(outside.info(cache.show()["ip"], "server")["process_id"])


@needs_filter
def test_failovers_restarts_and_new_replicas_open_no_way_in(yard: Service, dcs_client: Any) -> None:
    with made(yard, name="fenced-ha", spec_code=HA) as cache:
        outside.close_to_strangers(cache)
        ip = cache.show()["ip"]
        with outside.pressed(cache) as got_in:
            first = master_pid(cache)
            os.kill(first, signal.SIGKILL)

            def replaced() -> bool:
                return master_pid(cache) != first

            until(replaced, seconds=30, what="another master", pause=0.02)
            replicas_linked(cache, ip, 1)
            assert cache.act("restart").status_code in (200, 204)
            cache.until_running()
            before = set(outside.addresses(cache))
            body = dcs.ResizeInstanceBody(
                spec_code=HA.replace("r2", "r3"), new_capacity=0.125, change_type="createReplication"
            )
            dcs_client.resize_instance(dcs.ResizeInstanceRequest(cache.id, body))
            until(lambda: len(outside.addresses(cache)) == 4, seconds=30, what="the replica's row")
            cache.until_running()
            replicas_linked(cache, ip, 2)
            (new,) = set(outside.addresses(cache)) - before
            assert gets_in(new, source=FRIEND)
        assert got_in == []


@needs_filter
def test_slots_move_and_masters_are_replaced_behind_a_whitelist(yard: Service, dcs_client: Any) -> None:
    """Slots move by connections that do not come from a node's address."""
    with made(yard, name="fenced-cluster", **clusters.spec("r2.4")) as cache:
        written = clusters.fill(cache, 500)
        outside.close_to_strangers(cache)
        with outside.pressed(cache) as got_in:
            asked = clusters.spec("r2.s1.4")
            body = dcs.ResizeInstanceBody(spec_code=asked["spec_code"], new_capacity=asked["capacity"])
            dcs_client.resize_instance(dcs.ResizeInstanceRequest(cache.id, body))
            until(lambda: cache.show()["task"] is None, seconds=120, what="the resize", pause=0.1)
            succeeded(cache)
            assert len(outside.addresses(cache)) == 8
        assert got_in == []
        assert outside.put(cache, enable_whitelist=False).status_code == 204
        assert clusters.missing(cache, written) == []


@needs_filter
@needs_program
def test_changes_of_the_type_open_no_way_in(yard: Service, dcs_client: Any) -> None:
    small: dict[str, Any] = {"spec_code": "redis.ha.xu1.large.r2.4", "capacity": 4, "engine_version": "6.0"}
    with made(yard, name="fenced-retype", **small) as cache:
        with outside.logged_in(cache.show()["ip"], FRIEND) as link:
            assert outside.says(link, "SET key value") == b"+OK\r\n"
        outside.close_to_strangers(cache)
        with outside.pressed(cache) as got_in:
            for form in (PROXY, small):
                body = dcs.ResizeInstanceBody(
                    spec_code=form["spec_code"], new_capacity=4, change_type="instanceType"
                )
                dcs_client.resize_instance(dcs.ResizeInstanceRequest(cache.id, body))
                until(lambda: cache.show()["task"] is None, seconds=120, what="the change", pause=0.1)
                assert cache.show()["spec_code"] == form["spec_code"], cache.tasks()[0]
                with outside.logged_in(cache.show()["ip"], FRIEND) as link:
                    assert outside.says(link, "GET key") == b"$5\r\nvalue\r\n"
        assert got_in == []


@needs_filter
def test_it_holds_without_cacheyard_and_comes_back_when_somebody_takes_it_away(
    yard: Service, logged_in: Login
) -> None:
    with made(yard, name="fenced-2") as cache:
        ip = cache.show()["ip"]
        outside.close_to_strangers(cache)
        friend = logged_in(ip, FRIEND)
        yard.kill()
        assert not gets_in(ip)
        yard.start()
        assert not gets_in(ip)
        assert outside.says(friend, "PING") == b"+PONG\r\n"
        outside.flush(yard)
        until(lambda: not gets_in(ip), seconds=15, what="the whitelist to be in force again", pause=0.05)
        assert outside.says(friend, "PING") == b"+PONG\r\n"
        outside.flush(yard)
        with suppress(ConnectionRefusedError), outside.dial(ip, seconds=15) as slipped:
            assert outside.is_cut(slipped)  # who slipped in meanwhile goes again
        until(lambda: not gets_in(ip), seconds=15, what="the whitelist to be in force again", pause=0.05)


@needs_filter
def test_a_request_that_was_killed_half_way_is_finished(yard: Service) -> None:
    with made(yard, name="fenced-3") as cache:
        ip = cache.show()["ip"]
        answer = cache.service.http(
            "PUT",
            f"/v2/{{p}}/instance/{cache.id}/whitelist-async",
            json={"enable_whitelist": True, "whitelist": NAMED},
        )
        yard.kill()
        yard.start()
        assert job(cache, answer.json()["job_id"]) == "SUCCESS"
        assert not gets_in(ip)
        assert gets_in(ip, source=FRIEND)


@needs_filter
def test_no_table_is_left_when_no_whitelist_is_in_force_or_nothing_runs(
    fresh_service: Any,
) -> None:
    service: Service = fresh_service()
    with made(service) as cache:
        assert outside.table(service) == ""
        outside.close_to_strangers(cache)
        ip = cache.show()["ip"]
        assert ip in outside.table(service)
        service.down(instances=True)
        assert outside.table(service) == ""
        service.start()
        with outside.pressed(cache) as got_in:
            until(lambda: gets_in(ip, source=FRIEND), seconds=20, what="the instance to be back")
        assert got_in == []
    until(lambda: outside.table(service) == "", seconds=10, what="the table to be gone with the instance")


@needs_filter
def test_what_is_left_of_a_yard_that_somebody_removed_by_its_directory_is_removed(
    fresh_service: Callable[[], Service], tmp_path: Path
) -> None:
    """Its addresses may be another yard's by now."""
    left = nft.table_of(tmp_path / "gone")
    one = Fence(instance_id="i", addresses=("127.64.0.9",), allowed=("10.0.0.1/32",))
    nft.apply(nft.render(left, [one], tmp_path / "gone"))
    try:
        fresh_service()
        assert nft.listing(left) == ""
    finally:
        nft.remove(left)


# --- where it cannot be kept ------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["net_admin", "setgid"])
def test_without_the_right_to_filter_it_is_refused_and_nothing_changes(lacks: str) -> None:
    with outside.Unprivileged(lacks) as service, made(service) as cache:
        answer = outside.put(cache, enable_whitelist=True, whitelist=NAMED)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4027"), answer.text
        assert gets_in(cache.show()["ip"])
        assert outside.shown(cache)["whitelist"] == []
        assert [task["name"] for task in cache.tasks()] == ["create"]
        # what needs no filter is taken
        assert outside.put(cache, enable_whitelist=False, whitelist=NAMED).status_code == 204
        assert outside.shown(cache)["whitelist"] == NAMED


@needs_filter
def test_who_lost_the_right_to_filter_cannot_open_what_is_closed() -> None:
    with outside.Unprivileged(None) as service, made(service) as cache:
        ip = cache.show()["ip"]
        outside.close_to_strangers(cache)
        with service.without("net_admin"):
            assert not gets_in(ip)
            asked = {"enable_whitelist": False, "whitelist": []}
            answer = service.http("PUT", f"/v2/{{p}}/instance/{cache.id}/whitelist-async", json=asked)
            assert job(cache, answer.json()["job_id"]) == "FAIL"
            assert not gets_in(ip)
            assert outside.shown(cache)["enable_whitelist"] is True
            assert cache.show()["status"] == "RUNNING"
        assert outside.put(cache, enable_whitelist=False).status_code == 204
        assert gets_in(ip)


@needs_filter
def test_servers_that_are_not_known_as_ours_are_started_anew_before_a_whitelist_shuts_them_out() -> None:
    """As those are that an earlier version has started."""
    with outside.Unprivileged("setgid") as service, made(service, spec_code=HA) as cache:
        service.continues(None)
        asked = {"enable_whitelist": True, "whitelist": NAMED}
        answer = service.http("PUT", f"/v2/{{p}}/instance/{cache.id}/whitelist-async", json=asked)
        assert job(cache, answer.json()["job_id"]) == "FAIL"
        assert outside.shown(cache)["whitelist"] == []
        assert gets_in(cache.show()["ip"])
        assert cache.act("restart").status_code in (200, 204)
        cache.until_running()
        outside.close_to_strangers(cache)
        replicas_linked(cache, cache.show()["ip"], 1)
        first = master_pid(cache)
        os.kill(first, signal.SIGKILL)  # the Sentinels too are others by now
        until(lambda: master_pid(cache) != first, seconds=30, what="another master", pause=0.02)
        assert not gets_in(cache.show()["ip"])
