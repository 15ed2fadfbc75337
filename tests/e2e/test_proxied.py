"""Proxy Cluster and read/write splitting: one address, behind which proxies find their way."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from support.caches import PASSWORD, SECONDS, Cache, body_for, made, refused, sdk_body
from support.inside import inside
from support.proxied import FORMS, PROXY, SPLIT, needs_program
from support.service import Service
from support.waiting import until

from cacheyard.domain.nodes import NodeState
from cacheyard.domain.proxies import Proxy
from cacheyard.engine.redis_conf import PROXY_USER, proxy_password
from cacheyard.store import proxies

NEW = "New-password-1"


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """Room for the smallest Proxy Cluster is more than a small machine has."""
    with Service(CACHEYARD_OVERCOMMIT="100") as service:
        yield service


@pytest.fixture(
    scope="module", params=[pytest.param(FORMS[form], id=form, marks=needs_program) for form in FORMS]
)
def cache(request: pytest.FixtureRequest, yard: Service) -> Iterator[Cache]:
    """A running instance of each type, that tests give back as it was."""
    with made(yard, name="proxied-1", **request.param) as cache:
        yield cache


def rows(cache: Cache) -> list[Proxy]:
    """Its proxies as the service knows them."""
    with inside(cache) as known, known.store.read() as tx:
        return proxies.of_instance(tx, cache.id)


def until_all_serve(cache: Cache, but: int | None = None) -> list[Proxy]:
    """Wait until every proxy serves; none of them is the process `but`."""

    def serving() -> list[Proxy] | None:
        found = rows(cache)
        well = all(
            proxy.seen_state is NodeState.ACTIVE and proxy.seen_pid not in (None, but) for proxy in found
        )
        return found if well else None

    return until(serving, seconds=SECONDS, what="all proxies to serve")


def until_answered(cache: Cache, words: tuple[str, ...] = ("PING",)) -> Any:
    """What a client that tries again is told."""

    def ask() -> Any:
        try:
            with cache.client() as link:
                return link.execute_command(*words)
        except redis.ConnectionError:
            return None

    return until(ask, seconds=SECONDS, what="the instance's address to answer")


def process_directories(service: Service) -> set[str]:
    root = service.data / "proxies"
    return {path.name for path in root.iterdir()} if root.is_dir() else set()


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


# --- Use ------------------------------------------------------------------------------------------


def test_a_plain_client_uses_all_slots_by_one_address(cache: Cache) -> None:
    shown = cache.show()
    assert (shown["ip"].count(","), shown["port"]) == (0, 6379)
    with cache.client() as link:
        link.flushall()
        with link.pipeline(transaction=False) as pipe:
            for number in range(2000):
                pipe.set(f"key:{number}", number)
            assert all(pipe.execute())
        assert link.dbsize() == 2000
        values = until(
            lambda: [v for v in link.mget([f"key:{number}" for number in range(2000)]) if v is not None],
            seconds=SECONDS,
            what="values to be read",
        )
        assert len(values) == 2000
        assert link.delete("key:0", "key:1", "nope") == 2


def test_each_row_is_a_process_and_no_server_has_the_address(cache: Cache) -> None:
    found = until_all_serve(cache)
    assert len(found) >= 2
    assert {command_of(proxy.seen_pid or 0) for proxy in found} == {"cacheyard-proxy"}
    assert {proxy.id for proxy in found} <= process_directories(cache.service)
    with inside(cache) as known:
        there = known.nodes
    ip = cache.show()["ip"]
    assert ip not in {node.ip for node in there}
    assert len({node.ip for node in there}) == len(there)


def test_no_file_of_a_proxy_has_a_password(cache: Cache) -> None:
    with inside(cache) as known:
        secret = known.tools.sealer.open(known.instance.internal_secret)
    for proxy in rows(cache):
        directory = cache.service.data / "proxies" / proxy.id
        written = [path.read_text() for path in directory.iterdir() if path.is_file()]
        assert written
        words = [secret, proxy_password(secret), PASSWORD]
        assert not any(word in text for text in written for word in words)
        assert proxy_password(secret).encode() not in Path(f"/proc/{proxy.seen_pid}/cmdline").read_bytes()


def test_the_account_of_proxies_may_not_touch_data(cache: Cache) -> None:
    with inside(cache) as known:
        secret = known.tools.sealer.open(known.instance.internal_secret)
        node = known.nodes[0]
    with redis.Redis(
        host=node.ip,
        port=node.port,
        username=PROXY_USER,
        password=proxy_password(secret),
        protocol=2,
        driver_info=None,
    ) as link:
        assert link.ping()
        for command in ("GET a", "SET a 1", "CONFIG GET *", "ACL LIST", "KEYS *", "CLUSTER RESET"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                link.execute_command(*command.split())


def test_a_wrong_password_and_none_are_both_refused(cache: Cache) -> None:
    with pytest.raises(redis.AuthenticationError), cache.client("wrong") as link:
        link.ping()
    with pytest.raises(redis.AuthenticationError), cache.client(None) as link:
        link.ping()


def test_clients_of_all_proxies_are_listed_by_each(cache: Cache) -> None:
    links = [cache.client() for _ in range(12)]  # the kernel spreads them over the processes
    try:
        for number, link in enumerate(links):
            link.client_setname(f"listed-{number}")
        expected = {f"listed-{number}" for number in range(12)}
        for link in links:
            assert expected <= {client["name"] for client in link.client_list()}
    finally:
        for link in links:
            link.close()


# --- What happens to processes --------------------------------------------------------------------


def test_proxies_outlive_the_service_and_their_clients_never_notice(cache: Cache) -> None:
    before = {proxy.id: proxy.seen_pid for proxy in until_all_serve(cache)}
    with cache.client() as link:
        link.set("kept", "1")
        number = link.client_id()
        cache.service.kill()
        link.set("kept", "2")
        cache.service.start()
        link.set("kept", "3")
        assert link.client_id() == number
    until_all_serve(cache)
    assert {proxy.id: proxy.seen_pid for proxy in rows(cache)} == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_proxy_that_dies_or_hangs_is_replaced_and_the_others_serve_at_once(
    cache: Cache, number: signal.Signals
) -> None:
    victim = until_all_serve(cache)[0].seen_pid
    assert victim is not None
    os.kill(victim, number)
    if number is not signal.SIGSTOP:  # one that is stopped takes connections until it is ended
        until_answered(cache)
    found = until_all_serve(cache, but=victim)
    assert victim not in {proxy.seen_pid for proxy in found}
    assert victim not in cache.service.processes()
    until_answered(cache)


def test_what_no_row_wants_is_removed_when_the_service_starts(cache: Cache) -> None:
    service = cache.service
    service.kill()
    orphan = service.data / "proxies" / "nobody"
    orphan.mkdir()
    (orphan / "config.toml").write_text("")
    service.start()
    until(lambda: not orphan.exists(), seconds=SECONDS, what="the directory to be removed")
    until_all_serve(cache)


def test_a_client_goes_on_by_its_connection_when_a_master_dies(cache: Cache) -> None:
    with inside(cache) as known, cache.client() as link:
        number = link.client_id()
        masters = known.masters
        victim = next(node for node in known.nodes if node.id in masters.values())
        assert victim.seen_pid is not None
        os.kill(victim.seen_pid, signal.SIGKILL)

        def written() -> bool:
            try:
                return all(link.set(f"after:{number}", number) for number in range(300))
            except redis.ResponseError:  # its connection stays
                return False

        until(lambda: known.masters != masters, seconds=SECONDS, what="another master in the rows")
        until(written, seconds=SECONDS, what="every slot to take writes")
        assert link.client_id() == number
    cache.until_running()


# --- Changes --------------------------------------------------------------------------------------


def test_a_new_port_is_where_the_instance_answers(cache: Cache) -> None:
    sdk = cache.service.sdk()

    def move(port: int) -> None:
        body = dcs.ModifyInstanceBody(port=port)
        sdk.update_instance(dcs.UpdateInstanceRequest(instance_id=cache.id, body=body))
        assert cache.until_running()["port"] == port

    with cache.client() as link:
        link.set("key", "value")
    before, ip = {proxy.seen_pid for proxy in until_all_serve(cache)}, cache.show()["ip"]
    move(6500)
    with cache.client() as link:
        assert link.get("key") == "value"
    with pytest.raises(redis.ConnectionError):
        cache.client(host=ip, port=6379).ping()
    assert {proxy.seen_pid for proxy in rows(cache)} == before  # they listen elsewhere, without a restart
    move(6379)


def test_a_restart_keeps_the_data(cache: Cache) -> None:
    with cache.client() as link:
        link.set("key", "value")
    assert cache.act("restart").json()["results"][0]["result"] == "success"
    cache.until_running()
    assert until_answered(cache, ("GET", "key")) == "value"


def test_a_stopped_instance_has_no_proxy_and_starts_with_its_data(cache: Cache) -> None:
    with cache.client() as link:
        link.set("key", "value")
    ip = cache.show()["ip"]
    cache.act("stop")
    cache.until_running("CLOSED")
    assert {(proxy.seen_state, proxy.seen_pid) for proxy in rows(cache)} == {(NodeState.STOPPED, None)}
    with pytest.raises(redis.ConnectionError):
        cache.client(host=ip, port=6379).ping()
    cache.act("start")
    cache.until_running()
    assert until_answered(cache, ("GET", "key")) == "value"


def test_a_changed_password_is_the_one_that_lets_in(cache: Cache) -> None:
    sdk = cache.service.sdk()

    def change(old: str, new: str) -> None:
        body = dcs.ModifyInstancePasswordBody(old_password=old, new_password=new)
        request = dcs.UpdatePasswordRequest(instance_id=cache.id, body=body)
        assert sdk.update_password(request).result == "success"

    change(PASSWORD, NEW)
    with cache.client(NEW) as link:
        assert link.set("by", "the new one")
    with pytest.raises(redis.AuthenticationError), cache.client(PASSWORD) as link:
        link.ping()
    change(NEW, PASSWORD)
    with cache.client(PASSWORD) as link:
        assert link.ping()


def test_renamed_commands_answer_to_their_new_names_alone(cache: Cache) -> None:
    sdk = cache.service.sdk()

    def rename(**commands: str) -> None:
        body = dcs.ModifyInstanceBody(rename_commands=dcs.RenameCommandResp(**commands))
        sdk.update_instance(dcs.UpdateInstanceRequest(instance_id=cache.id, body=body))
        cache.until_running()

    with cache.client() as link:
        link.flushall()
        link.hset("key", "field", "value")
    rename(keys="Keys_new", hgetall="all_of")
    with cache.client() as link:
        assert link.execute_command("keys_new", "*") == ["key"]
        assert link.execute_command("all_of", "key") == {"field": "value"}
        for old in (("KEYS", "*"), ("HGETALL", "key")):
            with pytest.raises(redis.ResponseError, match="unknown command"):
                link.execute_command(*old)
    rename(keys="keys", hgetall="hgetall")
    with cache.client() as link:
        assert link.keys("*") == ["key"]
        assert link.hgetall("key") == {"field": "value"}


# --- Creation and deletion ------------------------------------------------------------------------


@needs_program
@pytest.mark.parametrize("wanted", FORMS.values(), ids=FORMS)
def test_nothing_of_a_deleted_instance_is_left(yard: Service, wanted: dict[str, Any]) -> None:
    before, directories = set(yard.processes()), process_directories(yard)
    with made(yard, name="short-1", **wanted) as cache:
        shown = cache.show()
        assert len(process_directories(yard)) > len(directories)
        with cache.client() as link:
            link.set("key", "value")
    assert process_directories(yard) == directories
    # Sentinels stay while another instance needs them, and come and go with it
    left = {pid: command for pid, command in yard.processes().items() if pid not in before}
    assert not any("cacheyard-proxy" in command for command in left.values()), left
    with pytest.raises(redis.ConnectionError):
        redis.Redis(host=shown["ip"], port=6379, socket_connect_timeout=1).ping()


@needs_program
def test_the_address_can_be_chosen_and_may_be_late(yard: Service) -> None:
    """Somebody listens there still: the proxies take it as soon as they can."""
    with made(yard, name="first-1", **SPLIT) as first:
        ip = first.show()["ip"]
    with closing(socket.create_server((ip, 6379))) as holder:
        body = sdk_body(yard, name="chosen-1", private_ip=ip, **SPLIT)
        made_id = yard.sdk().create_instance(dcs.CreateInstanceRequest(body=body)).instances[0].instance_id
        cache = Cache(yard, made_id)

        def said() -> bool:
            return any("somebody else listens" in (proxy.seen_error or "") for proxy in rows(cache))

        until(said, seconds=SECONDS, what="the proxies to say what they wait for")
        assert cache.show()["status"] == "CREATING"
        holder.close()
        assert cache.until_running()["ip"] == ip
        with cache.client() as link:
            assert link.set("key", "value")
    yard.sdk().delete_single_instance(dcs.DeleteSingleInstanceRequest(instance_id=made_id))
    cache.until_gone()


@needs_program
def test_a_port_above_which_the_bus_has_no_room_is_refused(yard: Service) -> None:
    request = dcs.CreateInstanceRequest(body=sdk_body(yard, port=60_000, **PROXY))
    with refused(400, "DCS.4800", "port"):
        yard.sdk().create_instance(request)


def test_a_program_that_cannot_run_is_started_again_and_its_last_words_are_told(
    fresh_service: Callable[..., Service], tmp_path: Path
) -> None:
    program, log = tmp_path / "cacheyard-proxy", tmp_path / "starts"
    program.write_text(
        f"""#!/bin/sh
        [ "$1" = --version ] && {{ echo cacheyard-proxy 0.0.9; exit; }}
        echo started >> {log}
        echo no luck today >&2
        exit 3
        """
    )
    program.chmod(0o700)
    service = fresh_service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_PROXY=str(program))
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service, **SPLIT))
    cache = Cache(service, answer.json()["instances"][0]["instance_id"])
    until(
        lambda: {proxy.seen_error for proxy in rows(cache)} == {"exit code 3: no luck today"},
        seconds=SECONDS,
        what="both proxies to have said why they end",
    )
    until(lambda: log.read_text().count("started") >= 6, seconds=SECONDS, what="more attempts")
    assert cache.show()["status"] == "CREATING"


def test_without_the_program_the_types_cannot_be_had(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_PROXY="/nonexistent/cacheyard-proxy")
    sdk = service.sdk()
    for wanted in (PROXY, SPLIT):
        with refused(400, "DCS.4054", "native proxy", "doctor"):
            sdk.create_instance(dcs.CreateInstanceRequest(body=sdk_body(service, **wanted)))
        [flavor] = sdk.list_flavors(dcs.ListFlavorsRequest(spec_code=wanted["spec_code"])).flavors
        assert flavor.flavors_available_zones[0].az_codes == []
    assert sdk.list_instances(dcs.ListInstancesRequest()).instance_num == 0
    with made(service) as cache, cache.client() as link:  # the others can
        assert link.ping()
    assert body_for(service)["password"] == PASSWORD
