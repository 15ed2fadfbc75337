"""From result rows to the domain's structs. Called by the query modules of `store` alone."""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from sqlalchemy import CursorResult

S = TypeVar("S", bound=msgspec.Struct)


def all_of(kind: type[S], result: CursorResult[Any]) -> list[S]:
    """Each row as a `kind`, whose fields are named like the columns."""
    columns: Iterable[str] = result.keys()
    names = [str(name) for name in columns]  # SQLAlchemy's own str subclass is none to msgspec
    return msgspec.convert([dict(zip(names, row, strict=True)) for row in result], list[kind])  # type: ignore[valid-type]


def one_of(kind: type[S], result: CursorResult[Any]) -> S | None:
    """The first row as a `kind`; None when there is none."""
    found = all_of(kind, result)
    return found[0] if found else None
