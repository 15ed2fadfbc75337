"""docs/coverage.md says what is built, as it is now."""

from pathlib import Path

from cacheyard.cli.coverage import page

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run `cacheyard coverage --markdown > docs/coverage.md`"
    )
