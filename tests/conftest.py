"""What tests of the running service share. Each worker has one service that its tests use in turn."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import structlog
from support.caches import Cache, made
from support.service import Service


@pytest.fixture(autouse=True)
def logs_go_nowhere_special() -> Iterator[None]:
    """A test that runs a command in this process leaves no logger that writes to its captured output."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """A running service that many tests share: they leave its settings alone and delete what they made."""
    with Service() as running:
        before = belongings(running)
        yield running
        left = belongings(running) - before
        assert not left, f"a test left these to the others of its worker: {left}"


def belongings(service: Service) -> set[str]:
    """What the project has that tests make."""
    found = set()
    for path, name in (
        ("/v2/{p}/instances?include_failure=true&limit=1000", "instances"),
        ("/v2/{p}/config-templates?type=user&limit=1000", "templates"),
        ("/v1/{p}/vpcs", "vpcs"),
        ("/v1/{p}/subnets", "subnets"),
        ("/v1/{p}/security-groups", "security_groups"),
    ):
        for each in service.http("GET", path).json()[name]:
            title = each.get("name") or each.get("template_name")
            found.add(f"{name} {title} {each.get('id') or each.get('instance_id') or each['template_id']}")
    return found


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
