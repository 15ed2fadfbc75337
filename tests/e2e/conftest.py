"""What the end-to-end tests share."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.caches import Cache, made
from support.service import Service


@pytest.fixture(params=["token", "signature"])
def sdk(request: pytest.FixtureRequest, service: Service) -> Any:
    """The official client, by each of the two ways to say who one is."""
    return service.sdk_token() if request.param == "token" else service.sdk()


@pytest.fixture(scope="session")
def steady(service: Service) -> Iterator[Cache]:
    """A single-node instance for requests that must not change it."""
    with made(service, name="steady-1") as cache:
        yield cache
