"""TLS between clients and instances: every type, through all that happens to one."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from redis.exceptions import RedisClusterException
from support import proxied
from support.caches import HA, PASSWORD, Cache, body_for, first_ip, made, refused
from support.encrypted import (
    answers_plain,
    authority,
    certificate_of,
    client,
    cluster_client,
    link_of,
    switch,
    until_in_sync,
)
from support.replicas import ADD, body, resized
from support.service import Service
from support.waiting import until

from cacheyard.clock import now_ms
from cacheyard.domain.certificates import new_authority
from cacheyard.engine import find

DAYS = 60 / 86_400  # certificates live for a minute, and are renewed after forty seconds: in all that follows
CLUSTER: dict[str, Any] = {"spec_code": "redis.cluster.xu1.large.r2.4", "capacity": 4}
FORMS: dict[str, dict[str, Any]] = {
    "single": {"engine_version": "6.0"},
    "ha": {"spec_code": HA},
    "cluster": CLUSTER,
    "proxy": proxied.PROXY,
    "ha_rw_split": proxied.SPLIT,
}
if find.proxy() is None:
    FORMS = {form: body for form, body in FORMS.items() if form not in proxied.FORMS}


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    with Service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_CERTIFICATE_DAYS=f"{DAYS:.8f}") as running:
        yield running


@pytest.fixture(scope="module")
def caches(yard: Service) -> dict[str, Cache]:
    """One of each type, TLS from its creation on; the service takes them along in the end."""
    found = {}
    for form, more in FORMS.items():
        zones = yard.facts.az_codes[: 1 if form == "single" else 2]
        wanted = body_for(yard, name=f"tls-{form.replace('_', '-')}", az_codes=zones, enable_ssl=True, **more)
        answer = yard.http("POST", "/v2/{p}/instances", json=wanted)
        assert answer.status_code == 200, answer.text
        found[form] = Cache(yard, answer.json()["instances"][0]["instance_id"])
    for cache in found.values():
        assert cache.until_running()["enable_ssl"]
    return found


@pytest.fixture(scope="module")
def trusted(caches: dict[str, Cache]) -> str:
    return authority(caches["single"])


@pytest.fixture(scope="module")
def first(caches: dict[str, Cache], trusted: str) -> Iterator[dict[str, tuple[Any, datetime]]]:
    """A connection to a server or proxy of each type to which nothing happens, and how long that is good."""
    with ExitStack() as stack:
        found = {}
        for form in FORMS.keys() - {"ha"}:
            ip = max(places(caches[form]) - ({first_ip(caches[form].show())} if form == "cluster" else set()))
            link = stack.enter_context(client(caches[form], trusted, ip))
            connection = link.connection_pool.get_connection()
            found[form] = (connection, certificate_of(ip, trusted).not_valid_after_utc)
        yield found


def places(cache: Cache) -> set[str]:
    """The addresses that clients may use; all nodes', but behind proxies."""
    shown = cache.show()
    if shown["cache_mode"] in proxied.FORMS:
        return {first_ip(shown)}
    return {first_ip(shown), *(str(one["node_ip"]) for one in proxied.servers(cache))}


@pytest.mark.parametrize("form", FORMS)
def test_every_node_is_served_by_tls_alone_with_a_certificate_for_its_address(
    caches: dict[str, Cache], trusted: str, first: dict[str, Any], form: str
) -> None:
    assert first  # from the beginning on
    cache, stranger = caches[form], new_authority("the same", now_ms()).certificate
    there = places(cache)
    assert len(there) == {"single": 1, "ha": 3, "cluster": 6}.get(form, 1)
    for ip in there:
        with client(cache, trusted, ip) as link:
            assert link.ping()
        with client(cache, stranger, ip) as link, pytest.raises(redis.ConnectionError, match="CERTIFICATE"):
            link.ping()
        assert not answers_plain(ip)
    detail = cache.http("GET", "/ssl").json()
    assert (detail["enabled"], detail["port"], detail["ssl_validated"]) == (True, "6379", True)
    assert detail["ip"] == first_ip(cache.show())


def test_a_client_of_a_cluster_goes_where_it_is_sent(caches: dict[str, Cache], trusted: str) -> None:
    with cluster_client(caches["cluster"], trusted) as link:
        for number in range(60):
            link.set(f"key-{number}", number)
        assert {str(link.get(f"key-{number}")) for number in range(60)} == {str(n) for n in range(60)}
        ports = {node.port for node in link.get_nodes()}
    assert ports == {6379}


def test_redis_cli_gets_in(caches: dict[str, Cache], trusted: str, tmp_path: Path) -> None:
    if (program := shutil.which("redis-cli")) is None:
        pytest.skip("no redis-cli")
    (tmp_path / "ca.crt").write_text(trusted)
    ip = first_ip(caches["ha"].show())
    command = [program, "--tls", "--cacert", "ca.crt", "-h", ip, "--no-auth-warning", "-a", PASSWORD, "PING"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.strip() == "PONG", done.stderr


def test_a_link_is_good_for_what_it_was_made_for_and_for_some_minutes(
    yard: Service, caches: dict[str, Cache], trusted: str
) -> None:
    assert (yard.data / "ca.crt").read_text() == trusted
    link = link_of(caches["single"])
    assert link.startswith(yard.facts.endpoint)
    expires = link.partition("Expires=")[2].partition("&")[0]
    for wrong in (
        link[:-1] + ("0" if link[-1] != "0" else "1"),
        link.replace(caches["single"].id, caches["ha"].id),
        link.replace(expires, str(int(expires) + 1)),
        link.replace(expires, "1"),
        link.replace(expires, ""),
        link.partition("?")[0],
    ):
        assert httpx.get(wrong, verify=yard.trust()).status_code == 403, wrong


def test_keys_and_secrets_are_nowhere_in_clear(yard: Service, caches: dict[str, Cache]) -> None:
    assert caches
    kept = [file for file in yard.data.rglob("*") if file.is_file()]
    pairs = [file for file in kept if file.name == "tls.pem"]
    assert len(pairs) == 1 + 2 + 6  # single, ha, cluster
    assert all(b"ENCRYPTED PRIVATE KEY" in file.read_bytes() for file in pairs)
    clear = [file for file in kept if b"BEGIN PRIVATE KEY" in file.read_bytes()]
    assert not clear


def test_a_switch_keeps_data_and_replication_and_sends_clients_away(yard: Service, trusted: str) -> None:
    zones = yard.facts.az_codes[:2]
    with made(yard, name="switched", spec_code=HA, az_codes=zones) as cache:
        with cache.client() as link:
            link.set("kept", "yes")
            process = link.info("server")["process_id"]
            old = link.connection_pool.get_connection()
            switch(cache, True)
            assert is_closed(old)
        until_in_sync(cache, trusted)
        switch(cache, True)  # what is so already
        with client(cache, trusted) as link:
            assert link.get("kept") == "yes"
            assert link.info("server")["process_id"] == process  # live
            old = link.connection_pool.get_connection()
            switch(cache, False)
            assert is_closed(old)
        assert cache.http("GET", "/ssl").json() == {"enabled": False}
        with cache.client() as link:
            assert link.get("kept") == "yes"


def is_closed(connection: Any) -> bool:
    """Whether the server has closed it."""
    try:
        connection.send_command("PING")
        connection.read_response()
    except (redis.ConnectionError, OSError):
        return True
    return False


def test_a_running_cluster_is_switched(yard: Service, trusted: str) -> None:
    with made(yard, name="switched", az_codes=yard.facts.az_codes[:2], **CLUSTER) as cache:
        with redis.RedisCluster(host=first_ip(cache.show()), port=6379, password=PASSWORD) as link:
            link.set("kept", "yes")
        switch(cache, True)
        with cluster_client(cache, trusted) as link:
            assert link.get("kept") == "yes"
        assert not any(answers_plain(ip) for ip in places(cache))
        switch(cache, False)
        assert all(answers_plain(ip) for ip in places(cache))


def test_a_hung_master_of_which_sentinels_alone_know_is_replaced(
    yard: Service, caches: dict[str, Cache], trusted: str
) -> None:
    """The keeper does not see a server that is busy for long: Sentinels do, by TLS."""
    cache = caches["ha"]
    until_in_sync(cache, trusted)
    logs = [yard.data / "sentinels" / str(number) / "sentinel.log" for number in (3, 4, 5)]
    until(
        lambda: all(log.read_text().count("+sentinel ") >= 2 for log in logs),
        seconds=30,
        what="the Sentinels to hear of each other, which takes them two seconds",
    )
    with client(cache, trusted) as link:
        pid = int(link.info("server")["process_id"])
        busy = link.connection_pool.get_connection()
        # one that has written cannot be ended, which Sentinels would try first
        busy.send_command("EVAL", "redis.call('SET', KEYS[1], 1) while true do end", 1, "busy")

        def replaced() -> bool:
            with suppress(redis.ResponseError), client(cache, trusted) as other:
                return int(other.info("server")["process_id"]) != pid
            return False  # it says that it is busy

        until(replaced, seconds=60, what="Sentinels to replace it", pause=0.1)
        busy.disconnect()
    until_in_sync(cache, trusted)


def test_a_dead_master_is_replaced_and_follows(caches: dict[str, Cache], trusted: str) -> None:
    cache = caches["ha"]
    until_in_sync(cache, trusted)
    with client(cache, trusted) as link:
        link.set("before", "yes")
        link.wait(1, 5000)
        pid = int(link.info("server")["process_id"])
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        with client(cache, trusted) as link:
            link.set("after", "yes")
            return link.get("before") == "yes" and int(link.info("server")["process_id"]) != pid

    until(replaced, seconds=30, what="another master to take writes")
    until_in_sync(cache, trusted)


@proxied.needs_program
def test_a_dead_master_behind_proxies_is_replaced(caches: dict[str, Cache], trusted: str) -> None:
    """Its servers and the Sentinels that watch them speak without TLS."""
    cache = caches["ha_rw_split"]
    (master,) = proxied.of_role(proxied.groups(cache)[0], "master")
    with cache.client(host=master["replication_ip"], port=6379) as link:
        pid = int(link.info("server")["process_id"])
    os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        with client(cache, trusted) as link:
            link.set("after", "yes")
        (now,) = proxied.of_role(proxied.groups(cache)[0], "master")
        return bool(now["replication_ip"] != master["replication_ip"])

    until(replaced, seconds=30, what="another master to take writes", pause=0.05)


def test_a_dead_master_of_a_cluster_is_replaced(caches: dict[str, Cache], trusted: str) -> None:
    cache = caches["cluster"]
    with client(cache, trusted) as link:
        pid = int(link.info("server")["process_id"])
    other = (places(cache) - {first_ip(cache.show())}).pop()
    os.kill(pid, signal.SIGKILL)

    def whole() -> bool:
        failures = (redis.RedisError, RedisClusterException)
        with suppress(*failures), cluster_client(cache, trusted, other) as link:
            for number in range(40):
                link.set(f"again-{number}", number)
            return True
        return False

    until(whole, seconds=60, what="all slots to take writes")


def test_restarts_and_further_nodes_speak_tls(yard: Service, caches: dict[str, Cache], trusted: str) -> None:
    cache = caches["ha"]
    assert cache.act("restart").status_code == 200
    cache.until_running()
    until_in_sync(cache, trusted)
    resized(yard.sdk_token(), cache, body(3, **ADD))
    until_in_sync(cache, trusted, replicas=2)
    for ip in places(cache):
        assert not answers_plain(ip)
        with client(cache, trusted, ip) as link:
            assert link.ping()


def test_slots_move_to_further_shards(yard: Service, trusted: str) -> None:
    form: dict[str, Any] = {"spec_code": "redis.cluster.xu1.large.r1.4", "capacity": 4}
    with made(yard, name="grows", az_codes=yard.facts.az_codes[:1], enable_ssl=True, **form) as cache:
        with cluster_client(cache, trusted) as link:
            for number in range(200):
                link.set(f"key-{number}", number)
        code = "redis.cluster.xu1.large.r1.48"
        wanted = dcs.ResizeInstanceBody(spec_code=code, new_capacity=48)
        yard.sdk_token().resize_instance(dcs.ResizeInstanceRequest(instance_id=cache.id, body=wanted))
        assert cache.until_running()["spec_code"] == code, cache.tasks()[0]
        assert len(places(cache)) == 6
        with cluster_client(cache, trusted) as link:
            assert [link.get(f"key-{number}") for number in range(200)] == [str(n) for n in range(200)]


def test_cacheyard_may_die_in_the_middle_of_a_switch(
    yard: Service, caches: dict[str, Cache], trusted: str
) -> None:
    with made(yard, name="crash") as cache:
        with cache.client() as link:
            link.set("kept", "yes")
        for on in (True, False, True):
            answer = cache.http("PUT", "/ssl", json={"enabled": on})
            assert answer.status_code == 200, answer.text
            yard.kill()
            yard.restart()
            assert proxied.job(cache, answer.json()["job_id"]) == "SUCCESS"
            cache.until_running()
            assert answers_plain(first_ip(cache.show())) is not on
        with client(cache, trusted) as link:
            assert link.get("kept") == "yes"
        for one in caches.values():
            with client(one, trusted) as link:
                assert link.ping()


def test_certificates_were_renewed_in_time_and_connections_have_stayed(
    caches: dict[str, Cache], trusted: str, first: dict[str, tuple[Any, datetime]]
) -> None:
    """After all that: each has had another certificate since, and shows one that is good for long enough."""
    for form, (connection, expired) in first.items():

        def renewed(ip: str = connection.host, expired: datetime = expired) -> bool:
            return certificate_of(ip, trusted).not_valid_after_utc > expired

        until(renewed, seconds=60, what=f"another certificate of {form}", pause=0.3)
        assert not is_closed(connection), form
        before = expired.strftime("%Y-%m-%dT%H:%M:%S.999Z")

        def told(cache: Cache = caches[form], before: str = before) -> bool:
            detail = cache.http("GET", "/ssl").json()
            return bool(detail["ssl_expired_at"] > before and detail["ssl_validated"])

        until(told, seconds=60, what=f"all of {form} to have another certificate", pause=0.3)


def test_what_cannot_have_it_is_refused(yard: Service, caches: dict[str, Cache]) -> None:
    sdk = yard.sdk_token()
    old_version = dcs.CreateInstanceBody(**body_for(yard, engine_version="5.0", enable_ssl=True))
    with refused(400, "DCS.4201", "6.0 and 7.0"):
        sdk.create_instance(dcs.CreateInstanceRequest(body=old_version))
    with made(yard, name="older", engine_version="5.0") as old:
        with refused(400, "DCS.4201", "not 5.0"):
            on = dcs.UpdateSSLSwitchRequestBody(enabled=True)
            sdk.update_ssl_switch(dcs.UpdateSslSwitchRequest(instance_id=old.id, body=on))
        for ask in (sdk.show_instance_ssl_detail, sdk.download_ssl_cert):
            name = "ShowInstanceSslDetailRequest" if "show" in ask.__name__ else "DownloadSslCertRequest"
            with refused(400, "DCS.4201", "not 5.0"):
                ask(getattr(dcs, name)(instance_id=old.id))
        assert old.show()["features"]["support_ssl"] is False
    with made(yard, name="open", engine_version="7.0", password=None, no_password_access=True) as free:
        with refused(400, "DCS.4850"):
            sdk.update_ssl_switch(dcs.UpdateSslSwitchRequest(instance_id=free.id, body=on))
        assert free.show()["enable_ssl"] is False
    of_none = body_for(yard, password=None, no_password_access=True, engine_version="7.0", enable_ssl=True)
    with refused(400, "DCS.4850"):
        sdk.create_instance(dcs.CreateInstanceRequest(body=dcs.CreateInstanceBody(**of_none)))
    answer = caches["ha"].http("POST", "/password/reset", json={"no_password_access": True})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
    answer = caches["ha"].http("PUT", "/ssl", json={})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4202")
    assert caches["ha"].show()["enable_ssl"] is True
    if "proxy" in caches:
        wanted = {"spec_code": "redis.ha.xu1.large.r2.4", "new_capacity": 4}
        answer = caches["proxy"].http("POST", "/resize", json=wanted)
        assert answer.status_code == 400, answer.text
        assert "TLS" in answer.json()["error_msg"]
