"""Chapters 5.2.3 and 5.2.4: passwords are changed, reset, done without, and locked after wrong tries."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, PASSWORD, SINGLE, Cache, body_for, made, pid_of, refused
from support.service import Service

from cacheyard.clock import now_ms
from cacheyard.domain.signature import Request, sign

NEW = "Another_pass.2"


def change(sdk: Any, cache: Cache, old: str, new: str = NEW) -> Any:
    body = dcs.ModifyInstancePasswordBody(old_password=old, new_password=new)
    return sdk.update_password(dcs.UpdatePasswordRequest(instance_id=cache.id, body=body))


def reset(sdk: Any, cache: Cache, **body: Any) -> Any:
    request = dcs.ResetPasswordRequest(instance_id=cache.id, body=dcs.ResetInstancePasswordBody(**body))
    return sdk.reset_password(request)


def lets_in(cache: Cache, password: str | None, **where: Any) -> bool:
    """Whether a new connection with this password may do anything."""
    try:
        with cache.client(password, **where) as link:
            return bool(link.ping())
    except redis.AuthenticationError:
        return False


@pytest.mark.parametrize("spec_code", [SINGLE, HA])
def test_a_changed_password_is_the_only_one_as_soon_as_the_request_is_answered(
    service: Service, sdk: Any, spec_code: str
) -> None:
    with made(service, spec_code=spec_code) as cache:
        pid, addresses = pid_of(cache), cache.addresses()
        answer = change(sdk, cache, PASSWORD)
        assert (answer.result, answer.retry_times_left, answer.lock_time) == ("success", "5", "0")
        for address in addresses:
            where = {"host": address, "port": 6379}
            assert [lets_in(cache, each, **where) for each in (PASSWORD, NEW, None)] == [False, True, False]
        assert pid_of(cache, NEW) == pid  # without a restart


@pytest.mark.parametrize("password", ["Aa1`~!@#$^&*()-_=+\\|{}:,<.>/?", "aB3" + "x" * 61, "Ab-cdefg"])
def test_every_character_that_a_password_may_have_reaches_the_server(service: Service, password: str) -> None:
    with made(service, password=password) as cache:
        assert lets_in(cache, password)
        assert change(service.sdk(), cache, password, NEW).result == "success"
        assert change(service.sdk(), cache, NEW, password).result == "success"
        assert lets_in(cache, password)


def test_a_reset_needs_no_old_password_and_switches_to_none_and_back(service: Service, sdk: Any) -> None:
    with made(service) as cache:
        reset(sdk, cache, new_password=NEW)
        assert [lets_in(cache, each) for each in (PASSWORD, NEW)] == [False, True]
        reset(sdk, cache, no_password_access=True)
        assert cache.show()["no_password_access"] == "true"
        assert lets_in(cache, None)
        with refused(400, "DCS.4850"):
            change(sdk, cache, NEW)
        reset(sdk, cache, new_password=PASSWORD, no_password_access=False)
        assert cache.show()["no_password_access"] == "false"
        assert [lets_in(cache, each) for each in (None, NEW, PASSWORD)] == [False, False, True]


def test_a_wrong_old_password_changes_nothing_and_tells_how_many_tries_are_left(service: Service) -> None:
    with made(service) as cache:
        for left in ("4", "3"):
            answer = change(service.sdk_token(), cache, "Wrong-pass-1")
            assert (answer.result, answer.retry_times_left) == ("passwordFailed", left)
        assert lets_in(cache, PASSWORD)
        assert not lets_in(cache, NEW)


def test_five_wrong_passwords_lock_the_change_also_across_a_restart_of_the_service(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service()
    with made(service) as cache:
        sdk = service.sdk_token()  # the same signed request is refused the second time
        for _ in range(5):
            answer = change(sdk, cache, "Wrong-pass-1")
        assert (answer.result, answer.retry_times_left, answer.lock_time) == ("locked", "0", "5")
        service.kill()
        service.start()
        locked = change(sdk, cache, PASSWORD)  # the right one, too late
        assert (locked.result, locked.lock_time_left) in (("locked", "5"), ("locked", "4"))
        assert lets_in(cache, PASSWORD)
        reset(sdk, cache, new_password=NEW)
        assert change(sdk, cache, NEW, PASSWORD).result == "success"  # the reset has unlocked it


BAD = {
    "Short-1": "characters",
    "aB3" + "x" * 62: "characters",
    "alllowercase": "three",
    "lower1234567": "three",
    "Percent%123": "allowed",
    "Blank in 123": "allowed",
    "Quote'12345": "allowed",
    "Ümlaut-1234": "allowed",
}


@pytest.mark.parametrize("password", BAD)
def test_a_password_that_breaks_the_rules_is_refused_everywhere(
    service: Service, steady: Cache, password: str
) -> None:
    changed = {"old_password": PASSWORD, "new_password": password}
    requests = [
        ("POST", "/v2/{p}/instances", body_for(service, password=password), "password"),
        ("PUT", f"{steady.path}/password", changed, "new_password"),
        ("POST", f"{steady.path}/password/reset", {"new_password": password}, "new_password"),
    ]
    for method, path, body, parameter in requests:
        answer = service.http(method, path, json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4019"), answer.text
        assert parameter in answer.json()["error_msg"]
        assert password not in answer.text
    assert lets_in(steady, PASSWORD)


def test_no_password_is_on_disk_in_the_log_or_on_a_command_line(service: Service) -> None:
    secret = "Sup3r-secret-of-a-tenant"
    with made(service, password=secret) as cache:
        change(service.sdk(), cache, secret, NEW)
        change(service.sdk(), cache, NEW, secret)
        cache.act("restart")
        cache.until_running()
        assert lets_in(cache, secret)
        files = [path for path in service.data.parent.rglob("*") if path.is_file()]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [command for command in service.processes().values() if secret in command]


def test_equal_requests_of_one_second_are_the_clients_own_but_not_anybody_elses(service: Service) -> None:
    sdk = service.sdk()
    with made(service) as cache:
        tries = [change(sdk, cache, "Wrong-pass.1").retry_times_left for _ in range(3)]
        assert tries == ["4", "3", "2"]  # signed alike, if they fell into one second
        path = f"/v2/{service.facts.project_id}/instances/{cache.id}/password/reset"
        url = f"{service.facts.endpoint}{path}"
        body = b'{"new_password":"' + NEW.encode() + b'"}'
        signed = sign(
            Request(
                method="POST",
                path=path,
                query="",
                headers={"host": url.split("/")[2], "content-type": "application/json"},
                body=body,
            ),
            service.facts.access_key,
            service.facts.secret_key,
            now_ms(),
        )
        headers = {"content-type": "application/json", **signed}
        first = httpx.post(url, content=body, headers=headers)
        again = httpx.post(url, content=body, headers=headers)  # from another connection
        assert (first.status_code, again.status_code) == (200, 401)
        assert again.json()["error_code"] == "DCS.1001"
