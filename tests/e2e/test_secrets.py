"""No secret is anywhere in clear: not on disk, in a log, an argument or an environment, whatever happened.

Two are in files on purpose, and are left out here: `secret.key`, with which all others are sealed, and the
password by which the Sentinels log in, which Sentinel keeps in its own file and which lets in to nothing but
their own commands (`engine.redis_conf`).
"""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from support.accounts import Accounts, lets_in
from support.caches import HA, Cache, body_for, made
from support.encrypted import switch
from support.inside import inside
from support.proxied import SPLIT
from support.service import Service

from cacheyard.engine import find, tls
from cacheyard.engine.redis_conf import proxy_password, replication
from cacheyard.store.certificates import region_authority

KEPT_BY_DESIGN = ("secret.key",)
SECRETS: dict[str, str] = {}  # what it is, and the secret


def secret(what: str) -> str:
    """A new password, noted as one that must be nowhere."""
    return SECRETS.setdefault(what, f"Xq7-{os.urandom(9).hex()}")


@pytest.fixture(scope="module")
def lived() -> Iterator[Service]:
    """A service in which every secret there is was set, changed, refused, mistaken and used."""
    with Service(CACHEYARD_TLS="true") as service, ExitStack() as afterwards:
        forms: list[dict[str, Any]] = [{}, {"spec_code": HA}]
        if find.proxy() is not None:
            forms.append(SPLIT)
        for number, form in enumerate(forms):
            first = secret(f"instance {number}, first")
            cache = afterwards.enter_context(made(service, name=f"lived-{number}", password=first, **form))
            live_instance(cache, number, first)
            if form.get("spec_code") == HA:
                switch(cache, on=True)
        live_users(service)
        service.kill()
        service.start()
        service.restart()
        yield service


def live_instance(cache: Cache, number: int, first: str) -> None:
    def pw(what: str) -> str:
        return secret(f"instance {number}, {what}")

    def put(below: str, **body: Any) -> int:
        return cache.http("PUT", below, json=body).status_code

    there = Accounts(cache.service.sdk_token(), cache)
    assert cache.http(
        "PUT", "/password", json={"old_password": pw("wrong"), "new_password": pw("x")}
    ).is_success
    assert put("/password", old_password=first, new_password=pw("second")) == 200
    assert put("/password", old_password=pw("second"), new_password=pw("refused") + "%") == 400
    account = there.create("ann", "read", pw("account"))
    assert put(f"/accounts/{account}/password/modify", old_password=pw("w"), new_password=pw("y")) == 200
    assert (
        put(f"/accounts/{account}/password/modify", old_password=pw("account"), new_password=pw("acc2"))
        == 200
    )
    assert put(f"/accounts/{account}/password/reset", new_password=pw("acc3")) == 200
    assert put(f"/accounts/{account}/password/reset", new_password=pw("bad") + ":") == 400
    assert cache.http("POST", "/accounts", json={"account_password": pw("nameless")}).status_code == 400
    assert cache.http("POST", "/accounts", content=json.dumps(pw("no object"))).status_code == 400
    gone = there.create("bob", "write", pw("gone"))
    there.delete(gone)
    assert cache.act("restart").is_success
    assert put("/password", old_password=pw("second"), new_password=pw("busy")) in (200, 400)
    cache.until_running()
    assert cache.http("POST", "/password/reset", json={"new_password": pw("third")}).is_success
    assert lets_in(cache, "ann", pw("acc3"))
    assert not lets_in(cache, "ann", pw("client's wrong"))
    with closing(cache.client(pw("third"))) as link:
        link.config_get("slowlog*")
        with pytest.raises(redis.ResponseError):
            link.execute_command("AUTH", "a", pw("b"), "c")  # type: ignore[no-untyped-call]
    with inside(cache) as known:
        own = known.tools.sealer.open(known.instance.internal_secret)
        SECRETS["authority's key"] = region_authority(known.store, known.tools.sealer, cache.service.data).key
    SECRETS[f"instance {number}, internal"] = own
    SECRETS[f"instance {number}, replication"] = replication(own)["masterauth"]
    SECRETS[f"instance {number}, proxies"] = proxy_password(own)
    SECRETS[f"instance {number}, key of TLS"] = tls.password(own)


def live_users(service: Service) -> None:
    facts = service.facts
    SECRETS["first user's password"] = facts.password
    SECRETS["first user's secret key"] = facts.secret_key
    SECRETS["first user's token"] = service.token()
    user = json.loads(service.command("user", "add", "ann", "--json"))
    key = json.loads(service.command("key", "create", "ann", "--json"))
    SECRETS["ann's password"], SECRETS["ann's secret key"] = user["password"], key["secret_key"]
    service.command("role", "grant", "ann", facts.region, "DCS ReadOnlyAccess")
    SECRETS["ann's token"] = service.new_token("ann", user["password"], facts.project_id)
    again = json.loads(service.command("user", "password", "ann", "--json"))
    SECRETS["ann's second password"] = again["password"]
    wrong = {"user": {"name": "ann", "password": secret("mistaken"), "domain": {"name": facts.domain_name}}}
    body = {"auth": {"identity": {"methods": ["password"], "password": wrong}}}
    assert service.http("POST", "/v3/auth/tokens", json=body, token="").status_code == 401
    refused = body_for(service, password=secret("of no instance"), spec_code="no.such.flavor")
    assert service.http("POST", "/v2/{p}/instances", json=refused).status_code == 400
    assert service.http("GET", "/v2/{p}/instances", token=secret("no token")).status_code == 401


def spellings(text: str) -> set[bytes]:
    """The text itself, and in base64 wherever in the encoded it begins, without its edges. Of a private key,
    its first line, which is base64."""
    if text.startswith("-----"):
        return {text.splitlines()[1].encode()}
    raw = text.encode()
    encoded = {base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)}
    return {raw, *encoded}


def found_in(contents: dict[str, bytes]) -> list[str]:
    wanted = [(what, spelled) for what, text in SECRETS.items() for spelled in spellings(text)]
    return [
        f"{what} is in {place}" for place, content in contents.items() for what, s in wanted if s in content
    ]


def files(service: Service) -> dict[str, bytes]:
    """All of the data directory and the log beside it."""
    there = (path for path in sorted(service.data.parent.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in there if path.name not in KEPT_BY_DESIGN}


def processes(service: Service) -> dict[str, bytes]:
    """Arguments and environments of the service, the servers and the proxies."""
    found = {}
    for pid in service.processes():
        for name in ("cmdline", "environ"):
            found[f"{pid} {name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    return found


def test_the_scan_finds_what_is_there(lived: Service) -> None:
    assert len(SECRETS) > 40
    assert all(len(text) >= 16 for text in SECRETS.values())
    planted = lived.data / "planted"
    for what, text in SECRETS.items():
        plain = text.encode()
        is_key = text.startswith("-----")
        encoded = [] if is_key else [base64.b64encode(b"u" * shift + plain) for shift in range(3)]
        for spelled in (plain, *encoded):
            planted.write_bytes(b"x" * 1000 + spelled + b"\n")
            try:
                assert f"{what} is in {planted}" in found_in({str(planted): planted.read_bytes()})
            finally:
                planted.unlink()


def test_no_secret_is_on_disk_or_in_a_log(lived: Service) -> None:
    contents = files(lived)
    for there in ("cacheyard.sqlite", "users.acl", "redis.conf", "redis.log", "/log"):
        assert any(place.endswith(there) for place in contents), there
    assert found_in(contents) == []


def test_no_secret_is_an_argument_or_in_an_environment(lived: Service) -> None:
    contents = processes(lived)
    assert len(contents) > 2 * 4  # the service, servers, Sentinels
    assert found_in(contents) == []


def test_no_private_key_is_anywhere_without_a_password(lived: Service) -> None:
    found = {place: content for place, content in files(lived).items() if b"PRIVATE KEY" in content}
    assert any(place.endswith(tls.PAIR) for place in found)
    for place, content in found.items():
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in content, place
        assert b"BEGIN PRIVATE KEY" not in content, place
        assert b"BEGIN EC PRIVATE KEY" not in content, place
        assert Path(place).stat().st_mode & 0o077 == 0, place


def test_what_holds_secrets_is_its_owners_alone(lived: Service) -> None:
    for name in ("secret.key", "cacheyard.sqlite", "cacheyard.sqlite-wal"):
        assert (lived.data / name).stat().st_mode & 0o077 == 0, name
    for path in lived.data.rglob("users.acl"):
        assert path.stat().st_mode & 0o077 == 0, path
