"""Chapter 5.10: accounts are users of every server of an instance, whatever becomes of the instance."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from support.accounts import Accounts, lets_in, places, refusal, tell
from support.caches import HA, PASSWORD, SECONDS, Cache, first_ip, frozen, made, pid_of, refused
from support.proxied import PROXY, SPLIT, needs_program
from support.replicas import CLUSTER_NODES
from support.service import Service
from support.waiting import until

from cacheyard.engine import find

SECRET, OTHER = "Acc0unt%pass", "An0ther_pass"
KINDS: dict[str, dict[str, Any]] = {
    "single": {"engine_version": "7.0"},
    "ha": {"engine_version": "5.0", "spec_code": HA},
    "cluster": {"engine_version": "7.0", "spec_code": "redis.cluster.xu1.large.r2.4", "capacity": 4},
    "proxy": PROXY,
    "ha_rw_split": SPLIT | {"engine_version": "4.0"},
}
PROXIED = ("proxy", "ha_rw_split")
TYPES = [kind for kind in KINDS if kind not in PROXIED or find.proxy() is not None]


@pytest.fixture(scope="module")
def caches(yard: Service) -> Iterator[dict[str, Cache]]:
    """One of each type; a test leaves no account."""
    with ExitStack() as afterwards:
        yield {
            kind: afterwards.enter_context(made(yard, name=f"acl-{number}", **KINDS[kind]))
            for number, kind in enumerate(TYPES)
        }


@pytest.fixture(params=TYPES)
def cache(request: pytest.FixtureRequest, caches: dict[str, Cache]) -> Iterator[Cache]:
    yield caches[request.param]
    clear(caches[request.param])


@pytest.fixture
def all_types(caches: dict[str, Cache]) -> Iterator[dict[str, Cache]]:
    yield caches
    for cache in caches.values():
        cache.until_running()
        clear(cache)


@pytest.fixture
def single(caches: dict[str, Cache]) -> Iterator[Cache]:
    yield caches["single"]
    clear(caches["single"])


def clear(cache: Cache) -> None:
    there = Accounts(cache.service.sdk_token(), cache)
    for account in there.by_name().values():
        if account["account_type"] == "normal":
            there.delete(account["account_id"])


@pytest.fixture
def accounts(dcs_client: Any, cache: Cache) -> Accounts:
    return Accounts(dcs_client, cache)


@pytest.fixture
def of_single(dcs_client: Any, single: Cache) -> Accounts:
    return Accounts(dcs_client, single)


def client_of(cache: Cache, name: str, password: str = SECRET, **where: Any) -> "redis.Redis":
    return cache.client(password, username=name, **where)


# --- What an account may do ------------------------------------------------------------------------


def check_everywhere(cache: Cache) -> None:
    """`reader` reads and `writer` writes at every server, and at the instance's address."""
    for where in (*places(cache), {}):
        with closing(client_of(cache, "reader", **where)) as link:
            assert refusal(link, "GET", "key") is None
            assert refusal(link, "SET", "key", "value") is not None
        with closing(client_of(cache, "writer", **where)) as link:
            assert refusal(link, "SET", "key", "value") is None
        assert not lets_in(cache, "reader", OTHER, **where)
        assert not lets_in(cache, "stranger", SECRET, **where)


def test_an_account_is_a_user_of_every_server(accounts: Accounts, cache: Cache) -> None:
    reader = accounts.create("reader", "read", SECRET, description="Looks, touches nothing")
    accounts.create("writer", "write", SECRET)
    listed = accounts.by_name()
    assert list(listed) == ["default", "reader", "writer"]
    assert listed["reader"] == {
        "account_id": reader,
        "account_name": "reader",
        "account_type": "normal",
        "instance_id": cache.id,
        "status": "AVAILABLE",
        "account_role": "read",
        "description": "Looks, touches nothing",
        "error_code": None,
    }
    assert listed["default"]["account_type"] == "default"
    assert (listed["writer"]["account_role"], listed["writer"]["description"]) == ("write", "")
    check_everywhere(cache)


def writes_and_reads(cache: Cache) -> tuple[set[str], set[str]]:
    """Names of the commands that the instance's servers themselves say change data, or read them."""
    with cache.client(**places(cache)[0]) as link:
        said: Any = link.command()
    known = {name: {str(flag) for flag in about["flags"]} for name, about in said.items()}
    writes = {name for name, flags in known.items() if "write" in flags}
    return writes, {name for name, flags in known.items() if "readonly" in flags}


def queued(link: "redis.Redis", name: str, arity: int) -> str | None:
    """Why that command may not be said in a transaction; None: it may. It is not executed."""
    tell(link, "MULTI")
    try:
        return refusal(link, name, *["x"] * (abs(arity) - 1))
    finally:
        tell(link, "DISCARD")


def test_a_reading_account_may_say_no_command_that_writes_and_all_that_read(
    accounts: Accounts, cache: Cache
) -> None:
    accounts.create("reader", "read", SECRET)
    where = places(cache)[0]
    writes, reads = writes_and_reads(cache)
    with cache.client(**where) as link:
        arity: dict[str, int] = {name: about["arity"] for name, about in link.command().items()}
    scripts = {"eval_ro", "evalsha_ro", "fcall_ro"}
    assert len(writes) > 80
    with closing(client_of(cache, "reader", **where)) as link, closing(cache.client(**where)) as default:
        may = {name for name in writes if queued(link, name, arity[name]) is None}
        assert may == set()
        may_not = {name for name in reads | scripts if queued(link, name, arity[name]) is not None}
        denied = {name for name in reads if queued(default, name, arity[name]) is not None}
        assert may_not == denied  # LOLWUT, behind proxies


READER_MAY = (
    "PING",
    "ECHO x",
    "SELECT 0",
    "HELLO",
    "CLIENT ID",
    "CLIENT SETNAME me",
    "CLIENT GETNAME",
    "COMMAND COUNT",
    "INFO",
    "DBSIZE",
    "KEYS *",
    "SCAN 0",
    "GET {x}",
    "TYPE {x}",
    "EVAL return(redis.call('get',KEYS[1])) 1 {x}",
    "SCRIPT EXISTS 0",
    "ACL WHOAMI",
    "TIME",
    "PUBSUB CHANNELS",
    "SUBSCRIBE news",
)
READER_MAY_NOT = (
    "SET {x} 1",
    "DEL {x}",
    "EXPIRE {x} 9",
    "FLUSHALL",
    "FLUSHDB",
    "SORT {x} STORE {x}",
    "GETEX {x} EX 1",
    "PUBLISH news all",
    "EVAL return(redis.call('set',KEYS[1],1)) 1 {x}",
    "CONFIG GET maxmemory",
    "CONFIG SET maxmemory 1",
    "ACL LIST",
    "ACL SETUSER me on +@all",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1",
    "MONITOR",
    "SLOWLOG GET",
    "SCRIPT FLUSH",
    "FUNCTION FLUSH",
    "SWAPDB 0 1",
    "DEBUG SLEEP 0",
    "SHUTDOWN",
)


def test_a_reading_account_finds_its_way_and_changes_nothing(accounts: Accounts, cache: Cache) -> None:
    accounts.create("reader", "read", SECRET)
    own = key_at(cache)

    def refused_of(lines: tuple[str, ...]) -> list[str]:
        found = []
        for line in lines:
            with closing(client_of(cache, "reader", protocol=2)) as link:  # 3 pushes what SUBSCRIBE answers
                if refusal(link, *(word.replace("{x}", own) for word in line.split())) is not None:
                    found.append(line)
        return found

    assert refused_of(READER_MAY) == []
    assert refused_of(READER_MAY_NOT) == list(READER_MAY_NOT)


def is_proxied(cache: Cache) -> bool:
    return str(cache.show()["cache_mode"]) in PROXIED


def key_at(cache: Cache) -> str:
    """A key that the server at the instance's first address has."""
    with cache.client() as link:
        for number in range(1000):
            try:
                link.exists(f"key:{number}")
            except redis.ResponseError:  # MOVED
                continue
            return f"key:{number}"
    raise AssertionError("no key is at that server")


# --- Changes ---------------------------------------------------------------------------------------


def test_a_new_role_holds_for_connections_that_are_open(accounts: Accounts, cache: Cache) -> None:
    account = accounts.create("ann", "read", SECRET)
    own = key_at(cache)
    with closing(client_of(cache, "ann")) as link:
        assert refusal(link, "SET", own, "1") is not None
        answer = accounts.set_role(account, "write")
        assert answer.instance_id == cache.id
        assert answer.job_id
        assert accounts.by_name()["ann"]["account_role"] == "write"
        assert link.set(own, "1")
        accounts.set_role(account, "read")
        assert refusal(link, "SET", own, "2") is not None
        assert until(lambda: link.get(own), seconds=10, what="what was written to be read") == "1"


def test_a_deleted_account_is_out_at_once(accounts: Accounts, cache: Cache) -> None:
    account = accounts.create("ann", "write", SECRET)
    direct = [client_of(cache, "ann", **where) for where in places(cache)]
    front = client_of(cache, "ann")
    with ExitStack() as afterwards:
        for link in (*direct, front):
            afterwards.callback(link.close)
            assert link.ping()
            link.connection = link.connection_pool.get_connection()  # the same one, never another
        tell(front, "EXISTS", key_at(cache))
        accounts.delete(account)
        assert list(accounts.by_name()) == ["default"]
        for link in direct:
            with pytest.raises(redis.ConnectionError):
                link.ping()
        # proxies answer PING, and keep a connection whose account is gone: it gets nothing from any server
        with pytest.raises((redis.ConnectionError, redis.AuthenticationError)):
            tell(front, "EXISTS", key_at(cache))
    newest = cache.tasks()[0]
    assert (newest["name"], newest["status"]) == ("DeleteAcl", "SUCCESS")
    assert [lets_in(cache, "ann", SECRET, **where) for where in (*places(cache), {})].count(True) == 0


def test_a_new_password_is_the_only_one_and_open_connections_stay(of_single: Accounts, single: Cache) -> None:
    account = of_single.create("ann", "write", SECRET)
    with closing(client_of(single, "ann")) as link:
        link.connection = link.connection_pool.get_connection()
        answer = of_single.modify(account, SECRET, OTHER)
        assert (answer.result, answer.retry_times_left, answer.lock_time) == ("success", "5", "0")
        assert [lets_in(single, "ann", each) for each in (SECRET, OTHER)] == [False, True]
        assert link.set("key", "value")
    assert of_single.reset(account, SECRET).code == "1"
    assert [lets_in(single, "ann", each) for each in (SECRET, OTHER)] == [True, False]


def test_five_wrong_passwords_lock_an_account_and_no_other(of_single: Accounts, single: Cache) -> None:
    ann, bob = (of_single.create(name, "read", SECRET) for name in ("ann", "bob"))
    told = [of_single.modify(ann, "Wrong-pass-1", OTHER) for _ in range(5)]
    assert [answer.retry_times_left for answer in told] == ["4", "3", "2", "1", "0"]
    assert [answer.result for answer in told] == ["passwordFailed"] * 4 + ["locked"]
    assert told[-1].lock_time == "5"
    locked = of_single.modify(ann, SECRET, OTHER)  # the right one, too late
    assert (locked.result, locked.lock_time) == ("locked", "5")
    assert of_single.reset(ann, OTHER, old=SECRET).code == "0"
    assert lets_in(single, "ann", SECRET)
    assert of_single.modify(bob, SECRET, OTHER).result == "success"
    assert of_single.reset(ann, OTHER).code == "1"  # without the old one it unlocks
    assert of_single.modify(ann, OTHER, SECRET).result == "success"
    assert lets_in(single, "ann", SECRET)


def test_a_description_is_changed_at_once(of_single: Accounts) -> None:
    account = of_single.create("ann", "read", SECRET, description="before")
    of_single.describe(account, "after")
    assert of_single.by_name()["ann"]["description"] == "after"
    of_single.describe(account, "")
    assert of_single.by_name()["ann"]["description"] == ""


def test_the_default_account_has_the_instances_password(of_single: Accounts, single: Cache) -> None:
    default = of_single.by_name()["default"]["account_id"]
    assert of_single.modify(default, "Wrong-pass-1", OTHER).result == "passwordFailed"
    assert of_single.modify(default, PASSWORD, OTHER).result == "success"
    assert [lets_in(single, None, each) for each in (PASSWORD, OTHER)] == [False, True]
    assert of_single.reset(default, PASSWORD).code == "1"
    assert [lets_in(single, "default", each) for each in (PASSWORD, OTHER)] == [True, False]
    with refused(400, "DCS.4961", "account_id"):
        of_single.delete(default)
    with refused(400, "DCS.4961", "account_id"):
        of_single.set_role(default, "read")
    with refused(400, "DCS.4961", "account_id"):
        of_single.describe(default, "x")


def test_what_an_account_is_about_is_told_while_it_is_under_way(of_single: Accounts, single: Cache) -> None:
    def during(act: Callable[[], Any], name: str, status: str) -> None:
        done = threading.Thread(target=act)
        with frozen(pid_of(single)):
            done.start()

            def told() -> bool:
                return of_single.by_name().get(name, {}).get("status") == status

            until(told, seconds=SECONDS, what=f"{name} to be {status}")
            with refused(400, "DCS.4114"):
                Accounts(of_single.sdk, single).create("other", "read", SECRET)
        done.join(SECONDS)
        single.until_running()

    during(lambda: of_single.create("ann", "read", SECRET), "ann", "CREATING")
    assert of_single.by_name()["ann"]["status"] == "AVAILABLE"
    account = of_single.by_name()["ann"]["account_id"]
    during(lambda: of_single.set_role(account, "write"), "ann", "UPDATING")
    during(lambda: of_single.delete(account), "ann", "DELETING")
    assert list(of_single.by_name()) == ["default"]


def test_where_no_password_is_asked_for_default_is_the_only_account(
    of_single: Accounts, single: Cache
) -> None:
    of_single.create("ann", "read", SECRET)

    def switch(**body: Any) -> None:
        asked = dcs.ResetInstancePasswordBody(**body)
        of_single.sdk.reset_password(dcs.ResetPasswordRequest(instance_id=single.id, body=asked))

    switch(no_password_access=True)
    assert lets_in(single, None, None)
    assert not lets_in(single, "ann", SECRET)
    assert list(of_single.by_name()) == ["default", "ann"]
    with refused(400, "DCS.4850"):
        of_single.create("bob", "read", SECRET)
    switch(new_password=PASSWORD)
    assert lets_in(single, "ann", SECRET)


# --- Logging in ------------------------------------------------------------------------------------


def said(cache: Cache, line: str) -> str:
    """The beginning of the answer to the first command on a connection."""
    with socket.create_connection((first_ip(cache.show()), 6379), timeout=10) as link:
        link.sendall(line.encode() + b"\r\n")
        return link.recv(64).decode()


def test_accounts_log_in_by_auth_and_hello(accounts: Accounts, cache: Cache) -> None:
    accounts.create("ann", "read", SECRET)
    assert said(cache, f"AUTH ann {SECRET}") == "+OK\r\n"
    assert said(cache, f"AUTH ann {OTHER}").startswith("-WRONGPASS")
    assert said(cache, f"HELLO 2 AUTH ann {SECRET}").startswith("*")
    assert said(cache, f"HELLO 3 AUTH ann {SECRET}").startswith("%")
    assert said(cache, f"HELLO 3 AUTH ann {OTHER}").startswith("-WRONGPASS")
    for protocol in (2, 3):
        with closing(client_of(cache, "ann", protocol=protocol)) as link:
            assert link.acl_whoami() == "ann"


def test_a_name_in_front_of_the_password_logs_in_behind_proxies_alone(
    accounts: Accounts, cache: Cache
) -> None:
    accounts.create("ann", "read", SECRET)
    proxied = is_proxied(cache)
    assert lets_in(cache, None, f"ann:{SECRET}") is proxied
    assert not lets_in(cache, None, f"ann:{OTHER}")
    assert not lets_in(cache, None, SECRET)
    if not proxied:
        return
    assert said(cache, f"HELLO 3 AUTH default ann:{SECRET}").startswith("%")
    for protocol in (2, 3):
        with closing(cache.client(f"ann:{SECRET}", protocol=protocol)) as link:
            assert link.acl_whoami() == "ann"
            assert refusal(link, "SET", "key", "value") is not None


def test_the_answers_are_those_that_terraform_waits_for(single: Cache) -> None:
    def of_name(name: str) -> dict[str, Any]:
        listed = single.http("GET", "/accounts").json()["accounts"]
        return next(account for account in listed if account["account_name"] == name)

    body = {"account_name": "tf", "account_role": "read", "account_password": SECRET}
    made_one = single.http("POST", "/accounts", json=body)
    account = of_name("tf")
    assert (made_one.status_code, account["status"]) == (200, "AVAILABLE")
    assert made_one.json()["account_id"] == account["account_id"]
    path = f"/accounts/{account['account_id']}"
    for below, change, status in (
        ("/password/reset", {"new_password": OTHER}, 200),
        ("/role", {"account_role": "write"}, 200),
        ("", {"description": ""}, 204),
    ):
        assert single.http("PUT", path + below, json=change).status_code == status
        assert of_name("tf")["status"] == "AVAILABLE"
    assert single.http("DELETE", path).status_code == 200
    newest = single.tasks()[0]
    assert (newest["name"], newest["status"]) == ("DeleteAcl", "SUCCESS")
    assert single.http("DELETE", path).status_code == 404


# --- Whatever becomes of the instance ----------------------------------------------------------------


def test_accounts_survive_all_that_is_done_to_an_instance(yard: Service, all_types: dict[str, Cache]) -> None:
    sdk = yard.sdk_token()
    for cache in all_types.values():
        there = Accounts(sdk, cache)
        there.create("reader", "read", SECRET)
        there.create("writer", "write", SECRET)
    pair, cluster = all_types["ha"], all_types["cluster"]
    sdk.change_master_standby(dcs.ChangeMasterStandbyRequest(instance_id=pair.id))
    pair.until_running()
    check_everywhere(pair)
    grown = {"spec_code": HA.replace("r2", "r3"), "new_capacity": 0.125, "change_type": "createReplication"}
    body = dcs.ResizeInstanceBody(**grown)
    sdk.resize_instance(dcs.ResizeInstanceRequest(instance_id=pair.id, body=body))
    pair.until_running()
    assert len(places(pair)) == 3
    check_everywhere(pair)
    for cache in all_types.values():
        assert cache.act("restart").status_code == 200
    for cache in all_types.values():
        cache.until_running()
        check_everywhere(cache)
    yard.restart()
    for cache in all_types.values():
        cache.until_running()
        check_everywhere(cache)
    assert Accounts(sdk, cluster).set_role(Accounts(sdk, cluster).by_name()["reader"]["account_id"], "write")
    for where in places(cluster):
        with closing(client_of(cluster, "reader", **where)) as link:
            assert refusal(link, "SET", "key", "value") is None


def test_renamed_commands_are_no_way_around_a_role(of_single: Accounts, single: Cache) -> None:
    of_single.create("reader", "read", SECRET)
    of_single.create("writer", "write", SECRET)
    names = {"command": "my-command", "keys": "my-keys", "flushall": "my-flushall"}
    assert single.http("PUT", json={"rename_commands": names}).status_code == 204
    single.until_running()
    with closing(client_of(single, "reader")) as link:
        assert [refusal(link, *line.split()) for line in ("my-keys *", "my-command COUNT")] == [None, None]
        assert refusal(link, "my-flushall") is not None
        assert refusal(link, "FLUSHALL") is not None
    of_single.create("late", "read", SECRET)
    with closing(client_of(single, "writer")) as link:
        assert refusal(link, "my-flushall") is None
    assert single.http("PUT", json={"rename_commands": {}}).status_code == 204
    single.until_running()
    assert lets_in(single, "late", SECRET)


def test_accounts_hold_at_the_new_master_after_a_failover(yard: Service, all_types: dict[str, Cache]) -> None:
    pair = all_types["ha"]
    there = Accounts(yard.sdk_token(), pair)
    there.create("reader", "read", SECRET)
    there.create("writer", "write", SECRET)
    dead = pid_of(pair)
    os.kill(dead, signal.SIGKILL)

    def another() -> bool:
        try:
            with closing(client_of(pair, "writer")) as link:
                return bool(link.set("key", "value")) and pid_of(pair) != dead
        except redis.RedisError:
            return False

    until(another, seconds=SECONDS, what="another master to take the writer's writes")
    until(
        lambda: all(lets_in(pair, "writer", SECRET, **where) for where in places(pair)),
        seconds=SECONDS,
        what="the old master to be back",
    )
    check_everywhere(pair)


def test_a_service_that_is_killed_while_accounts_change_ends_it(yard: Service) -> None:
    with made(yard, name="acl-killed", spec_code=CLUSTER_NODES.format(1), capacity=4) as cache:
        there = Accounts(yard.sdk_token(), cache)
        there.create("reader", "read", SECRET)
        body = {"account_name": "writer", "account_role": "write", "account_password": SECRET}
        with frozen(pid_of(cache)):  # without a replica it is not ended, so the task is under way
            path = f"{yard.facts.endpoint}{cache.path.replace('{p}', yard.facts.project_id)}/accounts"
            with pytest.raises(httpx.TimeoutException):
                httpx.post(path, json=body, headers={"X-Auth-Token": yard.token()}, timeout=1)
            yard.kill()
        yard.start()
        cache.until_running()
        assert cache.tasks()[0]["status"] == "SUCCESS"
        assert list(there.by_name()) == ["default", "reader", "writer"]
        check_everywhere(cache)


@needs_program
def test_accounts_hold_when_the_type_changes(yard: Service) -> None:
    sdk = yard.sdk_token()
    before: dict[str, Any] = {"spec_code": "redis.ha.xu1.large.r2.1", "capacity": 1, "engine_version": "6.0"}
    with made(yard, name="acl-retyped", **before) as cache:
        there = Accounts(sdk, cache)
        there.create("reader", "read", SECRET)
        there.create("writer", "write", SECRET)
        body = dcs.ResizeInstanceBody(
            spec_code=PROXY["spec_code"], new_capacity=4, change_type="instanceType"
        )
        sdk.resize_instance(dcs.ResizeInstanceRequest(instance_id=cache.id, body=body))
        assert cache.until_running()["cache_mode"] == "proxy"
        check_everywhere(cache)
        assert lets_in(cache, None, f"reader:{SECRET}")
