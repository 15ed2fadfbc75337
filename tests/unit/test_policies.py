"""Custom policies and groups: what they allow, what of them is refused, and from when on they count."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.region import BASE, NOW, Region, open_region

from cacheyard.cli import commands
from cacheyard.contract.operations import OPERATIONS
from cacheyard.domain.identity import Principal
from cacheyard.domain.permissions import BadPolicy, Policy, allows, parse_policy
from cacheyard.errors import Invalid, NoRoleOnScope, Refused, Unauthenticated, WrongProject
from cacheyard.services import accounts, enterprise, identity, policies, tokens

ACTIONS = {operation.action for operation in OPERATIONS.values() if operation.action is not None}


def statement(effect: str, *actions: str, **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": list(actions), **more}


def document(*statements: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Version": "1.1", "Statement": list(statements), **more}


def parsed(*statements: dict[str, Any]) -> Policy:
    return parse_policy(document(*statements), ACTIONS)


# --- What a policy says ---------------------------------------------------------------------------


def test_a_policy_allows_what_it_names_and_nothing_else() -> None:
    policy = parsed(statement("Allow", "dcs:instance:get*", "dcs:slowlog:list"))
    assert allows([], "dcs:instance:getConfiguration", [policy])
    assert allows([], "dcs:slowlog:list", [policy])
    assert not allows([], "dcs:instance:list", [policy])
    assert not allows([], "dcs:instance:create", [policy])


def test_denial_wins_over_everything_that_allows() -> None:
    both = parsed(statement("Allow", "dcs:*:*"), statement("Deny", "dcs:instance:delete"))
    assert allows([], "dcs:instance:create", [both])
    assert not allows([], "dcs:instance:delete", [both])
    assert not allows(["te_admin"], "dcs:instance:delete", [both])
    other = parsed(statement("Allow", "dcs:instance:delete"))
    assert not allows([], "dcs:instance:delete", [other, both])
    assert not allows([], "dcs:instance:delete", [both, other])


def test_policies_add_up_with_roles() -> None:
    policy = parsed(statement("Allow", "dcs:instance:create"))
    assert allows(["DCS ReadOnlyAccess"], "dcs:instance:create", [policy])
    assert allows(["DCS ReadOnlyAccess"], "dcs:instance:get", [policy])
    assert allows(["DCS UserAccess"], "dcs:instance:create", [policy]), "what a role leaves out is not denied"


def test_denial_alone_allows_nothing() -> None:
    assert not allows([], "dcs:instance:get", [parsed(statement("Deny", "dcs:instance:delete"))])


GOOD = statement("Allow", "dcs:instance:get")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ("text", "object"),
        ({}, "Version"),
        (document(GOOD) | {"Version": "1.0"}, "Version"),
        (document(GOOD) | {"Version": "5.0"}, "Version"),
        (document(), "length"),
        (document(*[GOOD] * 9), "length"),
        (document(GOOD, Id="x"), "Id"),
        (document(statement("Maybe", "dcs:instance:get")), "Effect"),
        (document(statement("allow", "dcs:instance:get")), "Effect"),
        (document(statement("Allow")), "length"),
        (document({"Effect": "Allow", "Action": "dcs:instance:get"}), "Action"),
        (document({"Effect": "Allow"}), "Action"),
        (document(statement("Allow", "dcs:instance")), "dcs:instance"),
        (document(statement("Allow", "dcs:instance:get:more")), "service:resource:verb"),
        (document(statement("Allow", "")), "service:resource:verb"),
        (document(statement("Allow", "dcs:instance:get\n")), "service:resource:verb"),
        (document(statement("Allow", "dcs:instnace:*")), "dcs:instnace"),
        (document(statement("Deny", "dcs:instance:Destroy")), "Destroy"),
        (document(GOOD, statement("Allow", "dcs:*:*", Condition={})), r"Statement\[1\] has Condition"),
        (document(statement("Allow", "dcs:*:*", Resource=["*"])), "Resource"),
        (document(statement("Allow", "dcs:*:*", NotAction=["dcs:*:*"])), "NotAction"),
    ],
)
def test_what_is_not_understood_is_refused_by_name_and_never_left_out(bad: Any, named: str) -> None:
    with pytest.raises(BadPolicy, match=named):
        parse_policy(bad, ACTIONS)


def test_a_policy_may_name_other_services() -> None:
    assert parse_policy(document(statement("Allow", "obs:bucket:*", "dcs:instance:get")), ACTIONS)


# --- Who has it -----------------------------------------------------------------------------------


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as made:
        yield made


def login(region: Region, password: str, project: str = "yard-1") -> str:
    user = {"name": "ann", "password": password}
    auth = {
        "identity": {"methods": ["password"], "password": {"user": user}},
        "scope": {"project": {"name": project}},
    }
    issued = tokens.issue_token(
        region.store, {"auth": auth}, base_url=BASE, region=region.first.region, hours=24.0, now=NOW
    )
    return issued.text


def may(region: Region, token: str, action: str) -> bool:
    who = identity.authenticate_token(region.store, token, now=NOW)
    return allows(who.roles, action, who.policies)


def test_policies_count_from_the_next_request_on(region: Region) -> None:
    _, password = accounts.add_user(region.store, "ann")
    policies.add_policy(region.store, "readers", document(statement("Allow", "dcs:*:get*")))
    accounts.grant(region.store, "ann", "yard-1", "readers")
    token = login(region, password)
    assert may(region, token, "dcs:instance:get")
    assert not may(region, token, "dcs:instance:create")
    policies.change_policy(region.store, "readers", document(statement("Allow", "dcs:instance:create")))
    assert not may(region, token, "dcs:instance:get")
    assert may(region, token, "dcs:instance:create")
    accounts.revoke(region.store, "ann", "yard-1", "readers")
    with pytest.raises(Unauthenticated, match="no role"):
        may(region, token, "dcs:instance:create")


def test_a_group_gives_its_users_what_it_was_granted(region: Region) -> None:
    _, password = accounts.add_user(region.store, "ann")
    policies.add_group(region.store, "team")
    policies.join(region.store, "team", "ann")
    with pytest.raises(NoRoleOnScope):
        login(region, password)
    policies.grant(region.store, "team", "yard-1", "DCS FullAccess")
    token = login(region, password)
    assert may(region, token, "dcs:instance:create")
    policies.add_policy(region.store, "keep", document(statement("Deny", "dcs:instance:delete")))
    policies.grant(region.store, "team", "yard-1", "keep")
    assert may(region, token, "dcs:instance:create")
    assert not may(region, token, "dcs:instance:delete")
    assert accounts.list_roles(region.store, "ann") == [
        ("yard-1", "DCS FullAccess", "team"),
        ("yard-1", "keep", "team"),
    ]
    policies.revoke(region.store, "team", "yard-1", "keep")
    assert may(region, token, "dcs:instance:delete")
    policies.leave(region.store, "team", "ann")
    with pytest.raises(Unauthenticated, match="no role"):
        may(region, token, "dcs:instance:create")


def test_own_and_group_rights_add_up_and_denial_by_a_group_wins(region: Region) -> None:
    _, password = accounts.add_user(region.store, "ann")
    accounts.grant(region.store, "ann", "yard-1", "te_admin")
    policies.add_group(region.store, "careful")
    policies.join(region.store, "careful", "ann")
    policies.add_policy(region.store, "keep", document(statement("Deny", "dcs:instance:delete")))
    policies.grant(region.store, "careful", "yard-1", "keep")
    policies.grant(region.store, "careful", "yard-1", "te_admin")
    token = login(region, password)
    who = identity.authenticate_token(region.store, token, now=NOW)
    assert who.roles == ("keep", "te_admin")
    assert not may(region, token, "dcs:instance:delete")
    assert may(region, token, "dcs:instance:create")


def test_signed_requests_have_the_same_rights_and_each_project_has_its_own(region: Region) -> None:
    user, _ = accounts.add_user(region.store, "ann")
    lab = accounts.add_project(region.store, "lab")
    accounts.add_project(region.store, "other")
    policies.add_group(region.store, "team")
    policies.join(region.store, "team", "ann")
    policies.add_policy(region.store, "makers", document(statement("Allow", "dcs:instance:create")))
    policies.grant(region.store, "team", "lab", "makers")
    signed = Principal(user_id=user.id, user_name="ann", domain_id="d", domain_name="d", may_choose=True)
    on_lab = identity.for_project(region.store, signed, lab.id)
    assert allows(on_lab.roles, "dcs:instance:create", on_lab.policies)
    assert not allows(on_lab.roles, "dcs:instance:get", on_lab.policies)
    with pytest.raises(WrongProject):
        identity.for_project(region.store, signed, region.first.project_id)
    anywhere = identity.any_role(region.store, signed)
    assert allows(anywhere.roles, "dcs:instance:create", anywhere.policies)


def test_names_are_unique_and_what_is_granted_stays(region: Region) -> None:
    good = document(statement("Allow", "dcs:*:get*"))
    policies.add_policy(region.store, "readers", good)
    policies.add_group(region.store, "team")
    for refused in (
        lambda: policies.add_policy(region.store, "readers", good),
        lambda: policies.add_policy(region.store, "DCS FullAccess", good),
        lambda: policies.add_policy(region.store, " x", good),
        lambda: policies.change_policy(region.store, "nobody", good),
        lambda: policies.change_policy(region.store, "readers", {}),
        lambda: policies.add_group(region.store, "team"),
        lambda: policies.grant(region.store, "team", "yard-1", "nobody"),
        lambda: policies.leave(region.store, "team", "admin"),
        lambda: policies.revoke(region.store, "team", "yard-1", "readers"),
        lambda: accounts.delete_user(region.store, "admin"),
    ):
        with pytest.raises(Refused):
            refused()
    policies.grant(region.store, "team", "yard-1", "readers")
    with pytest.raises(Refused, match="revoke it first"):
        policies.delete_policy(region.store, "readers")
    assert [policy.name for policy in policies.list_policies(region.store)] == ["readers"]
    policies.delete_group(region.store, "team")
    policies.delete_policy(region.store, "readers")
    assert policies.list_policies(region.store) == []
    assert policies.list_groups(region.store) == []


def test_a_deleted_user_leaves_nothing_that_opens_a_door(region: Region) -> None:
    _, password = accounts.add_user(region.store, "ann")
    accounts.grant(region.store, "ann", "yard-1", "DCS FullAccess")
    accounts.create_access_key(region.store, region.sealer, "ann")
    policies.add_group(region.store, "team")
    policies.join(region.store, "team", "ann")
    token = login(region, password)
    accounts.delete_user(region.store, "ann")
    with pytest.raises(Unauthenticated):
        may(region, token, "dcs:instance:get")
    assert [user.name for user in accounts.list_users(region.store)] == ["admin"]
    assert [key.user_name for key in accounts.list_access_keys(region.store)] == ["admin"]
    accounts.add_user(region.store, "ann")
    assert accounts.list_roles(region.store, "ann") == []


# --- The command ----------------------------------------------------------------------------------


def test_the_command_administers_it(region: Region, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(region.settings.data), "--json"]
    policy = json.dumps(document(statement("Allow", "dcs:instance:*"), statement("Deny", "dcs:*:delete")))

    def told(*words: str) -> Any:
        assert commands.run([*words, *data]) == 0
        return json.loads(capsys.readouterr().out)

    told("user", "add", "ann")
    file = region.settings.data / "policy.json"
    file.write_text(policy)
    assert told("policy", "add", "makers", f"@{file}")["policy"] == json.loads(policy)
    told("group", "add", "team")
    told("group", "join", "team", "ann")
    told("group", "grant", "team", "yard-1", "makers")
    assert told("group", "list")[0]["users"] == ["ann"]
    assert told("role", "list", "ann") == [{"project": "yard-1", "role": "makers", "group": "team"}]
    assert told("role", "check", "ann", "yard-1", "dcs:instance:create")["allowed"] is True
    assert told("role", "check", "ann", "yard-1", "dcs:instance:delete")["allowed"] is False
    told("policy", "change", "makers", policy.replace("Deny", "Allow"))
    assert told("role", "check", "ann", "yard-1", "dcs:instance:delete")["allowed"] is True
    told("group", "leave", "team", "ann")
    told("user", "delete", "ann")
    assert commands.run(["policy", "add", "bad", '{"Version":"1.1"}', *data]) == 1
    assert "Statement" in capsys.readouterr().err
    assert commands.run(["policy", "add", "bad", "@/nowhere", *data]) == 1
    with pytest.raises(Invalid):
        policies.allowed(region.store, "admin", "yard-1", "dcs:instance:fly")
    kept = [(each["operation"], each["resources"], each["status"]) for each in told("audit")]
    assert kept[0] == ("cacheyard user add", ["ann"], 200)
    assert kept[1] == ("cacheyard policy add", ["makers"], 200)
    assert kept[4] == ("cacheyard group grant", ["team", "yard-1", "makers"], 200)
    assert kept[-1] == ("cacheyard policy add", ["bad"], 400)
    assert len(kept) == 10
    assert {each["source"] for each in told("audit")} == {"command"}


def test_enterprise_projects_have_names_of_their_own_and_go_when_nothing_is_in_them(region: Region) -> None:
    made = enterprise.add(region.store, "accounting")
    for refused in (
        lambda: enterprise.add(region.store, "accounting"),
        lambda: enterprise.add(region.store, "default"),
        lambda: enterprise.delete(region.store, "default"),
        lambda: enterprise.delete(region.store, "nobody"),
    ):
        with pytest.raises(Refused):
            refused()
    with region.store.write() as tx:
        assert enterprise.chosen(tx, None) == "0"
        assert enterprise.chosen(tx, made.id) == made.id
    enterprise.delete(region.store, "accounting")
    assert [each.name for each in enterprise.every(region.store)] == ["default"]
