"""What an operation of the contract is, to code: the shape of the rows of `operations.py`.

Written by hand; `generate` fills it, `api` (routes, permissions, parsing), `coverage` and the CLI read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["v2", "v1", "iam", "vpc", "ecs"]
"""Which API an operation belongs to; it decides the shape of an error."""

Where = Literal["path", "query", "header"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter outside the body."""

    name: str
    where: Where
    required: bool
    schema: Mapping[str, object]
    """Its JSON schema. Never changed after import."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the contract."""

    id: str
    section: str
    """Chapter of the public reference, or `new`, `around`."""
    method: str
    """Upper case."""
    path: str
    tag: str
    summary: str
    family: Family
    success: int
    """The one status of success that every known client accepts."""
    action: str | None
    """The permission it needs; None: whoever has a token may call it."""
    public: bool
    """Whether it needs no token."""
    project_scoped: bool
    """Whether the path names the project to work in, which must be the caller's."""
    parameters: tuple[Parameter, ...]
    body: str | None
    """Name of the request's schema, which is also the name of its type in `types`."""
    body_required: bool
    answer: str | None
    """Name of the type in `types` that success answers; None: no JSON body."""
    deprecated: bool
