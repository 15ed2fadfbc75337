"""One service for all tests of a module: each makes instances of its own, and none may leave anything."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos.service import Service, delete_all, service_in


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The module's service."""
    with service_in(Path(tmp_path_factory.mktemp("yard")), CACHEYARD_OVERCOMMIT="20") as service:
        yield service


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """A service that serves and has no instance, before the test and after."""
    shared.mend()
    yield shared
    shared.mend()
    delete_all(shared)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[object], None]:
    """Print, whether the test fails or not."""

    def print_(what: object) -> None:
        with capsys.disabled():
            print(f"\n  {what}", end="")

    return print_
