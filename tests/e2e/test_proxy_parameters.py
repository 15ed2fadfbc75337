"""Parameters of proxies: what proxies have, and what it does for their clients."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkdcs import v2 as dcs
from support.caches import PASSWORD, Cache, one_of_each, refused
from support.inside import inside
from support.parameters import (
    change,
    change_by_job,
    values,
)
from support.proxied import FORMS, needs_program, proxy_directories
from support.service import Service
from support.waiting import until

pytestmark = needs_program
MB = 1 << 20


@pytest.fixture(scope="module")
def caches(yard: Service) -> Iterator[dict[str, Cache]]:
    """One of each type, and what a test changes of it is nobody else's."""
    with one_of_each(yard, FORMS) as found:
        yield found


@pytest.fixture(scope="module")
def client(yard: Service) -> Any:
    return yard.sdk_token()


def test_databases_of_a_proxy_cluster_come_and_go_while_there_are_no_keys(
    caches: dict[str, Cache], client: Any
) -> None:
    cache = caches["proxy"]
    with cache.client(db=0) as link:
        link.flushall()
        with pytest.raises(redis.ResponseError, match="SELECT"):
            link.execute_command("SELECT", "5")
    change(client, cache, multi_db="yes")
    with cache.client(db=5) as five, cache.client() as zero:
        five.set("a", "five")
        assert (zero.get("a"), five.get("a")) == (None, "five")
        # what the request does not know yet, the task does
        assert not is_done(client, cache, multi_db="no")
        to_ha = {"spec_code": "redis.ha.xu1.large.r2.4", "new_capacity": 4, "change_type": "instanceType"}
        with refused(400, "DCS.4200", "multi-db"):
            asked = dcs.ResizeInstanceBody(**to_ha)
            client.resize_instance(dcs.ResizeInstanceRequest(instance_id=cache.id, body=asked))
        assert five.get("a") == "five"
        assert values(client, cache)["multi-db"] == "yes"
        zero.flushall()
        until(lambda: is_done(client, cache, multi_db="no"), seconds=30, what="no keys to be known")
    with pytest.raises(redis.ResponseError), cache.client(db=5) as link:
        link.get("a")


def is_done(client: Any, cache: Cache, **chosen: str) -> bool:
    """Whether a change is made; else it is refused at once, or its job fails."""
    try:
        return change_by_job(client, cache, **chosen) == "SUCCESS"
    except ClientRequestException as error:
        if error.error_code != "DCS.4066":
            raise
        return False


def test_channels_of_a_proxy_cluster_can_be_at_one_shard(caches: dict[str, Cache], client: Any) -> None:
    cache = caches["proxy"]
    change(client, cache, dispatch_pubsub_to_fixed_shard="yes")
    with cache.client() as link, link.pubsub() as listener:
        channels = [f"channel-{number}" for number in range(20)]
        listener.subscribe(*channels)
        with inside(cache) as known:
            heard = {
                node.ip for node in known.nodes if known.call(node.ip, "PUBSUB", "CHANNELS", "channel-*")
            }

        assert len(heard) == 1, heard
        for channel in channels:
            link.publish(channel, "x")
        got = [listener.get_message(timeout=10) for _ in range(2 * len(channels))]
        assert [one["type"] for one in got if one][-1] == "message"
    change(client, cache, dispatch_pubsub_to_fixed_shard="no")


def test_proxies_have_their_own_slow_log_and_cut_off_who_says_nothing(
    caches: dict[str, Cache], client: Any
) -> None:
    cache = caches["ha_rw_split"]
    change(client, cache, timeout="1", proxy_slowlog_log_slower_than="30000", proxy_slowlog_max_len="1")
    with cache.client() as link:
        for _ in range(2):
            link.blpop("nothing", timeout=0.1)  # who waits at will is not slow
            link.eval("local t = redis.call('time') repeat local n = redis.call('time') "
                      "until (n[1] - t[1]) * 1000000 + n[2] - t[2] > 100000 return 1", 0)  # fmt: skip
        logs = [entry for log in slow_logs(cache) for entry in log]
        assert len(logs) == 1, logs
        sock = socket.create_connection((cache.show()["ip"], 6379))
        sock.settimeout(60)
        assert sock.recv(100) == b""  # cut off
        sock.close()
    change(client, cache, timeout="0")


def slow_logs(cache: Cache) -> list[Any]:
    """What the proxies of the instance noted."""
    found = []
    for directory in proxy_directories(cache):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(directory / "control"))
            control.sendall(b"slowlog\n")
            control.shutdown(socket.SHUT_WR)
            with control.makefile() as said:
                found.append(json.load(said))
    return found


@pytest.mark.parametrize("form", ["proxy", "ha_rw_split"])
def test_keys_can_be_left_to_replicas(caches: dict[str, Cache], client: Any, form: str) -> None:
    cache = caches[form]

    def asked() -> tuple[int, int]:
        """How often masters and replicas were."""
        with inside(cache) as known:
            masters = set(known.masters.values())
            found = [0, 0]
            for node in known.nodes:
                said = known.call(node.ip, "INFO", "commandstats")
                calls = said.partition("cmdstat_keys:calls=")[2].partition(",")[0]
                found[node.id not in masters] += int(calls or 0)
        return found[0], found[1]

    with cache.client() as link:
        link.set("a", "1")
        before = asked()
        link.keys("*")
        after = asked()
        assert after[0] > before[0]
        assert after[1] == before[1]
        change(client, cache, support_dispatch_to_replica_list="KEYS")

        def told_by_replicas() -> bool:
            masters, replicas = asked()
            found = link.keys("*")
            now = asked()
            return "a" in found and now[0] == masters and now[1] > replicas

        # a node does not list a replica before it has heard its offset: seconds, in a new cluster
        until(told_by_replicas, seconds=10, what="replicas to tell the keys")


def test_scripts_of_reading_accounts_are_run_by_replicas(caches: dict[str, Cache], client: Any) -> None:
    cache = caches["ha_rw_split"]
    create = dcs.CreateAclAccountRequestBody(
        account_name="reader-1", account_role="read", account_password=PASSWORD
    )
    client.create_acl_account(dcs.CreateAclAccountRequest(instance_id=cache.id, body=create))
    with cache.client() as writer:
        writer.set("a", "1")

    def where() -> str:
        """Says who ran it: a replica's script cannot write."""
        with cache.client(username="reader-1") as link:
            return str(link.eval("return redis.call('get', KEYS[1])", 1, "a"))

    with inside(cache) as known:
        master = next(node for node in known.nodes if node.id in known.masters.values())

        def evals() -> str:
            return str(known.call(master.ip, "INFO", "commandstats")).partition("cmdstat_eval:")[2][:20]

        where()
        change(client, cache, readonly_lua_route_to_slave_enabled="yes")
        before = evals()
        until(lambda: where() == "1", seconds=10, what="a replica to have the key")
        assert evals() == before
        change(client, cache, readonly_lua_route_to_slave_enabled="no")
        where()
        assert evals() != before


def test_a_proxy_refuses_what_is_too_long_for_its_servers(caches: dict[str, Cache], client: Any) -> None:
    cache = caches["proxy"]
    change(client, cache, proto_max_bulk_len=str(MB))
    with cache.client() as link, pytest.raises((redis.ResponseError, redis.ConnectionError)):
        link.set("long", "x" * 2 * MB)  # which ends the connection, now or in a moment
    with cache.client() as link:
        assert link.set("short", "x" * (MB // 2))
    change(client, cache, proto_max_bulk_len=str(2 * MB))
