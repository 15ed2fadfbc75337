"""Tables for people: a row a line, the most telling columns first, nothing lost in an object."""

import io

from cacheyard.cli import table

ID = "d2a1f0b6-0d8e-4d1a-8d4e-0c6a1c1b2c3d"


def shown(body: object, *, listing: bool = False) -> list[str]:
    out = io.StringIO()
    table.answer(table.plain_console(out), body, listing=listing)
    return out.getvalue().splitlines()


def test_a_list_is_a_row_an_item_with_id_and_name_first() -> None:
    lines = shown({"instances": [{"port": 6379, "name": "a", "instance_id": ID}], "instance_num": 1})
    assert lines[0].split() == ["instance_id", "name", "port"]
    assert lines[1].split() == [ID, "a", "6379"]
    assert lines[2] == "instance_num 1"


def test_no_line_is_longer_than_the_terminal() -> None:
    item = {f"property_{n}": "x" * 30 for n in range(20)} | {"name": "n" * 300}
    lines = shown({"items": [item] * 3})
    assert len(lines) == 5
    assert all(len(line) <= 120 for line in lines)
    assert lines[-1].endswith("more columns with --json")


def test_an_object_is_shown_whole_but_for_what_is_empty() -> None:
    long = "y" * 300
    lines = shown({"id": ID, "text": long, "none": None, "tags": [], "flag": False, "deep": {"a": {"b": 1}}})
    text = "\n".join(lines)
    assert sum(line.count("y") for line in lines) == 300
    assert "none" not in text
    assert "tags" not in text
    assert "false" in text
    assert "a=(b=1)" in text


def test_wrappers_are_taken_off() -> None:
    assert shown({"quotas": {"resources": [{"type": "ram", "quota": 1}]}})[1].split() == ["ram", "1"]
    assert shown({"vpc": {"name": "a", "id": ID}})[0].split() == ["id", ID]


def test_an_empty_list_says_so_when_a_list_was_asked_for() -> None:
    assert shown({"instances": [], "instance_num": 0}, listing=True) == ["Nothing."]
    assert shown({"instances": [], "status": "OK"}) == ["status  OK"]


def test_values_are_neither_markup_nor_escape_codes() -> None:
    lines = shown({"vpcs": [{"name": "[red]x[/red]\x1b[2J\n"}]})
    assert lines[1] == "[red]x[/red]\N{MIDDLE DOT}[2J\N{MIDDLE DOT}"
