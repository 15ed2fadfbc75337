"""Whatever is sent, be it as the contract allows or not: no crash, and no answer that the contract has not.

Half of what is sent has real ids and parts of bodies that are right, so that it gets past the door.
`CACHEYARD_SOAK=1` sends 200 requests an operation instead of 20; `CACHEYARD_SEED` chooses others.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from support.answers import check_answer
from support.caches import PASSWORD, SINGLE, Cache, body_for
from support.service import Service
from support.waiting import until

from cacheyard.api.bindings import BINDINGS
from cacheyard.contract.document import load
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS

CASES = 200 if os.environ.get("CACHEYARD_SOAK") else 20  # requests an operation
SEED = int(os.environ.get("CACHEYARD_SEED", "20260131"))
INSTANCES = 4  # of which one is for the requests; others are those that a request made
BUILT = [operation for operation in OPERATIONS.values() if operation.id in BINDINGS]
SCHEMA = schemathesis.openapi.from_dict(load())
FOUND: list[Any] = [found.ok() for found in SCHEMA.get_all_operations()]  # type: ignore[union-attr]
GENERATED = {found.definition.raw["operationId"]: found for found in FOUND}
HELD = [
    CHECKS.get_one(name)
    for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
]
pytestmark = pytest.mark.timeout(3600 if os.environ.get("CACHEYARD_SOAK") else 300)


class World:
    """A service of its own with one instance, and a network of which anything may be taken away."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.session = requests.Session()
        self.instance_id = ""
        self.ids: dict[str, str] = {}

    def prepare(self) -> None:
        """Have an instance at rest and a network, and nothing that earlier requests left."""
        self._clear_instances()
        self._clear_network()
        facts, http = self.service.facts, self.service.http
        vpc = http("POST", "/v1/{p}/vpcs", json={"vpc": {"name": "victim"}}).json()["vpc"]["id"]
        subnet = {"name": "victim", "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "vpc_id": vpc}
        made = http("POST", "/v1/{p}/subnets", json={"subnet": subnet}).json()["subnet"]["id"]
        group = http("POST", "/v1/{p}/security-groups", json={"security_group": {"name": "victim"}}).json()[
            "security_group"
        ]
        task = Cache(self.service, self.instance_id).tasks()
        self.ids = {
            "project_id": facts.project_id,
            "instance_id": self.instance_id,
            "vpc_id": vpc,
            "subnet_id": made,
            "network_id": made,
            "security_group_id": group["id"],
            "security_group_rule_id": group["security_group_rules"][0]["id"],
            "task_id": task[0]["id"] if task else self.instance_id,
            "job_id": task[0]["id"] if task else self.instance_id,
        }

    def good(self, operation: Operation) -> dict[str, Any]:
        """Parts of a body that get past the door."""
        parts: dict[str, dict[str, Any]] = {
            "create_instance": body_for(self.service, instance_num=1),
            "v1_create_instance": {
                "name": "cache-1",
                "engine": "Redis",
                "engine_version": "6.0",
                "capacity": 0.125,
                "product_id": f"{SINGLE}-h",
                "spec_code": SINGLE,
                "available_zones": self.service.facts.az_codes[:1],
                "vpc_id": self.service.facts.vpc_id,
                "subnet_id": self.service.facts.subnet_id,
                "password": PASSWORD,
            },
            "resize_instance": {"spec_code": SINGLE.replace("128", "256"), "new_capacity": 0.25},
            "v1_resize_instance": {"new_capacity": 0.25},
            "restart_or_flush_instances": {"instances": [self.instance_id]},
            "v1_restart_or_flush_instances": {"instances": [self.instance_id]},
            "update_password": {"old_password": PASSWORD},
            "batch_delete_instances": {"instances": [self.instance_id]},
        }
        return parts.get(operation.id, {})

    def _instances(self) -> list[dict[str, Any]]:
        path = "/v2/{p}/instances?limit=1000&include_failure=true"
        found: list[dict[str, Any]] = self.service.http("GET", path).json()["instances"]
        return found

    def _clear_instances(self) -> None:
        """One instance, running; every other is deleted."""

        def at_rest() -> bool:
            there = self._instances()
            for each in there:
                if each["instance_id"] != self.instance_id:
                    self.service.http("DELETE", f"/v2/{{p}}/instances/{each['instance_id']}")
            mine = [each for each in there if each["instance_id"] == self.instance_id]
            if not mine:
                body = body_for(self.service, instance_num=1)
                answer = self.service.http("POST", "/v2/{p}/instances", json=body)
                if answer.status_code == 200:
                    self.instance_id = answer.json()["instances"][0]["instance_id"]
                return False
            if mine[0]["status"] == "CLOSED":
                Cache(self.service, self.instance_id).act("start")
            return len(there) == 1 and mine[0]["status"] == "RUNNING"

        until(at_rest, seconds=60, what="one running instance and no other")

    def _clear_network(self) -> None:
        facts, http = self.service.facts, self.service.http
        for kind, kept in (
            ("subnets", facts.subnet_id),
            ("vpcs", facts.vpc_id),
            ("security-groups", facts.security_group_id),
        ):
            for each in http("GET", f"/v1/{{p}}/{kind}").json()[kind.replace("-", "_")]:
                if each["id"] != kept:
                    assert http("DELETE", f"/v1/{{p}}/{kind}/{each['id']}").status_code == 204


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    print(f"CACHEYARD_SEED={SEED}, {CASES} cases an operation")
    with Service(CACHEYARD_INSTANCE_QUOTA=str(INSTANCES)) as service:
        made = World(service)
        try:
            yield made
        finally:
            made.session.close()


@pytest.mark.parametrize("operation", BUILT, ids=lambda operation: operation.id)
def test_every_answer_is_one_that_the_contract_has(world: World, operation: Operation) -> None:
    world.prepare()
    generated = GENERATED[operation.id]
    good = world.good(operation)
    modes = [GenerationMode.POSITIVE]
    if operation.parameters or operation.body:
        modes.append(GenerationMode.NEGATIVE)

    @seed(SEED)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(case=st.one_of([generated.as_strategy(mode) for mode in modes]), data=st.data())
    def holds(case: Any, data: st.DataObject) -> None:
        for name in case.path_parameters:
            if name in world.ids and data.draw(st.integers(0, 9)) < 8:  # 8 in 10 are real
                case.path_parameters[name] = world.ids[name]
        if isinstance(case.body, dict) and good:
            kept = data.draw(
                st.sampled_from([set(good), set(good) - {data.draw(st.sampled_from(list(good)))}, set()])
            )
            case.body = {**case.body, **{name: good[name] for name in kept}}
            if case.body.get("instance_num") not in (None, 1):
                case.body["instance_num"] = INSTANCES + 1
        send(world, case)

    holds()


def send(world: World, case: Any) -> None:
    """Send it, and hold the answer against the contract in two ways: schemathesis' and ours."""
    answer = case.call(
        base_url=world.service.facts.endpoint,
        session=world.session,
        headers={"X-Auth-Token": world.service.token()},
    )
    sent = answer.request
    assert answer.status_code != 500, world.service.log_of(answer.headers["x-request-id"][0])
    check_answer(sent.method, sent.path_url, answer.status_code, answer.content)
    assert answer.status_code < 500 or (answer.status_code == 501 and b"not built yet" in answer.content)
    if sent.url.startswith(world.service.facts.endpoint + case.formatted_path.split("{")[0][:3]):
        case.validate_response(answer, checks=HELD)
