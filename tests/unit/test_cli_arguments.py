"""The words after `cacheyard call <operation>` are read as the contract means them."""

from pathlib import Path

import pytest

from cacheyard.cli.arguments import Asked, Wrong, find, options, read
from cacheyard.contract.document import load
from cacheyard.contract.operations import OPERATIONS

CONTRACT = load()


def asked(operation: str, *words: str) -> Asked:
    wanted = find(operation)
    return read(wanted, options(wanted, CONTRACT), words)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda o: o.id)
def test_every_operation_has_options_that_do_not_hide_the_commands_own(operation: object) -> None:
    names = options(operation, CONTRACT)  # type: ignore[arg-type]
    assert not {"data", "json", "help", "body"} & names.keys()


@pytest.mark.parametrize("word", ["list_instances", "list-instances", "ListInstances", "listinstances"])
def test_an_operation_is_found_however_it_is_spelled(word: str) -> None:
    assert find(word).id == "list_instances"


def test_an_unknown_operation_suggests_others() -> None:
    with pytest.raises(Wrong, match="list_instances"):
        find("lst_instances")


def test_values_go_where_the_contract_has_them() -> None:
    got = asked("resize_instance", "--instance-id", "i1", "--spec_code=redis.x", "--new-capacity=0.5")
    assert got.path == {"instance_id": "i1"}
    assert got.body == {"spec_code": "redis.x", "new_capacity": 0.5}
    assert asked("list_instances", "--limit=5", "--name=a b").query == [("limit", "5"), ("name", "a b")]


def test_a_name_in_path_and_body_is_set_in_both() -> None:
    got = asked("update_ip_whitelist", "--instance_id=i1", "--enable_whitelist")
    assert got.path == {"instance_id": "i1"}
    assert got.body == {"instance_id": "i1", "enable_whitelist": True}


CREATE = [
    "--name=a",
    "--engine=Redis",
    "--capacity=1",
    "--spec_code=x",
    "--az_codes=a",
    "--vpc_id=v",
    "--subnet_id=s",
]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--az_codes=b"], "az_codes", ["a", "b"]),
        (["--az_codes", "b, c"], "az_codes", ["a", "b", "c"]),
        (['--az_codes=["b,c"]'], "az_codes", ["a", "b,c"]),
        (['--tags=[{"key":"k"}]'], "tags", [{"key": "k"}]),
        (['--rename_commands={"keys":"k"}'], "rename_commands", {"keys": "k"}),
        (["--no-password-access"], "no_password_access", True),
        (["--no-password-access", "false"], "no_password_access", False),
        (["--no_password_access=true", "--port=1"], "no_password_access", True),
        (["--port=6380"], "port", 6380),
        (["--password=--x=y"], "password", "--x=y"),
        (["--description="], "description", ""),
    ],
)
def test_values_have_the_contracts_kind(words: list[str], name: str, value: object) -> None:
    assert (asked("create_instance", *CREATE, *words).body or {})[name] == value


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["name"], "what is 'name'"),
        (["--"], "what is"),
        (["--nmae=x"], "did you mean --name"),
        (["--port=x"], "a whole number"),
        (["--port=1.5"], "a whole number"),
        (["--port"], "needs a value"),
        (["--name", "--port=1"], "needs a value"),
        (["--instance_num=NaN"], "a whole number"),
        (["--no_password_access=yes"], "true or false"),
        (["--tags=a,b"], "JSON array"),
        (["--tags=[}"], "not JSON"),
        (["--rename_commands=[]"], "JSON object"),
        (["--body=[]"], "JSON object"),
        (["--body=@/no/such/file"], "No such file"),
        (["--vpc_id=w"], "given twice"),
    ],
)
def test_wrong_words_are_named(words: list[str], why: str) -> None:
    with pytest.raises(Wrong, match=f"(?i){why}"):
        asked("create_instance", *CREATE, *words)


@pytest.mark.parametrize("number", ["nan", "inf", "1e999"])
def test_a_number_is_a_finite_one(number: str) -> None:
    with pytest.raises(Wrong, match="a number"):
        asked("resize_instance", "--instance_id=i", "--spec_code=x", f"--new_capacity={number}")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Wrong, match="--engine, --capacity"):
        asked("create_instance", "--name=a")
    with pytest.raises(Wrong, match="--instance_id"):
        asked("show_instance")


def test_a_whole_body_is_sent_as_it_is_and_options_add_to_it(tmp_path: Path) -> None:
    assert asked("create_instance", "--body={}").body == {}
    file = tmp_path / "body.json"
    file.write_text('{"name":"a","port":1}')
    assert asked("create_instance", f"--body=@{file}", "--port=2").body == {"name": "a", "port": 2}


def test_the_commands_own_options_stay_its_own() -> None:
    got = asked("list_instances", "--data", "/d", "--json")
    assert (got.data, got.json, got.help, got.query) == ("/d", True, False, [])
    assert asked("show_instance", "-h").help
