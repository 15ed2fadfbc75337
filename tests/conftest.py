"""What tests of the running service share. Each worker has one service that its tests use in turn."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.service import Service


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """A running service that many tests share: they leave its settings alone and delete what they made."""
    with Service() as running:
        yield running


@pytest.fixture
def fresh_service() -> Iterator[Callable[..., Service]]:
    """Makes services for one test alone; arguments are environment variables."""
    with ExitStack() as running:
        yield lambda **environment: running.enter_context(Service(**environment))
