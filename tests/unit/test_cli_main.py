"""A plainly written `up` is read without the large parser, and as that one would read it."""

import inspect

import pytest

from cacheyard.cli import commands
from cacheyard.cli.main import UP, plain


def test_the_quick_way_knows_the_options_of_up() -> None:
    assert list(inspect.signature(commands.up).parameters) == list(UP)


def test_plain_options_are_read() -> None:
    words = ["--data", "/d", "--port=0", "--json", "--detach", "--host", "::1"]
    expected = {"data": "/d", "port": 0, "json": True, "detach": True, "host": "::1"}
    assert plain(words) == expected
    assert plain([]) == {}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["-h"],
        ["--prot", "1"],
        ["--port"],
        ["--port", "x"],
        ["--port", "--json"],
        ["--json=true"],
        ["--data", "a", "--data", "b"],
        ["x"],
    ],
)
def test_anything_else_is_left_to_the_parser(words: list[str]) -> None:
    assert plain(words) is None


@pytest.mark.parametrize("words", [["frob"], ["up", "--prot", "1"], ["user", "add"], ["down", "--data"]])
def test_what_cannot_be_understood_is_one_line_and_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
