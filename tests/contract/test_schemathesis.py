"""Whatever is sent, be it as the contract allows or not: no crash, and no answer that the contract has not.

Half of what is sent has real ids and parts of bodies that are right, so that it gets past the door.
`CACHEYARD_SOAK=1` sends 500 requests an operation instead of 20; `CACHEYARD_SEED` chooses others.
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
from support.proxied import SPLIT, needs_program
from support.service import Service
from support.waiting import until

from cacheyard.api.bindings import BINDINGS
from cacheyard.contract.document import load
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS

CASES = 500 if os.environ.get("CACHEYARD_SOAK") else 20  # requests an operation
SEED = int(os.environ.get("CACHEYARD_SEED", "20260131"))
INSTANCES = 4  # of which one is for the requests; others are those that a request made
BUILT = [operation for operation in OPERATIONS.values() if operation.id in BINDINGS]
FORMS: dict[str, dict[str, Any]] = {"single": {}, "ha_rw_split": SPLIT}
# What nodes and proxies have a part in: it is asked of an instance that has them too.
OF_NODES = (
    "list_group_replication_info",
    "show_replication_states",
    "batch_show_nodes_information",
    "show_nodes_information",
    "show_instance_topology",
    "list_monitored_objects",
    "list_monitored_objects_of_instance",
    "list_statistics_of_running_instances",
    "show_instance_version",
    "validate_deletable_replica",
    "update_slave_priority",
    "delete_ip_from_domain_name",
    "change_master_standby_async",
    "execute_cluster_switchover",
    "change_nodes_start_stop_status",
    "migrate_az",
    "upgrade_instance_minor_version",
)
ASKED = [
    *(pytest.param("single", operation, id=operation.id) for operation in BUILT),
    *(
        pytest.param("ha_rw_split", OPERATIONS[name], id=f"{name}-ha_rw_split", marks=needs_program)
        for name in OF_NODES
    ),
]
SCHEMA = schemathesis.openapi.from_dict(load())
FOUND: list[Any] = [found.ok() for found in SCHEMA.get_all_operations()]  # type: ignore[union-attr]
GENERATED = {found.definition.raw["operationId"]: found for found in FOUND}
HELD = [
    CHECKS.get_one(name)
    for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
]
POLICY = {"param_id": "2", "param_name": "maxmemory-policy", "param_value": "allkeys-lru"}
WHITELIST = {
    "enable_whitelist": True,
    "whitelist": [{"group_name": "here", "ip_list": ["127.0.0.0/8"]}],
}
pytestmark = pytest.mark.timeout(3600 if os.environ.get("CACHEYARD_SOAK") else 300)


class World:
    """A service of its own with one instance, and a network of which anything may be taken away."""

    def __init__(self, service: Service, form: dict[str, Any]) -> None:
        self.service, self.form = service, form
        self.session = requests.Session()
        self.instance_id = ""
        self.ids: dict[str, list[str]] = {}  # that are real, by the name of a parameter

    def prepare(self, operation: Operation) -> None:
        """Have an instance at rest, a network and what else the operation is about, and nothing that earlier
        requests left."""
        self._clear_instances()
        self._clear_network()
        facts, http = self.service.facts, self.service.http
        vpc = http("POST", "/v1/{p}/vpcs", json={"vpc": {"name": "victim"}}).json()["vpc"]["id"]
        subnet = {"name": "victim", "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "vpc_id": vpc}
        made = http("POST", "/v1/{p}/subnets", json={"subnet": subnet}).json()["subnet"]["id"]
        group = http("POST", "/v1/{p}/security-groups", json={"security_group": {"name": "victim"}}).json()[
            "security_group"
        ]
        cache = Cache(self.service, self.instance_id)
        tasks = [task["id"] for task in cache.tasks()[:1]] or [self.instance_id]
        nodes = cache.http("GET", "/logical-nodes").json()["nodes"]
        self.ids = {
            "project_id": [facts.project_id],
            "instance_id": [self.instance_id],
            "group_id": [nodes[0]["group_id"]],
            "node_id": [node["node_id"] for node in nodes],
            "vpc_id": [vpc],
            "subnet_id": [made],
            "network_id": [made],
            "security_group_id": [group["id"]],
            "security_group_rule_id": [group["security_group_rules"][0]["id"]],
            "task_id": tasks,
            "job_id": tasks,
        }
        about = {parameter.name for parameter in operation.parameters if parameter.where == "path"}
        made_by = {"account_id": self._account, "template_id": self._template, "history_id": self._history}
        self.ids |= {name: [make(cache)] for name, make in made_by.items() if name in about}

    def _account(self, cache: Cache) -> str:
        for account in cache.http("GET", "/accounts").json()["accounts"]:
            if account["account_type"] == "normal":
                return str(account["account_id"])
        reset = cache.http("POST", "/password/reset", json={"new_password": PASSWORD})
        assert reset.status_code == 200, reset.text  # an earlier request may have done without one
        cache.until_running()
        body = {"account_name": "somebody", "account_role": "read", "account_password": PASSWORD}
        made = cache.http("POST", "/accounts", json=body)
        assert made.status_code == 200, made.text
        cache.until_running()
        return str(made.json()["account_id"])

    def _template(self, _: Cache) -> str:
        path, http = "/v2/{p}/config-templates", self.service.http
        for each in http("GET", f"{path}?type=user&limit=1000").json()["templates"]:
            assert http("DELETE", f"{path}/{each['template_id']}").status_code == 200
        source = http("GET", f"{path}?type=sys").json()["templates"][0]["template_id"]
        body = {"template_id": source, "name": "custom", "type": "sys", "params": {}}
        made = http("POST", path, json=body)
        assert made.status_code == 200, made.text
        return str(made.json()["id"])

    def _history(self, cache: Cache) -> str:
        assert cache.http("PUT", "/configs", json={"redis_config": [self._policy(cache)]}).status_code == 204
        cache.until_running()
        return str(cache.http("GET", "/config-histories").json()["histories"][0]["history_id"])

    @staticmethod
    def _policy(cache: Cache) -> dict[str, str]:
        """A value of `maxmemory-policy` that it has not."""
        told = cache.http("GET", "/configs").json()["redis_config"]
        policy = next(each for each in told if each["param_name"] == "maxmemory-policy")
        other = next(v for v in ("allkeys-lru", "volatile-lru") if v != policy["param_value"])
        return {"param_id": policy["param_id"], "param_name": "maxmemory-policy", "param_value": other}

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
            "update_configurations": {"redis_config": [POLICY]},
            "v1_update_configurations": {"redis_config": [POLICY]},
            "update_instance_config": {"redis_config": [POLICY]},
            "create_acl_account": {"account_name": "another", "account_role": "write"},
            "update_acl_account": {"account_role": "write"},
            "update_acl_account_pass_word": {"old_password": PASSWORD, "new_password": "Another-pass-2"},
            "reset_acl_account_pass_word": {"new_password": PASSWORD},
            "update_ip_whitelist": WHITELIST,
            "update_ip_whitelist_async": WHITELIST,
            "update_ssl_switch": {"enabled": True},
            "update_client_ip_transparent_transmission": {"transparent_client_ip_enable": False},
            "create_custom_template": {"type": "sys", "name": "custom", "params": {}},
            "batch_delete_instances": {"instances": [self.instance_id]},
            "change_nodes_start_stop_status": {"action": "stop", "node_ids": self.ids["node_id"][1:2]},
            "migrate_az": {"new_available_zones": self.service.facts.az_codes[1:]},
            "update_slave_priority": {"slave_priority_weight": 7},
            "upgrade_instance_minor_version": dict.fromkeys(
                ("engine_minor_version", "proxy_minor_version"), "latest"
            ),
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
                    self._delete(each["instance_id"])
            mine = [each for each in there if each["instance_id"] == self.instance_id]
            if not mine:
                body = body_for(self.service, instance_num=1, **self.form)
                answer = self.service.http("POST", "/v2/{p}/instances", json=body)
                if answer.status_code == 200:
                    self.instance_id = answer.json()["instances"][0]["instance_id"]
                return False
            if mine[0]["status"] == "CLOSED":
                Cache(self.service, self.instance_id).act("start")
            return len(there) == 1 and mine[0]["status"] == "RUNNING"

        until(at_rest, seconds=60, what="one running instance and no other")

    def _delete(self, instance_id: str) -> None:
        path = f"/v2/{{p}}/instances/{instance_id}"
        if self.service.http("DELETE", path).status_code == 400:  # busy, or protected by a request
            self.service.http("PUT", path, json={"deletion_protection": False})

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
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    print(f"CACHEYARD_SEED={SEED}, {CASES} cases an operation")
    with Service(CACHEYARD_INSTANCE_QUOTA=str(INSTANCES), CACHEYARD_OVERCOMMIT="10") as service:
        made = World(service, FORMS[request.param])
        try:
            yield made
        finally:
            made.session.close()


@pytest.mark.parametrize(("world", "operation"), ASKED, indirect=["world"], scope="module")
def test_every_answer_is_one_that_the_contract_has(world: World, operation: Operation) -> None:
    world.prepare(operation)
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
                case.path_parameters[name] = data.draw(st.sampled_from(world.ids[name]))
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
