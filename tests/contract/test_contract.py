"""The contract keeps what it promises to clients, to the code made from it, and to itself."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette

from cacheyard import errors
from cacheyard.api import reference
from cacheyard.contract import generate, types
from cacheyard.contract.coverage import as_markdown, coverage
from cacheyard.contract.document import FILE, is_struct, load, ref
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS

CONTRACT = load()
SCHEMAS: dict[str, Any] = CONTRACT["components"]["schemas"]
RAW: dict[str, dict[str, Any]] = {
    o["operationId"]: o for item in CONTRACT["paths"].values() for o in item.values()
}
CODES: dict[str, dict[str, Any]] = json.loads((FILE.parent / "error_codes.json").read_text(encoding="utf-8"))
ALL = list(OPERATIONS.values())

FAMILY_ERROR = {
    "v2": "ErrorResponse",
    "v1": "ErrorResponseV1",
    "iam": "ErrorResponseKeystone",
    "vpc": "ErrorResponseVpc",
    "ecs": "ErrorResponseVpc",
}


def by_id(operation: Operation) -> str:
    return operation.id


# --- the document --------------------------------------------------------------------------------


def test_every_reference_leads_to_a_schema() -> None:
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(CONTRACT))) == set(SCHEMAS)


def test_operation_ids_are_unique() -> None:
    count = sum(len(item) for item in CONTRACT["paths"].values())
    assert count == len(RAW) == len(OPERATIONS)


@pytest.mark.parametrize("operation", ALL, ids=by_id)
def test_every_path_parameter_is_declared_and_required(operation: Operation) -> None:
    declared = [p for p in operation.parameters if p.where == "path"]
    assert sorted(p.name for p in declared) == sorted(re.findall(r"\{(\w+)\}", operation.path))
    assert all(p.required for p in declared)


@pytest.mark.parametrize("operation", ALL, ids=by_id)
def test_the_status_of_success_is_documented(operation: Operation) -> None:
    responses = RAW[operation.id]["responses"]
    assert str(operation.success) in responses
    assert operation.success in (200, 201, 204)
    if operation.success == 204:
        assert operation.answer is None


@pytest.mark.parametrize("operation", ALL, ids=by_id)
def test_every_error_has_the_shape_of_its_family(operation: Operation) -> None:
    responses = RAW[operation.id]["responses"]
    assert {"400", "401", "403", "404", "405", "500", "501"} <= set(responses)
    for status, response in responses.items():
        if status[0] in "45" or status == "default":
            schema = response["content"]["application/json"]["schema"]
            assert ref(schema) == FAMILY_ERROR[operation.family]


@pytest.mark.parametrize("operation", [o for o in ALL if o.family != "iam"], ids=by_id)
def test_every_operation_but_those_of_identity_needs_a_permission(operation: Operation) -> None:
    assert re.fullmatch(r"(dcs|vpc|ecs):[a-zA-Z]+:[a-zA-Z]+", operation.action or "")


@pytest.mark.parametrize("operation", ALL, ids=by_id)
def test_every_summary_is_an_order_without_a_full_stop(operation: Operation) -> None:
    assert operation.summary[0].isupper()
    assert not operation.summary.endswith(".")
    assert not operation.summary.split()[0].endswith("ing")


def every_schema() -> list[tuple[str, dict[str, Any]]]:
    """Every schema in the document with the way to it."""
    found: list[tuple[str, dict[str, Any]]] = []

    def walk(way: str, schema: dict[str, Any]) -> None:
        found.append((way, schema))
        for name, prop in schema.get("properties", {}).items():
            walk(f"{way}.{name}", prop)
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                walk(f"{way}[]", schema[key])

    for name, schema in SCHEMAS.items():
        walk(name, schema)
    for operation, raw in RAW.items():
        for parameter in raw["parameters"]:
            walk(f"{operation}({parameter['name']})", parameter["schema"])
    return found


def test_every_error_code_is_explained() -> None:
    named = {way: s["x-error-code"] for way, s in every_schema() if "x-error-code" in s}
    assert named
    assert not {way: code for way, code in named.items() if code not in CODES}


def test_every_code_has_a_status_a_text_and_a_way_out() -> None:
    for code, row in CODES.items():
        assert re.fullmatch(r"DCS\.\d{4}", code)
        assert row["status"] in (400, 401, 403, 404, 405, 409, 500, 501)
        assert row["text"].endswith(".")
        assert row["do"].endswith(".")


def test_every_code_that_the_source_answers_is_explained_with_its_status() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.Refused)]
    wrong = {c.__name__: c.code for c in classes if CODES.get(c.code, {}).get("status") != c.status}
    assert not wrong


def test_every_pattern_is_one_that_python_knows() -> None:
    for _, schema in every_schema():
        if "pattern" in schema:
            re.compile(schema["pattern"])
            assert schema["pattern"].startswith("^")
            assert schema["pattern"].endswith("$")


def test_nothing_in_it_points_outside_the_project() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "x-example-url" not in text
    assert "x-note" not in text


def test_only_getting_a_token_and_finding_out_where_need_no_token() -> None:
    assert {o.id for o in ALL if o.public} == {
        "keystone_create_user_token_by_password",
        "keystone_list_versions",
        "keystone_show_version",
    }


# --- examples ------------------------------------------------------------------------------------


def as_json_schema(schema: Any) -> Any:
    """OpenAPI 3.0 says `nullable` where JSON Schema lists null."""
    if isinstance(schema, list):
        return [as_json_schema(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {
        k: ({n: as_json_schema(p) for n, p in v.items()} if k == "properties" else as_json_schema(v))
        for k, v in schema.items()
        if k not in ("enum", "example", "default", "required")
    }
    plain |= {k: schema[k] for k in ("enum", "required") if k in schema}
    return {"anyOf": [plain, {"type": "null"}]} if plain.pop("nullable", False) else plain


DEFINITIONS = {"components": {"schemas": {name: as_json_schema(s) for name, s in SCHEMAS.items()}}}


def misfits(operation: Operation) -> list[str]:
    """What is wrong with the examples of an operation."""
    raw = RAW[operation.id]
    messages = [("request", raw.get("requestBody", {})), *raw["responses"].items()]
    problems = []
    for where, message in messages:
        content = message.get("content", {}).get("application/json", {})
        validator = Draft202012Validator({**as_json_schema(content.get("schema", {})), **DEFINITIONS})
        for name, example in content.get("examples", {}).items():
            problems += [
                f"{where} {name} {error.json_path}: {error.message[:80]}"
                for error in validator.iter_errors(example["value"])
            ]
    return problems


@pytest.mark.parametrize("operation", ALL, ids=by_id)
def test_examples_fit_their_schema(operation: Operation) -> None:
    assert not misfits(operation)


# --- what is made from it ------------------------------------------------------------------------


def test_the_generated_files_are_fresh() -> None:
    assert generate.main(["--check"]) == 0


def test_a_stale_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main([]) == 0
    (tmp_path / "types.py").write_text("old", encoding="utf-8")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    shown = capsys.readouterr().err
    assert "types.py" in shown
    assert "operations.py" not in shown


@pytest.mark.parametrize("operation", ALL, ids=by_id)
def test_bodies_and_answers_have_a_type(operation: Operation) -> None:
    if operation.body:
        assert is_struct(SCHEMAS[operation.body])
    for name in (operation.body, operation.answer):
        assert name is None or hasattr(types, name)


def test_every_object_has_a_type_with_its_properties() -> None:
    for name, schema in SCHEMAS.items():
        if is_struct(schema):
            assert set(getattr(types, name).__struct_encode_fields__) == set(schema.get("properties", {}))


# --- JSON types that clients crash on ------------------------------------------------------------

LOAD_BEARING = """
ShowInstanceResponse integer charging_mode capacity port max_memory used_memory replica_count
ShowInstanceResponse integer sharding_count db_number
ShowInstanceResponse string capacity_minor status no_password_access task
ShowInstanceResponse boolean transparent_client_ip_enable enable_ssl
ShowInstanceResponse array tags az_codes available_zones
ShowInstanceResponse object bandwidth_info instance_backup_policy
BandwidthInfo integer begin_time end_time current_time next_expand_time bandwidth expand_count
BandwidthInfo boolean task_running
InstanceListInfo integer charging_mode capacity port
InstanceListInfo string capacity_minor no_password_access publicip_address
InstanceListInfo boolean enable_ssl
ShowInstanceResponseV1 integer charging_mode capacity port max_memory used_memory
ShowInstanceResponseV1 string capacity_minor no_password_access task is_free free support_slow_log_flag
ShowInstanceResponseV1 boolean enable_publicip
QueryRedisConfig string param_id param_value
QueryRedisConfig boolean need_restart
QueryRedisConfigV1 string param_id
ListConfigurationsResponse array redis_config
ListConfigurationsResponse string config_time
ShowIpWhitelistResponse array whitelist
ShowIpWhitelistResponse boolean enable_whitelist
FlavorsItems array capacity billing_mode
FlavorsItems integer tenant_ip_count replica_count
FlavorsItems string engine_version
FlavorsItems boolean is_dec
FlavorAzObject string capacity unit
FlavorAzObject array az_codes
ListBackupRecordsResponse integer total_num
ListBackupRecordsResponse array backup_record_response
BackupRecordResponse integer size
BackupRecordResponse string is_support_restore progress
BackupRecordResponseV1 integer size
BackupRecordResponseV1 string is_support_restore progress
ListRestoreRecordsResponse integer total_num
ListBackgroundTaskResponse string task_count
ListBackgroundTaskResponse array tasks
ListCenterTaskResponse string task_count
ShowBackgroundTaskProgressResponse integer progress remain_time
ShowInstanceSslDetailResponse string port
ShowInstanceSslDetailResponse boolean enabled
UpdateSslSwitchResponse string job_id jobId instance_id instanceId
DeleteIpFromDomainNameResponse string job_id jobId
ShowMigrationTaskResponse string bandwidth_limit_mb task_status
ShowMigrationTaskResponse object backup_files
CreateOnlineMigrationTaskResponse string instance_id job_id
DiagnosisNodeReport object command_time_taken_list
DiagnosisNodeReport boolean is_faulted
CommandTimeTaken number usec_sum average_usec
CommandTimeTaken string per_usec
ShowJobInfoResponse string begin_time end_time
MaintainWindowsEntity integer seq
MaintainWindowsEntity boolean default
MaintainWindowsEntity string begin
UpdatePasswordResponse string retry_times_left lock_time lock_time_left
ListAvailableZonesResponse string region_id regionId
ListAvailableZonesResponse array available_zones
AvailableZones string port resource_availability
NodesInfoResp string node_port
NodesInfoResp integer priority_weight
InstanceStatistic string used_cpu input_kbps
InstanceStatistic integer keys
ProductsV1 number price
ProductsV1 object details
ProductsV1 string engine_versions
DetailsV1 number capacity max_memory
DetailsV1 integer tenant_ip_count db_number
ErrorResponse string error_code error_msg error_ext_msg
ErrorV1 string code ext_message
TopologyInfo object bandwidth dbs dims
TopologyInfo string port
ClientInfo integer idle age
"""
"""Type, JSON type, properties."""


@pytest.mark.parametrize("row", LOAD_BEARING.split("\n")[1:-1])
def test_the_json_types_are_those_that_clients_decode(row: str) -> None:
    name, kind, *properties = row.split()
    for prop in properties:
        schema = SCHEMAS[name]["properties"][prop]
        target = ref(schema)
        assert (SCHEMAS[target] if target else schema)["type"] == kind, prop


SUCCESS = {
    200: """
        create_instance batch_delete_instances update_password reset_password
        update_instance_config restart_or_flush_instances update_ip_whitelist_async
        update_ssl_switch create_acl_account update_acl_account reset_acl_account_pass_word
        copy_instance v1_delete_backup_file restore_instance create_custom_template
        update_config_template delete_migration_task update_instance_bandwidth
        change_nodes_start_stop_status delete_offline_key_analysis_task v1_create_instance
        list_backup_records list_redislog create_vpc create_subnet
    """,
    204: """
        update_instance delete_single_instance resize_instance update_configurations
        v1_restart_or_flush_instances update_ip_whitelist batch_create_or_delete_tags
        update_acl_account_remark delete_backup_file update_slave_priority hang_up_clients
        create_redislog v1_update_instance v1_update_configurations v1_resize_instance
        v1_delete_single_instance delete_vpc delete_vpc_subnet delete_security_group
    """,
    201: """
        keystone_create_user_token_by_password
    """,
}


@pytest.mark.parametrize(
    ("operation_id", "status"), [(i, status) for status, ids in SUCCESS.items() for i in ids.split()]
)
def test_the_status_of_success_is_the_one_that_all_clients_take(operation_id: str, status: int) -> None:
    assert OPERATIONS[operation_id].success == status


@pytest.mark.parametrize("operation", [o for o in ALL if o.success == 200 and o.method != "GET"], ids=by_id)
def test_a_200_always_has_a_body_because_go_clients_fail_on_none(operation: Operation) -> None:
    assert RAW[operation.id]["responses"]["200"]["content"]


@pytest.mark.parametrize("version", ["3.0", "4.0", "5.0", "6.0", "7.0"])
def test_every_engine_version_may_be_asked_for(version: str) -> None:
    assert version in SCHEMAS["CreateInstanceBody"]["properties"]["engine_version"]["enum"]


def test_an_idle_task_is_sent_as_null() -> None:
    assert json.loads(msgspec.json.encode(types.ShowInstanceResponse(status="RUNNING"))) == {
        "status": "RUNNING",
        "task": None,
    }


def test_an_empty_page_keeps_its_list() -> None:
    assert msgspec.json.encode(types.ListInstancesResponse(instances=[])) == b'{"instances":[]}'


# --- coverage and the docs page ------------------------------------------------------------------


def test_coverage_counts_every_operation_once() -> None:
    rows = coverage(["create_instance"])
    assert sum(r.total for r in rows) == len(OPERATIONS)
    assert [o.id for r in rows for o in r.built] == ["create_instance"]
    assert f"1 of {len(OPERATIONS)} operations are built." in as_markdown(rows)


def test_coverage_refuses_an_id_that_the_contract_does_not_have() -> None:
    with pytest.raises(ValueError, match="no_such_operation"):
        coverage(["no_such_operation"])


def get(*paths: str) -> list[httpx.Response]:
    """The answers of an application that has nothing but the reference."""
    app = Starlette(routes=reference.routes(["create_instance"]))

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(ask())


def test_the_served_contract_marks_what_is_not_built() -> None:
    [answer] = get("/openapi.json")
    item = answer.json()["paths"]["/v2/{project_id}/instances"]
    assert reference.NOT_BUILT not in item["post"]["summary"]
    assert reference.NOT_BUILT in item["get"]["summary"]


def test_the_docs_page_loads_everything_from_this_server() -> None:
    [page] = get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert [a.status_code for a in get(*(f"/{asset}" for asset in assets))] == [200] * len(assets)
