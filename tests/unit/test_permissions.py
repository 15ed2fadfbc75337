"""What the system roles allow."""

import json
from pathlib import Path

import pytest

import cacheyard.contract
from cacheyard.domain.permissions import SYSTEM_ROLES, allows

CONTRACT = Path(cacheyard.contract.__file__).parent / "openapi.json"
READS = [
    "dcs:instance:get",
    "dcs:instance:list",
    "dcs:instance:getConfiguration",
    "dcs:slowlog:list",
    "vpc:vpcs:get",
]
CHANGES = ["dcs:instance:modifyStatus", "dcs:instance:webcli", "dcs:whitelist:modify", "dcs:clients:kill"]
MAKING = ["dcs:instance:create", "dcs:instance:delete", "dcs:instance:modify", "dcs:instance:scale"]


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("DCS FullAccess", READS + CHANGES + MAKING, ["vpc:vpcs:create", "iam:users:create"]),
        ("DCS Administrator", READS + CHANGES + MAKING, ["vpc:vpcs:delete"]),
        ("DCS UserAccess", READS + CHANGES, [*MAKING, "vpc:subnets:create"]),
        ("DCS ReadOnlyAccess", READS, CHANGES + MAKING),
        ("VPC FullAccess", ["vpc:vpcs:create", "vpc:subnets:delete"], READS[:4]),
        ("te_admin", [*READS, *CHANGES, *MAKING, "vpc:vpcs:create", "iam:users:create"], []),
        ("Tenant Administrator", [*MAKING, "vpc:vpcs:create"], ["iam:users:create"]),
    ],
)
def test_system_roles(role: str, allowed: list[str], refused: list[str]) -> None:
    assert [action for action in allowed if not allows([role], action)] == []
    assert [action for action in refused if allows([role], action)] == []


def test_roles_add_up_and_unknown_ones_allow_nothing() -> None:
    assert allows(["DCS ReadOnlyAccess", "VPC FullAccess"], "vpc:vpcs:create")
    assert allows(["DCS UserAccess", "DCS FullAccess"], "dcs:instance:create")
    assert not allows([], "dcs:instance:get")
    assert not allows(["dcs fullaccess", "nobody"], "dcs:instance:get")


def test_patterns_match_whole_actions_whatever_their_case() -> None:
    assert allows(["DCS ReadOnlyAccess"], "DCS:Instance:GetConfiguration")
    assert not allows(["DCS ReadOnlyAccess"], "xdcs:instance:get")
    assert not allows(["DCS ReadOnlyAccess"], "dcs:instance:forget")


def test_full_access_allows_every_dcs_action_of_the_contract() -> None:
    document = json.loads(CONTRACT.read_text())
    operations = [o for path in document["paths"].values() for o in path.values() if isinstance(o, dict)]
    actions = {o["x-action"] for o in operations if "x-action" in o}
    ours = {action for action in actions if action.startswith("dcs:")}
    assert len(ours) > 30
    assert [action for action in ours if not allows(["DCS FullAccess"], action)] == []
    assert [action for action in actions if not allows(["admin"], action)] == []


def test_every_role_has_patterns() -> None:
    assert all(role.allow for role in SYSTEM_ROLES.values())
