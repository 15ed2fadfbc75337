"""What modules share that need a service with more room than the machine has."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.service import Service


@pytest.fixture(scope="module")
def yard() -> Iterator[Service]:
    """A service that promises more memory than the machine has: clusters begin at 4 GB."""
    with Service(CACHEYARD_OVERCOMMIT="100") as running:
        yield running


@pytest.fixture(scope="module")
def dcs_client(yard: Service) -> Any:
    """The official client of that service."""
    return yard.sdk_token()
