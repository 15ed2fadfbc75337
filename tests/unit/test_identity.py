"""The first start, tokens, projects and roles, on a real store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.region import BASE, NOW, Region, open_region

from cacheyard.domain.identity import Principal
from cacheyard.errors import (
    Invalid,
    NoRoleOnScope,
    NoToken,
    TokenExpired,
    Unauthenticated,
    WrongCredentials,
    WrongProject,
)
from cacheyard.services import accounts, catalog, identity, tokens
from cacheyard.services.bootstrap import RegionRefused, bootstrap
from cacheyard.store.slices import SliceRefused, claim, listeners

DAY = 24 * 3_600_000


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as made:
        yield made


def login(
    region: Region,
    name: str = "admin",
    password: str | None = None,
    *,
    scope: Any = None,
    now: int = NOW,
    **user: Any,
) -> tokens.IssuedToken:
    secret = region.first.password if password is None else password
    auth: dict[str, Any] = {
        "identity": {
            "methods": ["password"],
            "password": {"user": {"name": name, "password": secret, **user}},
        }
    }
    if scope is not None:
        auth["scope"] = scope
    return issue(region, auth, now)


def issue(region: Region, auth: Any, now: int = NOW) -> tokens.IssuedToken:
    return tokens.issue_token(
        region.store, {"auth": auth}, base_url=BASE, region=region.first.region, hours=24.0, now=now
    )


def user(region: Region, name: str, *projects: str, role: str = "DCS FullAccess") -> str:
    _, password = accounts.add_user(region.store, name)
    for project in projects:
        accounts.grant(region.store, name, project, role)
    return password


# --- The first start ------------------------------------------------------------------------------


def test_a_second_start_returns_the_same(region: Region) -> None:
    again = bootstrap(region.store, region.sealer, region.settings, region.claims)
    assert again == region.first
    assert again.az_codes == ("yard-1a", "yard-1b", "yard-1c")
    assert again.cidr == "127.64.0.0/16"


def test_secrets_show_in_no_repr_and_not_in_the_database(region: Region) -> None:
    issued = login(region)
    shown = repr(region.first) + repr(issued) + str(region.first)
    files = b"".join(path.read_bytes() for path in region.settings.data.glob("cacheyard.sqlite*"))
    for secret in (region.first.password, region.first.secret_key, issued.text):
        assert secret not in shown
        assert secret.encode() not in files


def test_a_deleted_first_key_is_made_anew_and_a_new_password_is_remembered(region: Region) -> None:
    accounts.delete_access_key(region.store, region.first.access_key)
    password = accounts.set_password(region.store, region.sealer, "admin")
    again = bootstrap(region.store, region.sealer, region.settings, region.claims)
    assert again.access_key != region.first.access_key
    assert again.password == password
    assert login(region, password=again.password)


def test_the_region_cannot_be_renamed_nor_its_slice_moved(region: Region) -> None:
    settings = region.settings
    with pytest.raises(RegionRefused, match="yard-1"):
        bootstrap(region.store, region.sealer, _with(settings, region="other"), region.claims)
    with pytest.raises(SliceRefused, match=r"127\.64"):
        bootstrap(region.store, region.sealer, _with(settings, cidr="127.70.0.0/16"), region.claims)


def _with(settings: Any, **changes: Any) -> Any:
    return replace(settings, **changes)


# --- Tokens ---------------------------------------------------------------------------------------


def test_a_token_lives_for_its_time(region: Region) -> None:
    issued = login(region, scope={"project": {"id": region.first.project_id}})
    who = identity.authenticate_token(region.store, issued.text, now=NOW + DAY - 1)
    assert who == region.admin
    with pytest.raises(TokenExpired):
        identity.authenticate_token(region.store, issued.text, now=NOW + DAY)
    assert issued.body["token"]["issued_at"] == "2027-01-15T08:00:00.000000Z"
    assert issued.body["token"]["expires_at"] == "2027-01-16T08:00:00.000000Z"


def test_the_body_is_keystones(region: Region) -> None:
    body = login(region, scope={"project": {"name": "yard-1", "domain": {"name": "cacheyard"}}}).body["token"]
    domain = {"id": region.first.domain_id, "name": "cacheyard"}
    assert body["methods"] == ["password"]
    assert body["project"] == {"id": region.first.project_id, "name": "yard-1", "domain": domain}
    assert body["user"]["domain"] == domain
    assert {role["name"] for role in body["roles"]} == {"admin", "te_admin"}
    urls = {entry["type"]: entry["endpoints"][0]["url"] for entry in body["catalog"]}
    assert urls["dcs"] == urls["dcsv1"] == f"{BASE}/v1.0/{region.first.project_id}"
    assert urls["vpc"] == f"{BASE}/v1/{region.first.project_id}"
    assert urls["network"] == BASE
    for entry in body["catalog"]:
        (endpoint,) = entry["endpoints"]
        assert (endpoint["interface"], endpoint["region"], endpoint["region_id"]) == (
            "public",
            "yard-1",
            "yard-1",
        )
    json.dumps(body)


def test_a_token_of_a_wrong_or_missing_text_is_refused(region: Region) -> None:
    with pytest.raises(NoToken):
        identity.authenticate_token(region.store, None, now=NOW)
    with pytest.raises(NoToken):
        identity.authenticate_token(region.store, "", now=NOW)
    with pytest.raises(Unauthenticated, match="never issued here"):
        identity.authenticate_token(region.store, "x" * 43, now=NOW)


def test_a_revoked_token_is_good_for_nothing(region: Region) -> None:
    issued, other = login(region), login(region)
    tokens.revoke_token(region.store, region.admin, issued.text, now=NOW)
    with pytest.raises(Unauthenticated):
        identity.authenticate_token(region.store, issued.text, now=NOW)
    assert identity.authenticate_token(region.store, other.text, now=NOW)
    with pytest.raises(tokens.NoSuchToken):
        tokens.revoke_token(region.store, region.admin, issued.text, now=NOW)


def test_a_user_sees_and_revokes_only_their_own_tokens(region: Region) -> None:
    eve = login(region, "eve", user(region, "eve", "yard-1"))
    who = identity.authenticate_token(region.store, eve.text, now=NOW)
    admins = login(region)
    show: dict[str, Any] = {"base_url": BASE, "region": "yard-1", "now": NOW}
    with pytest.raises(tokens.NoSuchToken):
        tokens.show_token(region.store, who, admins.text, **show)
    with pytest.raises(tokens.NoSuchToken):
        tokens.revoke_token(region.store, who, admins.text, now=NOW)
    shown = tokens.show_token(region.store, region.admin, eve.text, **show)
    assert shown["token"]["user"]["name"] == "eve"
    assert shown["token"]["catalog"]


def test_wrong_password_unknown_user_and_disabled_user_look_the_same(region: Region) -> None:
    password = user(region, "eve", "yard-1")
    accounts.enable_user(region.store, "eve", False)
    refusals = set()
    for name, secret in (("admin", "wrong"), ("nobody", "wrong"), ("eve", password), ("eve", "wrong")):
        with pytest.raises(WrongCredentials) as refused:
            login(region, name, secret)
        refusals.add((type(refused.value), str(refused.value)))
    with pytest.raises(WrongCredentials) as refused:
        login(region, domain={"name": "elsewhere"})
    refusals.add((type(refused.value), str(refused.value)))
    assert len(refusals) == 1


def test_an_unknown_user_costs_a_hash_too(region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str | None] = []
    monkeypatch.setattr(tokens, "is_password", lambda _, kept: checked.append(kept))
    with pytest.raises(WrongCredentials):
        login(region, "nobody", "wrong")
    assert checked == [None]


def test_disabling_a_user_or_taking_the_role_away_ends_their_tokens(region: Region) -> None:
    password = user(region, "eve", "yard-1")
    first = login(region, "eve", password)
    accounts.enable_user(region.store, "eve", False)
    with pytest.raises(Unauthenticated):
        identity.authenticate_token(region.store, first.text, now=NOW)
    accounts.enable_user(region.store, "eve", True)
    second = login(region, "eve", password)
    accounts.revoke(region.store, "eve", "yard-1", "DCS FullAccess")
    with pytest.raises(Unauthenticated, match="no role"):
        identity.authenticate_token(region.store, second.text, now=NOW)


def test_a_new_password_ends_the_tokens_of_the_old_one(region: Region) -> None:
    issued = login(region)
    accounts.set_password(region.store, region.sealer, "admin", "Abcdef12")
    with pytest.raises(Unauthenticated):
        identity.authenticate_token(region.store, issued.text, now=NOW)
    assert login(region, password="Abcdef12")
    with pytest.raises(Invalid, match="password"):
        accounts.set_password(region.store, region.sealer, "admin", "abc")


def test_a_token_for_a_token_has_a_new_scope_and_no_longer_life(region: Region) -> None:
    first = login(region, scope="unscoped")
    auth = {
        "identity": {"methods": ["token"], "token": {"id": first.text}},
        "scope": {"project": {"id": region.first.project_id}},
    }
    second = issue(region, auth, now=NOW + DAY - 1)
    assert second.body["token"]["expires_at"] == first.body["token"]["expires_at"]
    assert (
        identity.authenticate_token(region.store, second.text, now=NOW).project_id == region.first.project_id
    )
    with pytest.raises(Unauthenticated):
        issue(region, auth, now=NOW + DAY)


# --- Scopes and projects --------------------------------------------------------------------------


def test_scopes(region: Region) -> None:
    def project_of(scope: Any) -> str | None:
        return identity.authenticate_token(region.store, login(region, scope=scope).text, now=NOW).project_id

    first = region.first.project_id
    assert project_of(None) == first  # the only one
    assert project_of("unscoped") is None
    assert project_of({"domain": {"name": "cacheyard"}}) is None
    assert "catalog" in login(region, scope={"domain": {"id": region.first.domain_id}}).body["token"]
    assert "catalog" not in login(region, scope="unscoped").body["token"]
    second = accounts.add_project(region.store, "second")
    accounts.grant(region.store, "admin", "second", "te_admin")
    assert project_of(None) is None
    assert project_of({"project": {"name": "second"}}) == second.id


@pytest.mark.parametrize(
    "scope",
    [
        {"project": {"id": "0" * 32}},
        {"project": {"name": "second"}},
        {"project": {"name": "yard-1", "domain": {"name": "elsewhere"}}},
        {"domain": {"name": "elsewhere"}},
    ],
)
def test_a_scope_without_a_role_is_refused(region: Region, scope: Any) -> None:
    accounts.add_project(region.store, "second")
    with pytest.raises(NoRoleOnScope):
        login(region, scope=scope)


@pytest.mark.parametrize(
    "auth",
    [
        None,
        {},
        {"identity": {"methods": []}},
        {"identity": {"methods": ["totp"]}},
        {"identity": {"methods": ["password"]}},
        {"identity": {"methods": ["password"], "password": {"user": {"name": 1}}}},
        {"identity": {"methods": "password"}},
    ],
)
def test_a_body_that_is_not_keystones_is_refused(region: Region, auth: Any) -> None:
    with pytest.raises(Invalid):
        issue(region, auth)


def test_a_token_is_for_its_project_only(region: Region) -> None:
    second = accounts.add_project(region.store, "second")
    accounts.grant(region.store, "admin", "second", "te_admin")
    who = region.admin
    assert identity.for_project(region.store, who, region.first.project_id) is who
    with pytest.raises(WrongProject):
        identity.for_project(region.store, who, second.id)


def test_a_key_is_for_every_project_on_which_its_user_has_a_role(region: Region) -> None:
    second = accounts.add_project(region.store, "second")
    third = accounts.add_project(region.store, "third")
    accounts.grant(region.store, "admin", "second", "DCS ReadOnlyAccess")
    who = keyed(region.admin)
    there = identity.for_project(region.store, who, second.id)
    assert (there.project_name, there.roles) == ("second", ("DCS ReadOnlyAccess",))
    assert identity.any_role(region.store, who).roles == ("DCS ReadOnlyAccess", "admin", "te_admin")
    for elsewhere in (third.id, "0" * 32):
        with pytest.raises(WrongProject):
            identity.for_project(region.store, who, elsewhere)


def keyed(who: Principal) -> Principal:
    return replace(who, project_id=None, project_name=None, roles=(), may_choose=True)


def test_exactly_one_project_is_named_like_the_region(region: Region) -> None:
    accounts.add_project(region.store, "yard-1_other")
    accounts.grant(region.store, "admin", "yard-1_other", "te_admin")
    found = catalog.list_projects(region.store, region.admin, {"name": "yard-1"}, base_url=BASE)["projects"]
    assert [project["id"] for project in found] == [region.first.project_id]
    everything = catalog.list_projects(region.store, region.admin, {}, base_url=BASE)["projects"]
    assert {project["name"] for project in everything} == {"yard-1", "yard-1_other"}
    assert len(catalog.auth_projects(region.store, region.admin, base_url=BASE)["projects"]) == 2
    user(region, "eve")
    eve = Principal(user_id="eve", user_name="eve", domain_id="d", domain_name="d")
    assert catalog.list_projects(region.store, eve, {}, base_url=BASE)["projects"] == []


def test_domains_and_discovery(region: Region) -> None:
    domains = catalog.auth_domains(region.admin, {"name": "cacheyard"}, base_url=BASE)["domains"]
    assert [domain["id"] for domain in domains] == [region.first.domain_id]
    assert catalog.auth_domains(region.admin, {"name": "other"}, base_url=BASE)["domains"] == []
    versions = catalog.versions(BASE)["versions"]["values"]
    assert {version["id"]: version["links"][0]["href"] for version in versions} == {
        "v3.6": f"{BASE}/v3/",
        "v2.0": f"{BASE}/v2.0/",
    }
    assert catalog.version(BASE)["version"]["id"] == "v3.6"
    signed = catalog.show_catalog(region.store, keyed(region.admin), base_url=BASE, region="yard-1")
    assert any(region.first.project_id in entry["endpoints"][0]["url"] for entry in signed["catalog"])


# --- Administration -------------------------------------------------------------------------------


def test_administration(region: Region) -> None:
    password = user(region, "eve", "yard-1", role="DCS ReadOnlyAccess")
    assert login(region, "eve", password)
    assert [one.name for one in accounts.list_users(region.store)] == ["admin", "eve"]
    assert accounts.list_roles(region.store, "eve") == [("yard-1", "DCS ReadOnlyAccess", "")]
    assert [project.name for project in accounts.list_projects(region.store)] == ["yard-1"]
    key = accounts.create_access_key(region.store, region.sealer, "eve")
    assert [one.access for one in accounts.list_access_keys(region.store, "eve")] == [key.access]
    assert len(accounts.list_access_keys(region.store)) == 2


def test_administration_refuses_what_is_there_or_is_not(region: Region) -> None:
    with pytest.raises(accounts.Exists):
        accounts.add_user(region.store, "admin")
    with pytest.raises(accounts.Exists):
        accounts.add_project(region.store, "yard-1")
    with pytest.raises(accounts.Unknown):
        accounts.grant(region.store, "nobody", "yard-1", "admin")
    with pytest.raises(accounts.Unknown):
        accounts.grant(region.store, "admin", "nowhere", "admin")
    with pytest.raises(Invalid):
        accounts.grant(region.store, "admin", "yard-1", "king")
    with pytest.raises(accounts.Unknown):
        accounts.delete_access_key(region.store, "nothing")
    with pytest.raises(accounts.Unknown):
        accounts.revoke(region.store, "admin", "yard-1", "DCS FullAccess")
    with pytest.raises(Invalid):
        accounts.add_user(region.store, " spaced ")


# --- Slices ---------------------------------------------------------------------------------------


def test_two_yards_get_two_slices_and_keep_them(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = claim(one, claims=claims), claim(two, claims=claims)
    assert first != second
    assert claim(one, kept=first, claims=claims) == first
    with pytest.raises(SliceRefused, match=str(one)):
        claim(tmp_path / "three", wanted=first.replace("/16", "/20"), claims=claims)
    with pytest.raises(SliceRefused, match=str(one)):
        claim(two, kept=first, claims=claims)


def test_the_slice_of_a_yard_that_is_gone_is_free(tmp_path: Path) -> None:
    claims, one = tmp_path / "claims", tmp_path / "one"
    first = claim(one, claims=claims)
    (one / "slice.json").unlink()
    assert claim(tmp_path / "two", claims=claims) == first
    with pytest.raises(SliceRefused):
        claim(one, kept=first, claims=claims)


def test_a_lost_claim_is_made_again(tmp_path: Path) -> None:
    claims, one = tmp_path / "claims", tmp_path / "one"
    first = claim(one, claims=claims)
    for path in claims.glob("*.json"):
        path.unlink()
    assert claim(one, kept=first, claims=claims) == first
    assert claim(tmp_path / "two", claims=claims) != first


def test_links_and_rubbish_among_the_claims_do_no_harm(tmp_path: Path) -> None:
    claims, victim = tmp_path / "claims", tmp_path / "victim"
    claim(tmp_path / "one", claims=claims)
    victim.write_text("precious")
    (claims / "127.120.0.0-16.json").symlink_to(victim)
    (claims / "127.121.0.0-16.json").write_text("rubbish")
    (claims / "127.122.0.0-16.json").mkdir()
    for wanted in ("127.120.0.0/16", "127.121.0.0/16"):
        assert claim(tmp_path / wanted.replace("/", "-"), wanted=wanted, claims=claims) == wanted
    assert victim.read_text() == "precious"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        claim(tmp_path / "two", claims=tmp_path / "link")


@pytest.mark.parametrize(
    "cidr", ["10.0.0.0/16", "127.0.0.0/16", "127.64.0.0/25", "127.64.0.1/16", "x", "::/16"]
)
def test_a_slice_must_be_a_part_of_loopback(tmp_path: Path, cidr: str) -> None:
    with pytest.raises(SliceRefused):
        claim(tmp_path / "one", wanted=cidr, claims=tmp_path / "claims")


def test_addresses_on_which_something_listens_are_seen(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    head = "  sl  local_address rem_address   st\n"
    table.write_text(head + "   0: 0100407F:18EB 00000000:0000 0A\n   1: 0200417F:18EB 00000000:0000 01\n")
    assert {str(address) for address in listeners((str(table),))} == {"127.64.0.1"}
