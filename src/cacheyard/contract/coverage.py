"""How much of the contract is built. Called by `cacheyard coverage`, also for docs/coverage.md."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .model import Operation
from .operations import OPERATIONS


@dataclass(frozen=True, slots=True)
class Row:
    """The operations of one tag, in the order of the contract."""

    tag: str
    built: tuple[Operation, ...]
    missing: tuple[Operation, ...]

    @property
    def total(self) -> int:
        """How many operations the contract has under this tag."""
        return len(self.built) + len(self.missing)


def coverage(built: Collection[str]) -> list[Row]:
    """One row per tag. `built` has operation ids; an id that the contract does not know is an error."""
    if unknown := set(built) - OPERATIONS.keys():
        raise ValueError(f"not in the contract: {', '.join(sorted(unknown))}")
    tags: dict[str, list[Operation]] = {}
    for operation in OPERATIONS.values():
        tags.setdefault(operation.tag, []).append(operation)
    return [
        Row(
            tag=tag,
            built=tuple(o for o in operations if o.id in built),
            missing=tuple(o for o in operations if o.id not in built),
        )
        for tag, operations in tags.items()
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """A table of counts, then every operation with a mark if it is built."""
    built, total = sum(len(r.built) for r in rows), sum(r.total for r in rows)
    lines = [
        f"{built} of {total} operations are built. The others answer 501.",
        "",
        "| chapter | built | in the contract |",
        "|---|---:|---:|",
        *(f"| {r.tag} | {len(r.built)} | {r.total} |" for r in rows),
        f"| **all** | **{built}** | **{total}** |",
    ]
    for row in rows:
        lines += ["", f"## {row.tag}", "", "| built | operation | | |", "|---|---|---|---|"]
        operations = {o.id: o for o in (*row.built, *row.missing)}
        done = {o.id for o in row.built}
        lines += [
            f"| {'yes' if id_ in done else ''} | {id_} | `{o.method} {o.path}` | {o.summary} |"
            for id_, o in operations.items()
        ]
    return "\n".join(lines) + "\n"
