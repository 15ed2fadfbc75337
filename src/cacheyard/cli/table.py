"""Shows what came back to people: a list as a row an item, an object as its properties.

Called by every command that prints for people. A row takes one line: columns that do not fit are left
out, the least telling first, and the line below says so.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

FIRST = (
    *("id", "instance_id", "task_id", "job_id", "access_key", "name", "instance_name", "type", "status"),
    *("ip", "port", "cidr", "engine", "engine_version", "cache_mode", "spec_code", "max_memory", "capacity"),
    *("az_codes", "code", "key", "values", "user_name", "enabled", "created_at"),
)
"""The most telling columns, in this order; then those that come, plain values before nested ones."""

PIPED = 120  # characters, when no terminal says how many it has
WIDEST = 44  # characters of a cell in a list
GAP = 2  # characters between columns
_EMPTY: tuple[object, ...] = (None, "", [], {})


def console() -> Console:
    """For standard output: the terminal's width and colours, or neither."""
    if sys.stdout.isatty():
        return Console(highlight=False, soft_wrap=False)
    return plain_console(sys.stdout)


def plain_console(to: IO[str]) -> Console:
    """A console without colours, for what is no terminal."""
    width = max(shutil.get_terminal_size((PIPED, 24)).columns, 100)
    return Console(file=to, width=width, no_color=True, color_system=None, highlight=False)


def answer(out: Console, body: object, *, listing: bool = False) -> None:
    """An answer of the API: its one list, or all that it says. `listing`: a list is what was asked for."""
    inner = body
    while (
        isinstance(inner, dict) and len(inner) == 1 and isinstance(only := next(iter(inner.values())), dict)
    ):
        inner = only
    if isinstance(inner, list):
        rows(out, inner)
    elif isinstance(inner, dict):
        lists = [name for name, value in inner.items() if _is_rows(value) and (value or listing)]
        beside = {name: value for name, value in inner.items() if name not in lists and value not in _EMPTY}
        if len(lists) == 1 and len(beside) <= 4:
            rows(out, inner[lists[0]])
            if beside and inner[lists[0]]:
                out.print(_text(", ".join(f"{name} {_cell(value)}" for name, value in beside.items())))
        else:
            pairs(out, inner)
    elif inner is not None:
        out.print(_text(_cell(inner)))


def rows(
    out: Console,
    items: Sequence[object],
    *,
    only: Sequence[str] | None = None,
    first: Sequence[str] = FIRST,
) -> None:
    """A row an item. `only`: these columns and no others, whatever the width; `first`: the most telling."""
    if not items:
        out.print("Nothing.")
        return
    told = [item if isinstance(item, Mapping) else {"value": item} for item in items]
    names = list(only) if only is not None else _order(told, first)
    cells = {name: [_cell(item.get(name)) for item in told] for name in names}
    shown = names if only is not None else fitting(names, cells, out.width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for name in shown:
        table.add_column(_text(name), no_wrap=True, overflow="ellipsis", max_width=None if only else WIDEST)
    for number in range(len(told)):
        table.add_row(*(_text(cells[name][number]) for name in shown))
    _print(out, table)
    if (left := len(names) - len(shown)) > 0:
        out.print(_text(f"{left} more column{'s' if left > 1 else ''} with --json"), style="dim")


def pairs(out: Console, told: Mapping[str, object]) -> None:
    """Two columns; what is empty is left out."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name in _order([told]):
        table.add_row(_text(name), _text(_lines(told[name]), lines=True))
    if table.row_count:
        _print(out, table)
    else:
        out.print("Nothing.")


def folded(out: Console, told: Sequence[Mapping[str, str]]) -> None:
    """Rows without a heading whose last column may take several lines, for help and advice."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=False)
    names = list(told[0])
    for name in names:
        table.add_column(no_wrap=name != names[-1])
    for row in told:
        table.add_row(*(_text(row[name]) for name in names))
    _print(out, table)


def fitting(names: Sequence[str], cells: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """The columns that fit side by side, taken in order; the first one always."""
    shown: list[str] = []
    used = 0
    for name in names:
        wide = min(WIDEST, max(len(text) for text in (name, *cells[name])))
        if shown and used + GAP + wide > width:
            continue
        shown.append(name)
        used += wide + (GAP if used else 0)
    return shown


def _print(out: Console, table: Table) -> None:
    """Without the spaces that fill up the last column."""
    with out.capture() as drawn:
        out.print(table)
    for line in drawn.get().splitlines():
        print(line.rstrip(), file=out.file)


def _order(items: Sequence[Mapping[str, object]], first: Sequence[str] = FIRST) -> list[str]:
    """The columns that say anything, most telling first."""
    nested: dict[str, bool] = {}
    for item in items:
        for name, value in item.items():
            if value not in _EMPTY:
                nested[name] = nested.get(name, False) or isinstance(value, dict | list)
    there = [name for name in first if name in nested]
    others = [name for name in nested if name not in first]
    return there + sorted(others, key=lambda name: nested[name])


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _lines(value: object) -> str:
    """A value of an object: a list of objects takes a line for each."""
    if isinstance(value, list) and value and _is_rows(value):
        return "\n".join(_cell(item) for item in value)
    return _cell(value)


def _cell(value: object) -> str:
    """A value in one line."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Mapping():
            return " ".join(
                f"{name}={_nested(inner)}" for name, inner in value.items() if inner not in _EMPTY
            )
        case list() | tuple():
            return ", ".join(_nested(inner) for inner in value)
    return str(value)


def _nested(value: object) -> str:
    return f"({_cell(value)})" if isinstance(value, Mapping | list | tuple) else _cell(value)


def _text(value: str, *, lines: bool = False) -> Text:
    """Nothing in a value is markup, and nothing in it moves the cursor."""
    kept = "\n" if lines else ""
    return Text("".join(c if c.isprintable() or c in kept else "\N{MIDDLE DOT}" for c in value))


def print_json(value: Any) -> None:
    """Indented JSON on standard output, for programs and for people who want all of it."""
    import msgspec

    encoded = value if isinstance(value, bytes) else msgspec.json.encode(value)
    print(msgspec.json.format(encoded, indent=2).decode())
