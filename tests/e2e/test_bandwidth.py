"""Bandwidth: what instances are shown with, how it is changed, and that clients are held to it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from huaweicloudsdkdcs import v2 as dcs
from support import clusters
from support.caches import HA, Cache, made, refused
from support.proxied import FORMS, needs_program
from support.service import Service
from support.traffic import is_clean, rates, sent, taken
from support.waiting import until

from cacheyard.engine import find, tc

DAY = 86_400_000  # ms
CLUSTER = clusters.spec("r2.s1.4")  # 384 Mbit/s for each of four shards
FLAVORS: dict[str, tuple[dict[str, Any], int, int]] = {  # with the Mbit/s of all, and the number of shards
    "single": ({}, 40, 1),
    "ha": ({"spec_code": HA}, 40, 1),
    "cluster": (CLUSTER, 4 * 384, 4),
    "proxy": (FORMS["proxy"], 1000, 3),
    "ha_rw_split": (FORMS["ha_rw_split"], 3 * 384, 1),
}
needs_rights = pytest.mark.skipif(tc.fault() is not None, reason=f"nothing can be capped here: {tc.fault()}")


@pytest.fixture(scope="module")
def capped() -> Iterator[Service]:
    """A service that holds clients to their bandwidth. Nothing of it is left in the kernel."""
    service = Service(CACHEYARD_BANDWIDTH_CAPS="true", CACHEYARD_OVERCOMMIT="100")
    try:
        yield service
    finally:
        try:
            service.close()
        finally:
            left = not is_clean(service.data)
            tc.remove(service.data)
    assert not left, "the caps outlive `down --instances`"


def groups(service: Service, cache: Cache) -> Any:
    return service.sdk_token().show_bandwidths(dcs.ShowBandwidthsRequest(instance_id=cache.id))


def choose(service: Service, cache: Cache, **targets: Any) -> Any:
    """Ask for the bandwidth of shards, by their ids."""
    body = dcs.UpdateBandwidthInfoRequest(
        group_bandwidths=[
            dcs.UpdateGroupBandwidthInfoRequest(group_id=name, target_bandwidth=mbit)
            for name, mbit in targets.items()
        ]
    )
    return service.sdk_token().update_bandwidth(dcs.UpdateBandwidthRequest(instance_id=cache.id, body=body))


def increase(service: Service, cache: Cache) -> Any:
    request = dcs.UpdateInstanceBandwidthRequest(instance_id=cache.id)
    return service.sdk_token().update_instance_bandwidth(request)


# --- Shown, by a service that caps nothing -----------------------------------------------------------


@pytest.mark.parametrize("mode", FLAVORS)
def test_each_type_is_shown_with_the_bandwidth_of_its_flavor(yard: Service, mode: str) -> None:
    if mode in FORMS and find.proxy() is None:
        pytest.skip("the native proxy is not built here")
    changes, mbit, shards = FLAVORS[mode]
    with made(yard, az_codes=yard.facts.az_codes[:2], **changes) as cache:
        shown = cache.show()["bandwidth_info"]
        assert (shown["bandwidth"], shown["assured_bandwidth"]) == (mbit, mbit)
        assert (shown["expand_count"], shown["max_expand_count"], shown["task_running"]) == (0, 3, False)
        assert shown["begin_time"] == shown["end_time"] == shown["next_expand_time"] == 0
        found = groups(yard, cache)
        assert (found.bandwidth, found.allow_modify) == (mbit, True)
        assert [group.bandwidth for group in found.group_bandwidths] == [mbit // shards] * shards
        assert {group.assured_bandwidth for group in found.group_bandwidths} == {mbit // shards}
        answer = yard.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups")
        ids = {group["group_id"] for group in answer.json()["group_list"]}
        assert {group.group_id for group in found.group_bandwidths} == ids
        assert is_clean(yard.data)


def test_an_increase_doubles_the_bandwidth_for_a_week_and_must_not_be_repeated(yard: Service) -> None:
    with made(yard) as cache:
        before = time.time_ns() // 1_000_000
        increase(yard, cache)
        shown = cache.show()["bandwidth_info"]
        assert (shown["bandwidth"], shown["assured_bandwidth"], shown["expand_count"]) == (80, 40, 1)
        assert before <= shown["begin_time"] <= shown["current_time"]
        assert shown["end_time"] - shown["begin_time"] == 7 * DAY
        assert shown["next_expand_time"] == shown["end_time"] + DAY
        assert shown["expand_interval_time"] == shown["next_expand_time"] - shown["current_time"]
        assert [one["name"] for one in cache.tasks()] == ["UpdateBandwidth", "create"]
        with refused(400, "DCS.4800", "already"):
            increase(yard, cache)
        assert cache.show()["bandwidth_info"]["bandwidth"] == 80
        assert cache.act("stop").status_code in (200, 204)
        cache.until_running("CLOSED")
        with refused(400, "DCS.4049"):
            increase(yard, cache)


def test_three_increases_each_end_by_themselves_also_while_the_service_is_away(
    fresh_service: Any,
) -> None:
    service = fresh_service(CACHEYARD_INCREASE_HOURS="0.0003", CACHEYARD_INCREASE_PAUSE_HOURS="0")
    with made(service) as cache:

        def ended() -> bool:
            shown = cache.show()
            return bool(shown["bandwidth_info"]["bandwidth"] == 40 and shown["task"] is None)

        for number in (1, 2, 3):
            increase(service, cache)
            if number == 3:
                service.kill()
                time.sleep(1.2)  # it ends meanwhile
                service.start()
            until(ended, seconds=30, what="the increase to end")
            shown = cache.show()["bandwidth_info"]
            assert shown["expand_count"] == number
            assert shown["end_time"] - shown["begin_time"] == 1080
        assert shown["next_expand_time"] == 0
        with refused(400, "DCS.4800", "3 times"):
            increase(service, cache)
        names = [task["name"] for task in cache.tasks() if task["status"] == "SUCCESS"]
        assert names[:6] == ["RestoreBandwidth", "UpdateBandwidth"] * 3


def test_what_cannot_be_chosen_for_a_shard_is_refused_and_changes_nothing(yard: Service) -> None:
    with made(yard) as cache:
        (group,) = groups(yard, cache).group_bandwidths
        for targets, word in (
            ({group.group_id: 39}, "target_bandwidth"),
            ({group.group_id: 2049}, "target_bandwidth"),
            ({group.group_id: 100, "another": 100}, "group_id"),
            ({}, "group_bandwidths"),
        ):
            with refused(400, "DCS.4800", word):
                choose(yard, cache, **targets)
        twice = [{"group_id": group.group_id, "target_bandwidth": mbit} for mbit in (50, 60)]
        answer = cache.http("PUT", "/bandwidths", json={"group_bandwidths": twice})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
        assert groups(yard, cache).group_bandwidths == [group]
        body = {"group_bandwidths": [{"group_id": group.group_id, "target_bandwidth": 100}]}
        job = cache.http("PUT", "/bandwidths", json=body).json()["job_id"]
        assert yard.http("GET", f"/v2/{{p}}/jobs/{job}").json()["status"] == "SUCCESS"
        (after,) = groups(yard, cache).group_bandwidths
        assert (after.bandwidth, after.assured_bandwidth) == (100, 40)
        assert after.updated_at > group.updated_at
        assert cache.show()["bandwidth_info"]["bandwidth"] == 100


def test_a_policy_is_kept_and_given_back_and_there_need_be_none(yard: Service) -> None:
    client = yard.sdk_token()
    with made(yard) as cache:
        path = "/autoscaling-policy/bandwidth"
        show = dcs.ShowInstanceBandwidthAutoScalingPolicyRequest(instance_id=cache.id)
        assert cache.http("GET", path).json() == {}
        body = dcs.UpdateInstanceBandwidthAutoScalingPolicyRequestBody(
            window_size=5, bandwidth_usage_upper_threshold=80, scale_out_cooldown=600
        )
        client.update_instance_bandwidth_auto_scaling_policy(
            dcs.UpdateInstanceBandwidthAutoScalingPolicyRequest(instance_id=cache.id, body=body)
        )
        found = client.show_instance_bandwidth_auto_scaling_policy(show)
        assert (found.window_size, found.bandwidth_usage_upper_threshold) == (5, 80)
        assert (found.scale_out_cooldown, found.scale_in_enabled, found.scale_in_cooldown) == (
            600,
            False,
            300,
        )
        wrong = {"window_size": 7, "bandwidth_usage_upper_threshold": 81, "scale_out_cooldown": -1}
        for name, value in wrong.items():
            answer = cache.http("PUT", path, json=body.to_dict() | {name: value})
            assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
            assert name in answer.json()["error_msg"]
        assert client.show_instance_bandwidth_auto_scaling_policy(show) == found
        delete = dcs.DeleteInstanceBandwidthAutoScalingPolicyRequest(instance_id=cache.id)
        client.delete_instance_bandwidth_auto_scaling_policy(delete)
        client.delete_instance_bandwidth_auto_scaling_policy(delete)
        assert cache.http("GET", path).json() == {}


# --- Held to it --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(capped: Service) -> Iterator[Cache]:
    with made(capped, spec_code=HA, az_codes=capped.facts.az_codes[:2]) as cache:
        yield cache


@needs_rights
def test_clients_of_a_pair_are_held_to_its_bandwidth_each_way_and_to_another_at_once(
    capped: Service, pair: Cache
) -> None:
    assert rates(pair) == [40, 40]
    sent(pair).is_held_to(40)
    taken(pair).is_held_to(40)
    (group,) = groups(capped, pair).group_bandwidths
    choose(capped, pair, **{group.group_id: 72})
    assert rates(pair) == [72, 72]
    sent(pair, connections=1).is_held_to(72)
    choose(capped, pair, **{group.group_id: 40})
    assert rates(pair) == [40, 40]


@needs_rights
def test_a_pair_whose_clients_use_all_they_have_is_watched_and_replicated_as_ever(pair: Cache) -> None:
    master, replica = pair.addresses()
    measured = taken(pair, seconds=5, connections=8)
    measured.is_held_to(40)
    assert pair.addresses() == [master, replica]
    with pair.client() as link:
        info: Any = link.info("replication")
        assert (info["slave0"]["state"], info["slave0"]["lag"] <= 1) == ("online", True)
        assert info["slave0"]["ip"] == replica
    assert pair.show()["status"] == "RUNNING"


@needs_rights
def test_caps_hold_through_a_failover_and_without_the_service(capped: Service, pair: Cache) -> None:
    _, replica = pair.addresses()
    with pair.client() as link:
        pid = int(link.info("server")["process_id"])
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        there = pair.addresses()
        return len(there) == 2 and there[1] != replica

    until(replaced, seconds=30, what="another master and a replica")
    assert rates(pair) == [40, 40]
    sent(pair).is_held_to(40)
    link = pair.client()
    assert link.ping()
    capped.kill()
    assert rates(pair) == [40, 40]
    capped.start()
    pair.until_running()
    assert rates(pair) == [40, 40]


@needs_rights
def test_what_somebody_takes_away_comes_back(pair: Cache) -> None:
    subprocess.run(["nft", "delete", "table", "ip", tc.table_of(pair.service.data)], check=True, timeout=10)
    until(lambda: rates(pair) == [40, 40], seconds=30, what="the caps to be in force again")


@needs_rights
def test_a_larger_flavor_has_its_own_bandwidth_and_a_stopped_instance_needs_none(capped: Service) -> None:
    others = 0
    with made(capped) as cache:
        before = rates(cache)
        others = len(before) - 2
        body = {"spec_code": "redis.single.xu1.large.2", "new_capacity": 2}
        answer = cache.http("POST", "/resize", json=body)
        assert answer.status_code == 204, answer.text
        cache.until_running()
        assert rates(cache).count(128) == 2
        sent(cache).is_held_to(128)
        cache.act("stop")
        cache.until_running("CLOSED")
        until(lambda: len(rates(cache)) == others, seconds=30, what="no caps without servers")
        cache.act("start")
        cache.until_running()
        assert rates(cache).count(128) == 2
    until(lambda: len(rates(cache)) == others, seconds=30, what="no caps of what is gone")


@needs_rights
def test_shards_of_a_cluster_are_held_to_their_own_bandwidth_and_keep_in_touch(capped: Service) -> None:
    with made(capped, az_codes=capped.facts.az_codes[:2], **CLUSTER) as cache:
        found = groups(capped, cache).group_bandwidths
        assert rates(cache).count(384) == 2 * len(found)
        choose(capped, cache, **{found[0].group_id: 500})
        assert (rates(cache).count(384), rates(cache).count(500)) == (2 * len(found) - 2, 2)
        ip = _master_of(cache, found[1].group_id)
        sent(cache, ip=ip).is_held_to(384)
        taken(cache, ip=ip).is_held_to(384)
        assert clusters.client(cache).cluster_info()["cluster_state"] == "ok"


def _master_of(cache: Cache, group_id: str) -> str:
    answer = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/groups").json()
    (group,) = (one for one in answer["group_list"] if one["group_id"] == group_id)
    (ip,) = (
        one["replication_ip"] for one in group["replication_list"] if one["replication_role"] == "master"
    )
    return str(ip)


@needs_rights
@needs_program
def test_all_clients_of_all_proxies_share_what_the_instance_has(capped: Service) -> None:
    with made(capped, az_codes=capped.facts.az_codes[:2], **FORMS["ha_rw_split"]) as cache:
        assert rates(cache).count(1152) == 2
        sent(cache, connections=4).is_held_to(1152)
        taken(cache, connections=4).is_held_to(1152)
        increase(capped, cache)
        assert rates(cache).count(2304) == 2


@needs_rights
def test_a_service_that_is_to_cap_nothing_any_more_takes_its_caps_away(capped: Service, pair: Cache) -> None:
    capped.restart(CACHEYARD_BANDWIDTH_CAPS="false")
    assert is_clean(capped.data)
    increase(capped, pair)
    assert pair.show()["bandwidth_info"]["bandwidth"] == 80
    assert is_clean(capped.data)
    capped.restart(CACHEYARD_BANDWIDTH_CAPS="true")
    assert rates(pair) == [80, 80]


@needs_rights
def test_a_service_that_is_killed_while_the_bandwidth_changes_ends_it(capped: Service, pair: Cache) -> None:
    (group,) = groups(capped, pair).group_bandwidths
    before = pair.show()["bandwidth_info"]["bandwidth"]
    body = {"group_bandwidths": [{"group_id": group.group_id, "target_bandwidth": 5 * 40}]}

    def ask() -> None:
        with suppress(httpx.TransportError):
            pair.http("PUT", "/bandwidths", json=body)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(random.random() / 20)
    capped.kill()
    asking.join()
    capped.start()
    shown = pair.until_running()["bandwidth_info"]["bandwidth"]
    until(lambda: rates(pair) == [shown, shown], seconds=30, what="what is shown to be in force")
    assert shown in (before, 5 * before)


@needs_rights
def test_a_change_that_cannot_take_effect_is_undone(fresh_service: Any, tmp_path: Path) -> None:
    broken, fake = tmp_path / "broken", tmp_path / "tc"
    fake.write_text(f'#!/bin/sh\n[ -e {broken} ] && exit 1\nexec {shutil.which("tc")} "$@"\n')
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    service = fresh_service(CACHEYARD_BANDWIDTH_CAPS="true", PATH=path)
    try:
        with made(service) as cache:
            broken.touch()
            url = f"{service.facts.endpoint}{cache.path.format(p=service.facts.project_id)}/bandwidth"
            answer = httpx.put(url, headers={"X-Auth-Token": service.token()}, timeout=30)
            assert (answer.status_code, answer.json()["error_code"]) == (500, "DCS.4842")
            assert "tc ended" in answer.json()["error_msg"]
            shown = cache.until_running()["bandwidth_info"]
            assert (shown["bandwidth"], shown["expand_count"]) == (40, 0)
            assert rates(cache) == [40, 40]
            broken.unlink()
            increase(service, cache)
            assert rates(cache) == [80, 80]
    finally:
        broken.unlink(missing_ok=True)
        tc.remove(service.data)


@needs_rights
def test_without_the_right_to_cap_the_service_says_so_and_does_not_start(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "cacheyard", "up", "--data", str(tmp_path / "data"), "--port", "0"]
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", *command],
        env={**os.environ, "CACHEYARD_BANDWIDTH_CAPS": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "bandwidth_caps" in done.stderr
    assert "CAP_NET_ADMIN" in done.stderr
