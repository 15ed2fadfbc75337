"""Parsing forgives what clients write, names what it refuses, and never breaks."""

import json
import random
from typing import Any

import msgspec
import pytest

from cacheyard.api.parse import parse_body, parse_parameters
from cacheyard.contract import types
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.errors import EmptyBody, Invalid, NotJson, Refused

CREATE = OPERATIONS["create_instance"]
UPDATE = OPERATIONS["update_instance"]
LIST = OPERATIONS["list_instances"]

SMALLEST = {
    "name": "dcs-test",
    "engine": "Redis",
    "engine_version": "7.0",
    "capacity": 1,
    "spec_code": "redis.single.xu1.large.1",
    "az_codes": ["az1"],
    "vpc_id": "vpc",
    "subnet_id": "subnet",
}


def create(**more: object) -> types.CreateInstanceBody:
    body = parse_body(CREATE, json.dumps({**SMALLEST, **more}).encode())
    assert isinstance(body, types.CreateInstanceBody)
    return body


def refused(operation_id: str, body: object) -> Invalid:
    with pytest.raises(Invalid) as caught:
        parse_body(OPERATIONS[operation_id], json.dumps(body).encode())
    return caught.value


# --- what clients write --------------------------------------------------------------------------


def test_a_body_becomes_the_type_of_the_contract() -> None:
    body = create(tags=[{"key": "owner", "value": "me"}])
    assert body.capacity == 1.0
    assert body.tags == [types.ResourceTag(key="owner", value="me")]
    assert body.description is None


@pytest.mark.parametrize(
    ("sent", "meant"),
    [("6380", 6380), (6380.0, 6380), ("6380.0", 6380), (" 6380 ", 6380), ("", None), (None, None)],
)
def test_an_integer_may_come_as_a_string_or_a_whole_float(sent: object, meant: int | None) -> None:
    assert create(port=sent).port == meant


@pytest.mark.parametrize(
    ("sent", "meant"), [("0.125", 0.125), (0.125, 0.125), (".5", 0.5), ("4", 4.0), (4, 4.0)]
)
def test_a_number_may_come_as_a_string(sent: object, meant: float) -> None:
    assert create(capacity=sent).capacity == meant


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (True, True),
        ("true", True),
        ("True", True),
        ("false", False),
        (False, False),
        ("", None),
        (None, None),
    ],
)
def test_a_boolean_may_come_as_a_string(sent: object, meant: bool | None) -> None:
    assert create(no_password_access=sent).no_password_access is meant


@pytest.mark.parametrize(
    ("sent", "meant"), [(0, "0"), (1.0, "1"), (0.125, "0.125"), (True, "true"), ("0", "0")]
)
def test_a_string_may_come_as_a_number_or_a_boolean(sent: object, meant: str) -> None:
    assert create(enterprise_project_id=sent).enterprise_project_id == meant


def test_the_noise_of_go_clients_sets_nothing() -> None:
    body = create(
        security_group_id="",
        private_ip="",
        template_id="",
        bss_param={"charging_mode": ""},
        instance_backup_policy={"backup_type": "", "periodical_backup_plan": None},
        rename_commands={},
        tags=None,
        instance_num=1,
    )
    assert body.security_group_id is None
    assert body.private_ip is None
    assert body.bss_param == types.BssParam()
    assert body.instance_backup_policy == types.BackupPolicy()
    assert body.rename_commands == {}
    assert body.tags is None


def test_an_empty_description_is_kept_because_it_clears_the_old_one() -> None:
    body = parse_body(UPDATE, b'{"description": "", "security_group_id": ""}')
    assert isinstance(body, types.ModifyInstanceBody)
    assert body.description == ""
    assert body.security_group_id is None


def test_an_empty_parameter_value_is_kept() -> None:
    raw = b'{"redis_config": [{"param_id": 13, "param_name": "notify-keyspace-events", "param_value": ""}]}'
    body = parse_body(OPERATIONS["update_configurations"], raw)
    assert isinstance(body, types.ModifyRedisConfigBody)
    assert body.redis_config == [
        types.RedisConfig(param_id="13", param_name="notify-keyspace-events", param_value="")
    ]


def test_an_empty_change_type_of_a_resize_sets_nothing() -> None:
    raw = b'{"change_type":"","new_capacity":2,"spec_code":"x","bss_param":{},"execute_immediately":null}'
    body = parse_body(OPERATIONS["resize_instance"], raw)
    assert isinstance(body, types.ResizeInstanceBody)
    assert body.change_type is None
    assert body.bss_param == types.BssParamEntity()


def test_a_whitelist_may_be_turned_off_without_a_list() -> None:
    body = parse_body(OPERATIONS["update_ip_whitelist"], b'{"enable_whitelist": false}')
    assert isinstance(body, types.ModifyIpWhitelistBody)
    assert body.whitelist is None


def test_diagnosis_times_may_be_numbers() -> None:
    raw = b'{"begin_time": 1592379522503, "end_time": "1592379522503"}'
    body = parse_body(OPERATIONS["create_diagnosis_task"], raw)
    assert body == types.CreateDiagnosisTaskBody(begin_time="1592379522503", end_time="1592379522503")


def test_template_values_may_be_numbers() -> None:
    raw = b'{"template_id": "6", "name": "mine", "type": "sys", "params": {"timeout": 100}}'
    body = parse_body(OPERATIONS["create_custom_template"], raw)
    assert isinstance(body, types.CreateCustomTemplateBody)
    assert body.params == {"timeout": "100"}


def test_unknown_properties_are_ignored() -> None:
    assert create(no_such_property={"deep": [1, 2, 3]}) == create()


def test_a_get_ignores_a_body() -> None:
    assert parse_body(LIST, b"not json at all") is None


def test_a_delete_may_carry_a_body() -> None:
    body = parse_body(OPERATIONS["batch_delete_instances"], b'{"instances": ["a", null]}')
    assert body == types.BatchDeleteBody(instances=["a"])


def test_an_optional_body_may_be_missing() -> None:
    assert parse_body(OPERATIONS["copy_instance"], b"") == types.BackupInstanceBody()
    assert parse_body(OPERATIONS["copy_instance"], b" \n") == types.BackupInstanceBody()
    assert parse_body(OPERATIONS["copy_instance"], b"null") == types.BackupInstanceBody()


def test_version_1_takes_what_the_go_client_sends() -> None:
    raw = {
        "name": "dcs-test",
        "engine": "Redis",
        "engine_version": "5.0",
        "spec_code": "redis.single.xu1.large.1",
        "capacity": 1,
        "vpc_id": "vpc",
        "subnet_id": "subnet",
        "available_zones": ["id of az1"],
        "private_ips": ["192.168.0.9"],
        "no_password_access": "",
    }
    body = parse_body(OPERATIONS["v1_create_instance"], json.dumps(raw).encode())
    assert isinstance(body, types.CreateInstanceBodyV1)
    assert body.no_password_access is None
    assert body.product_id is None


# --- parameters ----------------------------------------------------------------------------------


def test_parameters_get_their_types_and_defaults() -> None:
    query = [("offset", "20"), ("name", "a"), ("no_such_parameter", "1")]
    assert parse_parameters(LIST, {"project_id": "p1"}, query) == {
        "project_id": "p1",
        "offset": 20,
        "limit": 10,
        "name": "a",
        "name_equal": "false",
    }


def test_an_empty_parameter_sets_nothing() -> None:
    values = parse_parameters(LIST, {"project_id": "p1"}, [("limit", ""), ("status", ""), ("offset", "")])
    assert values["limit"] == 10
    assert values["offset"] == 0
    assert "status" not in values


def test_the_first_value_of_a_repeated_parameter_counts() -> None:
    query = [("limit", ""), ("limit", "5"), ("limit", "many")]
    assert parse_parameters(LIST, {"project_id": "p1"}, query)["limit"] == 5


@pytest.mark.parametrize("text", ["0", "1001", "-1", "ten", "1.5", "1" * 30, "0x10", "\u0661", "1\n2"])
def test_a_bad_limit_is_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid, match="limit") as caught:
        parse_parameters(LIST, {"project_id": "p1"}, [("limit", text)])
    assert caught.value.code == "DCS.4800"


def test_an_ill_formed_project_id_has_its_own_code() -> None:
    with pytest.raises(Invalid, match="project_id") as caught:
        parse_parameters(LIST, {"project_id": "p 1"}, [])
    assert caught.value.code == "DCS.4002"


def test_an_ill_formed_instance_id_is_left_to_the_service() -> None:
    path = {"project_id": "p1", "instance_id": "no such thing"}
    assert parse_parameters(OPERATIONS["show_instance"], path, [])["instance_id"] == "no such thing"


def test_a_missing_required_parameter_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match="operation"):
        parse_parameters(
            OPERATIONS["list_instance_operations"],
            {"project_id": "p1", "instance_id": "i"},
            [("operation", "")],
        )


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "parameter"),
    [
        ({"name": "abc"}, "DCS.4010", "name"),
        ({"name": None}, "DCS.4010", "name"),
        ({"name": "tab\there"}, "DCS.4010", "name"),
        ({"name": "line-break\n"}, "DCS.4010", "name"),
        ({"name": "x" * 65}, "DCS.4010", "name"),
        ({"description": "x" * 1025}, "DCS.4011", "description"),
        ({"engine": "redis"}, "DCS.4006", "engine"),
        ({"engine_version": "8"}, "DCS.4008", "engine_version"),
        ({"capacity": 0}, "DCS.4012", "capacity"),
        ({"capacity": "much"}, "DCS.4012", "capacity"),
        ({"capacity": "nan"}, "DCS.4012", "capacity"),
        ({"capacity": True}, "DCS.4012", "capacity"),
        ({"capacity": 10**400}, "DCS.4012", "capacity"),
        ({"vpc_id": ""}, "DCS.4013", "vpc_id"),
        ({"subnet_id": None}, "DCS.4016", "subnet_id"),
        ({"spec_code": ""}, "DCS.4927", "spec_code"),
        ({"az_codes": "az1"}, "DCS.4042", "az_codes"),
        ({"az_codes": [["az1"]]}, "DCS.4042", "az_codes[0]"),
        ({"password": "short"}, "DCS.4019", "password"),
        ({"maintain_begin": "25:00:00"}, "DCS.4106", "maintain_begin"),
        ({"no_password_access": "maybe"}, "DCS.4843", "no_password_access"),
        ({"access_user": "1st"}, "DCS.4844", "access_user"),
        ({"port": 65536}, "DCS.4800", "port"),
        ({"port": True}, "DCS.4800", "port"),
        ({"port": 2**40}, "DCS.4800", "port"),
        ({"tags": [{"key": "a"}, {"value": "b"}]}, "DCS.4800", "tags[1].key"),
        ({"tags": {"key": "a"}}, "DCS.4800", "tags"),
        ({"tags": [{"key": "k"}] * 21}, "DCS.4800", "tags"),
        ({"rename_commands": {"keys": "a b"}}, "DCS.4800", "rename_commands.keys"),
        ({"rename_commands": {"keys\n": "a"}}, "DCS.4800", "rename_commands"),
        ({"instance_backup_policy": {"save_days": 8}}, "DCS.4072", "instance_backup_policy.save_days"),
        ({"instance_backup_policy": {"backup_type": "no"}}, "DCS.4073", "instance_backup_policy.backup_type"),
        ({"instance_backup_policy": []}, "DCS.4800", "instance_backup_policy"),
    ],
)
def test_a_refusal_names_the_parameter_and_has_the_documented_code(
    change: dict[str, object], code: str, parameter: str
) -> None:
    raw = json.dumps({**SMALLEST, **change}).encode()
    with pytest.raises(Invalid) as caught:
        parse_body(CREATE, raw)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"Invalid {parameter} in the request: ")


def test_the_codes_of_a_backup_plan_are_those_of_its_parts() -> None:
    for part, value, code in (
        ("period_type", "daily", "DCS.4074"),
        ("backup_at", [8], "DCS.4075"),
        ("begin_at", "0-1", "DCS.4076"),
    ):
        plan = {"period_type": "weekly", "backup_at": [1], "begin_at": "00:00-01:00", part: value}
        refusal = refused("update_instance", {"instance_backup_policy": {"periodical_backup_plan": plan}})
        assert refusal.code == code
        assert f"instance_backup_policy.periodical_backup_plan.{part}" in str(refusal)


def test_a_batch_without_instances_has_its_own_code() -> None:
    assert refused("restart_or_flush_instances", {"action": "restart"}).code == "DCS.4065"
    assert refused("restart_or_flush_instances", {"instances": ["a"], "action": "explode"}).code == "DCS.4064"


def test_a_refusal_never_repeats_a_password() -> None:
    secret = "Pa\x00ssword-1"
    assert secret not in str(refused("create_instance", {**SMALLEST, "password": secret}))
    assert "hunter2" not in str(refused("create_instance", {**SMALLEST, "password": "hunter2"}))


@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_nul_is_refused_in_every_string(text: str) -> None:
    assert refused("create_instance", {**SMALLEST, "description": text}).code == "DCS.4011"
    with pytest.raises(Invalid, match="name"):
        parse_parameters(LIST, {"project_id": "p1"}, [("name", text)])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(NotJson):
        parse_body(UPDATE, b'{"description": "\\ud800"}')
    with pytest.raises(Invalid, match="name"):
        parse_parameters(LIST, {"project_id": "p1"}, [("name", "\ud800")])


@pytest.mark.parametrize("raw", [b"", b"  \r\n", b"null"])
def test_a_missing_body_is_refused_where_one_is_needed(raw: bytes) -> None:
    with pytest.raises(EmptyBody):
        parse_body(CREATE, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'"text"',
        b"1",
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b'{"capacity": NaN}',
        b'{"capacity": Infinity}',
        b'{"capacity": 1e999}',
        b'{"capacity": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": 1} trailing',
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
def test_what_is_not_one_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(NotJson):
        parse_body(CREATE, raw)


def test_the_last_of_two_equal_keys_counts() -> None:
    assert parse_body(UPDATE, b'{"port": 1, "port": 2}') == types.ModifyInstanceBody(port=2)


# --- any bytes at all ----------------------------------------------------------------------------

ODD: list[object] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**18, 0.5, -0.0, 1e308, 5e-324,
    "", " ", "0", "-1", "1e5", "true", "\x00", "\n", "\u2028", "\U0001f600", "x" * 5000, "{", "{name}",
    [], {}, [[]], [{}], {"": ""}, {"\x00": 1}, [None], {"key": None}, [[[[[[1]]]]]],
]  # fmt: skip


def mutated(value: object, dice: random.Random) -> object:
    """The value with some parts replaced, doubled or dropped."""
    if dice.random() < 0.08:
        return dice.choice(ODD)
    if isinstance(value, dict):
        return {
            (k if dice.random() > 0.02 else str(dice.choice(ODD))): mutated(v, dice)
            for k, v in value.items()
            if dice.random() > 0.03
        }
    if isinstance(value, list):
        items = [mutated(v, dice) for v in value]
        return items * dice.choice([1, 1, 1, 2, 30])
    return value


def sample(struct: type[msgspec.Struct]) -> dict[str, object]:
    """An object with a plausible value for every property of a type."""
    return {field.encode_name: plausible(field.type) for field in msgspec.structs.fields(struct)}


def plausible(kind: Any) -> object:
    members: tuple[Any, ...] = getattr(kind, "__args__", ())
    origin = getattr(kind, "__origin__", None)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return sample(kind)
    if origin is list:
        return [plausible(members[0])]
    if origin is dict:
        return {"keys": "keys001"}
    if members:
        return plausible(members[0])
    return {str: "text", int: 1, float: 1.0, bool: True}.get(kind)


def outcome(operation_id: str, raw: bytes) -> msgspec.Struct | Refused | None:
    """What became of a body. A refusal is fine; any other exception fails the test."""
    try:
        return parse_body(OPERATIONS[operation_id], raw)
    except Refused as refusal:
        return refusal


def check_outcome(operation_id: str, raw: bytes) -> None:
    result = outcome(operation_id, raw)
    if isinstance(result, Refused):
        assert result.code.startswith("DCS.")
    elif result is not None:
        msgspec.json.encode(result)


def test_no_mutation_of_a_body_breaks_the_parser() -> None:
    dice = random.Random(20260101)
    with_body = [o for o in OPERATIONS.values() if o.body]
    for operation in with_body:
        whole = sample(getattr(types, operation.body or ""))
        for _ in range(60):
            check_outcome(operation.id, json.dumps(mutated(whole, dice)).encode())


def test_no_bytes_break_the_parser() -> None:
    dice = random.Random(20260102)
    whole = json.dumps(sample(types.CreateInstanceBody)).encode()
    for _ in range(2000):
        raw = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        check_outcome("create_instance", bytes(raw))
        check_outcome("create_instance", dice.randbytes(dice.randint(0, 64)))


def refusal_of(operation: Operation, path: dict[str, str], query: list[tuple[str, str]]) -> Refused | None:
    try:
        parse_parameters(operation, path, query)
    except Refused as refusal:
        return refusal
    return None


def test_no_query_breaks_the_parser() -> None:
    dice = random.Random(20260103)
    texts = [str(o) for o in ODD] + ["\ud800", "\udcff", "%00", "\u0663", "1_000", "+5", "1e400"]
    for operation in OPERATIONS.values():
        for _ in range(20):
            path = {p.name: dice.choice(texts) for p in operation.parameters if p.where == "path"}
            query = [(p.name, dice.choice(texts)) for p in operation.parameters if p.where == "query"]
            refusal = refusal_of(operation, path, query)
            assert refusal is None or any(p.name in str(refusal) for p in operation.parameters)
