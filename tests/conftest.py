"""What tests of the running service share. Each worker has one service that its tests use in turn."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.caches import Cache, made
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


@pytest.fixture(scope="session")
def steady(service: Service) -> Iterator[Cache]:
    """A single-node instance for requests that must not change it."""
    with made(service, name="steady-1") as cache:
        yield cache


@pytest.fixture(params=["token", "signature"])
def sdk(request: pytest.FixtureRequest, service: Service) -> Any:
    """The official client, by each of the two ways to say who one is."""
    return service.sdk_token() if request.param == "token" else service.sdk()
