"""What the system roles allow."""

import json
import re
from pathlib import Path

import pytest

import cacheyard.contract
from cacheyard.contract.operations import OPERATIONS
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
TWINS = {name: OPERATIONS[name[3:]] for name in OPERATIONS if name[3:] in OPERATIONS}

# Table 6-1 of the API reference, the rows that name an operation.
DOCUMENTED = {
    "create_instance": "dcs:instance:create",
    "show_instance": "dcs:instance:get",
    "update_instance": "dcs:instance:modify",
    "delete_single_instance": "dcs:instance:delete",
    "resize_instance": "dcs:instance:scale",
    "list_instances": "dcs:instance:list",
    "list_configurations": "dcs:instance:getConfiguration",
    "update_configurations": "dcs:instance:modifyConfigureation",
    "restart_or_flush_instances": "dcs:instance:modifyStatus",
    "update_password": "dcs:instance:modifyAuthInfo",
    "copy_instance": "dcs:instance:backupData",
    "restore_instance": "dcs:instance:restoreData",
    "list_backup_records": "dcs:instance:getDataBackupLog",
    "list_restore_records": "dcs:instance:getDataRestoreLog",
    "delete_backup_file": "dcs:instance:deleteDataBackupFile",
    "list_background_task": "dcs:instance:getBackgroundTask",
    "delete_background_task": "dcs:instance:deleteBackgroundTask",
    "reset_password": "dcs:instance:resetAuthInfo",
    "list_backup_file_links": "dcs:instance:downloadBackupData",
    "create_migration_task": "dcs:migrationTask:create",
    "stop_migration_task": "dcs:migrationTask:modify",
    "delete_migration_task": "dcs:migrationTask:delete",
    "list_migration_task": "dcs:migrationTask:list",
    "show_migration_task": "dcs:migrationTask:get",
    "create_diagnosis_task": "dcs:instance:diagnosis",
    "list_config_templates": "dcs:template:list",
    "create_custom_template": "dcs:template:create",
    "change_master_standby": "dcs:instance:swap",
    "update_ip_whitelist": "dcs:whitelist:modify",
    "show_ip_whitelist": "dcs:whitelist:list",
    "create_acl_account": "dcs:aclaccount:create",
    "delete_acl_account": "dcs:aclaccount:delete",
    "update_acl_account_remark": "dcs:aclaccount:modify",
    "list_acl_accounts": "dcs:aclaccount:list",
    "list_slowlog": "dcs:slowlog:list",
}


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


def test_documented_actions_are_those_of_the_contract_and_version_1_has_those_of_version_2() -> None:
    assert {name: OPERATIONS[name].action for name in DOCUMENTED} == DOCUMENTED
    assert len(TWINS) > 20
    assert [name for name, twin in TWINS.items() if OPERATIONS[name].action != twin.action] == []


def test_whoever_may_read_may_change_nothing() -> None:
    """Reading roles allow what asks, and none of what changes; asking that takes work is no reading."""
    reads = {o.action for o in OPERATIONS.values() if o.action and allows(["DCS ReadOnlyAccess"], o.action)}
    changing = {o.id for o in OPERATIONS.values() if o.method != "GET" and o.action in reads}
    assert changing == {
        "create_redislog",
        "create_redislog_download_link",
        "download_ssl_cert",
        "export_instances_task",
        "scan_clients",
    }


def test_every_role_has_patterns() -> None:
    assert all(role.allow for role in SYSTEM_ROLES.values())


def test_the_page_has_every_operation_in_the_row_of_its_action() -> None:
    page = (Path(__file__).parents[2] / "docs" / "permissions.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `dcs:")}
    ours = [o for o in OPERATIONS.values() if o.action in rows or str(o.action).startswith("dcs:")]
    told = [o for o in ours if not o.id.startswith("v1_") or o.id not in TWINS]
    assert [o.id for o in told if not re.search(rf"\b{o.id}\b", rows[str(o.action)])] == []
    bold = {name for row in rows.values() for name in re.findall(r"\*\*(\w+)\*\*", row)}
    assert bold == set(DOCUMENTED)
    assert [name for name in SYSTEM_ROLES if f"`{name}`" not in page] == []
