"""Finds the operation of a request: literal path segments win over parameters, whatever the order.

Clients write `/instance/{id}/…` and `/instances/{id}/…` for the same thing, one this way, one the other. The
contract has one of them; the router takes both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote

from cacheyard.contract.model import Operation
from cacheyard.errors import MethodNotAllowed, NotFound

_SPELLINGS = {
    "instance": "instances",
    "source-ip-transparent-transmission": "client-ip-transparent-transmission",  # in an example of 5.2.8
}
"""Literal segments that mean another one."""


@dataclass
class _Branch:
    literal: dict[str, "_Branch"] = field(default_factory=dict)
    any: "_Branch | None" = None
    operations: dict[str, Operation] = field(default_factory=dict)


class Router:
    """A tree of path segments."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Branch()
        for operation in operations:
            branch = self._root
            for segment in operation.path.strip("/").split("/"):
                if segment.startswith("{"):
                    branch.any = branch = branch.any or _Branch()
                else:
                    branch = branch.literal.setdefault(_SPELLINGS.get(segment, segment), _Branch())
            there = branch.operations.setdefault(operation.method, operation)
            if there is not operation:
                raise ValueError(f"{operation.id} and {there.id} have the same path")

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        """The operation and its path parameters. Raises `NotFound` or `MethodNotAllowed`.

        `path` is percent-encoded; a slash at its end makes no difference.
        """
        segments = [unquote(segment) for segment in path.strip("/").split("/")]
        found = [branch.operations for branch in _leaves(self._root, segments) if branch.operations]
        for operations in found:
            if method in operations:
                operation = operations[method]
                named = zip(operation.path.strip("/").split("/"), segments, strict=True)
                return operation, {name[1:-1]: value for name, value in named if name.startswith("{")}
        raise MethodNotAllowed if found else NotFound


def _leaves(branch: _Branch, segments: list[str]) -> Iterable[_Branch]:
    if not segments:
        yield branch
        return
    first, *rest = segments
    literal = _SPELLINGS.get(first, first)
    if literal in branch.literal:
        yield from _leaves(branch.literal[literal], rest)
    if branch.any is not None and first:
        yield from _leaves(branch.any, rest)
