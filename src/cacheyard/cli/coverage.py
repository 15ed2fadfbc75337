"""`cacheyard coverage`: how much of the contract is built, so that nobody has to try 501s out."""

from collections.abc import Sequence

from cacheyard.api.bindings import BINDINGS
from cacheyard.contract.coverage import Row, as_markdown, coverage


def page() -> str:
    """What docs/coverage.md holds; a test keeps it fresh."""
    return (
        "# Coverage\n\n"
        "What of the contract is built. `cacheyard coverage --markdown` prints this page.\n\n"
        f"{as_markdown(coverage(BINDINGS.keys()))}"
    )


def show(*, json: bool, markdown: bool) -> int:
    """Print a row a chapter, or all of it for programs or for the page."""
    rows = coverage(BINDINGS.keys())
    if markdown:
        print(page(), end="")
        return 0
    from cacheyard.cli import table

    if json:
        table.print_json(_told(rows))
        return 0
    out = table.console()
    told = [{"chapter": row.tag, "built": len(row.built), "in the contract": row.total} for row in rows]
    built, total = sum(len(row.built) for row in rows), sum(row.total for row in rows)
    told.append({"chapter": "all", "built": built, "in the contract": total})
    table.rows(out, told, only=("chapter", "built", "in the contract"))
    print("\nWhat is not built answers 501. `cacheyard coverage --markdown` names every operation.")
    return 0


def _told(rows: Sequence[Row]) -> dict[str, object]:
    return {
        "built": sum(len(row.built) for row in rows),
        "total": sum(row.total for row in rows),
        "chapters": [
            {
                "chapter": row.tag,
                "built": [operation.id for operation in row.built],
                "missing": [operation.id for operation in row.missing],
            }
            for row in rows
        ],
    }
