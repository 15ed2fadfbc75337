"""Whatever another project has does not exist: no operation shows it, changes it or tells it from nothing.

From the contract: each operation that is built is called by a user of project B with an id of project A in
each place where it takes one, in path, query and body, and once more with an id that never was. Both answers
must be the same, and project A as before. An operation that looks at something else before it looks for the
id has its body in `GOOD`.
"""

import random
import re
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.bodies import fitting, put, ways
from support.caches import HA, SINGLE, Cache, body_for, refused
from support.service import Service
from support.waiting import until

from cacheyard.api.bindings import BINDINGS
from cacheyard.contract.document import load
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.services import accounts
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.store.tables import metadata

SCHEMAS: dict[str, Any] = load()["components"]["schemas"]
BUILT = [operation for operation in OPERATIONS.values() if operation.id in BINDINGS]
IN_PROJECT = [operation for operation in BUILT if operation.project_scoped]

# Parameters and properties that name something that belongs to a project, and what.
KINDS = {
    "instance_id": "instance",
    "instances": "instance",
    "group_id": "group",
    "node_id": "node",
    "node_ids": "node",
    "node_list": "node",
    "task_id": "task",
    "job_id": "task",
    "history_id": "history",
    "account_id": "account",
    "template_id": "template",
    "backup_id": "backup",
    "vpc_id": "vpc",
    "subnet_id": "subnet",
    "network_id": "subnet",
    "security_group_id": "security_group",
    "remote_group_id": "security_group",
    "security_group_rule_id": "rule",
}
# What `id` means, where a parameter has no better name.
MEANT = {
    "list_instances": "instance",
    "v1_list_instances": "instance",
    "list_vpcs": "vpc",
    "list_vpcs_v3": "vpc",
    "neutron_list_networks": "subnet",
    "neutron_list_subnets": "subnet",
    "neutron_list_security_groups": "security_group",
    "list_security_groups_v3": "security_group",
    "neutron_list_security_group_rules": "rule",
    "list_security_group_rules_v3": "rule",
}
# How an id is refused that is nothing's, where that is not a 404.
CODES = {
    "node": {"DCS.3053", "DCS.4930"},
    "vpc": {"DCS.4068"},
    "subnet": {"DCS.4016"},
    "security_group": {"DCS.4046", "VPC.0606"},
    "template": {"DCS.4800", "DCS.4988"},
}
ONLY_CLUSTERS = {"execute_cluster_switchover": "DCS.4855"}  # whatever the ids of shard and node
# What makes things of a kind: as long as that is not built, there are none.
MAKERS = {
    "template": "create_custom_template",
    "backup": "copy_instance",
    "account": "create_acl_account",
    "history": "list_config_histories",
}
# Tables of project A that are written without anybody's asking.
FIGURES = {"audit", "node_figures", "proxy_figures", "node_drift", "seen_caps", "traffic", "fences"}
_ID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")
_TIME = re.compile(r"20\d\d-\d\d-\d\dT[\d:.]+Z?")


@dataclass(frozen=True)
class Slot:
    """A place in a request where an id stands."""

    where: str  # path, query or body
    way: tuple[str, ...]
    kind: str
    many: bool = False

    def __str__(self) -> str:
        return f"{self.where} {'.'.join(self.way)}"


def slots(operation: Operation) -> list[Slot]:
    found = []
    for parameter in operation.parameters:
        kind = MEANT.get(operation.id) if parameter.name == "id" else KINDS.get(parameter.name)
        if kind is not None:
            found.append(Slot(parameter.where, (parameter.name,), kind))
    found += [Slot("body", way, kind, many) for way, kind, many in ways(operation, KINDS)]
    return found


WITH_IDS = [operation for operation in BUILT if slots(operation)]


class World:
    """Project A with everything in it, and project B with its own."""

    def __init__(self, service: Service, store: Store, sealer: Sealer) -> None:
        self.service = service
        self.a, self.b = service.facts.project_id, accounts.add_project(store, "project-b").id
        _, password = accounts.add_user(store, "bob")
        accounts.grant(store, "bob", "project-b", "te_admin")
        self.key = accounts.create_access_key(store, sealer, "bob")
        self.token = service.new_token("bob", password, self.b)
        self.mine: dict[str, str] = {}
        self.theirs: dict[str, str] = {}

    def send(
        self, operation: Operation, ids: dict[Slot, str], project: str, token: str, body: Any = None
    ) -> httpx.Response:
        path_values = {slot.way[0]: value for slot, value in ids.items() if slot.where == "path"}
        unnamed = {p.name: lookalike(self.a) for p in operation.parameters if p.where == "path"}
        query = {
            p.name: str(fitting(p.schema)) for p in operation.parameters if p.where == "query" and p.required
        }
        query |= {slot.way[0]: value for slot, value in ids.items() if slot.where == "query"}
        sent = fitting(SCHEMAS[operation.body]) if operation.body is not None else None
        if isinstance(sent, dict):
            for name, value in GOOD.get(operation.id, {}).items():
                put(sent, tuple(name.split(".")), value)
            for slot, value in ids.items():
                if slot.where == "body":
                    put(sent, slot.way, [value] if slot.many else value)
        return self.service.http(
            operation.method,
            operation.path.format(**(unnamed | {"project_id": project} | path_values)),
            token=token,
            params=query,
            json=sent,
        )

    def snapshot(self) -> dict[str, list[Any]]:
        """All that project A has, but what is only seen of it."""
        found = {}
        with closing(sqlite3.connect(self.service.data / "cacheyard.sqlite", timeout=30)) as database:
            mine = database.execute("SELECT id FROM instances WHERE project_id = ?", (self.a,)).fetchall()
            marks = ",".join("?" * len(mine))
            for table in metadata.tables.values():
                names = ", ".join(f'"{c.name}"' for c in table.c if not c.name.startswith("seen_"))
                if table.name in FIGURES:
                    continue
                if "project_id" in table.c:
                    which, values = "project_id = ?", [self.a]
                elif "instance_id" in table.c:
                    which, values = f"instance_id IN ({marks})", [row[0] for row in mine]
                else:
                    continue
                rows = database.execute(f"SELECT {names} FROM {table.name} WHERE {which}", values)  # noqa: S608
                found[table.name] = sorted(rows.fetchall(), key=repr)
        assert found["instances"]
        assert found["nodes"]
        return found


POLICY = {"param_id": "2", "param_name": "maxmemory-policy", "param_value": "allkeys-lru"}
# Bodies that get as far as the ids.
GOOD: dict[str, dict[str, Any]] = {
    "create_subnet": {
        "subnet.name": "subnet-b",
        "subnet.cidr": "10.0.0.0/24",
        "subnet.gateway_ip": "10.0.0.1",
    },
    "update_vpc": {"vpc.name": "renamed"},
    "update_subnet": {"subnet.name": "renamed"},
    "update_configurations": {"redis_config": [POLICY]},
    "update_instance_config": {"redis_config": [POLICY]},
    "v1_update_configurations": {"redis_config": [POLICY]},
    "update_acl_account": {"account_role": "write"},
    "update_acl_account_pass_word": {"old_password": "Reader-pass-1", "new_password": "Reader-pass-2"},
    "reset_acl_account_pass_word": {"new_password": "Reader-pass-2"},
    "update_public_ip": {"elb_id": "front"},
    "update_client_ip_transparent_transmission": {"transparent_client_ip_enable": True},
    "reset_password": {"new_password": "Another-pass-2"},
    "change_nodes_start_stop_status": {"action": "stop"},
    "batch_create_or_delete_tags": {"tags": [{"key": "k", "value": "v"}]},
    "v1_batch_create_or_delete_tags": {"tags": [{"key": "k", "value": "v"}]},
}


def lookalike(real: str) -> str:
    """An id of the same form that was never given."""
    return re.sub("[0-9a-f]", lambda _: random.choice("0123456789abcdef"), real)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Service(CACHEYARD_PUBLIC_ADDRESSES="front=203.0.113.77") as service:
        sealer = Sealer.of(service.data / "secret.key")
        with closing(Store(service.data / "cacheyard.sqlite")) as store:
            world = World(service, store, sealer)
        world.theirs = furnish(service, world.a, service.token())
        world.mine = furnish(service, world.b, world.token)
        for name in ("create_instance", "v1_create_instance"):
            GOOD[name] = creation(service, world, v1=name.startswith("v1"))
        yield world


def creation(service: Service, world: World, *, v1: bool) -> dict[str, Any]:
    body = body_for(service, vpc_id=world.mine["vpc"], subnet_id=world.mine["subnet"])
    if v1:
        body |= {"product_id": f"{SINGLE}-h", "available_zones": body.pop("az_codes")}
    return body


def furnish(service: Service, project: str, token: str) -> dict[str, str]:
    """One of everything that there can be in a project; ids by kind."""

    def call(method: str, path: str, **body: Any) -> Any:
        answer = service.http(method, path.replace("{p}", project), token=token, json=body or None)
        assert answer.status_code < 300, answer.text
        return answer.json()

    vpc = call("POST", "/v1/{p}/vpcs", vpc={"name": "all"})["vpc"]["id"]
    subnet = {"name": "all", "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "vpc_id": vpc}
    subnet_id = call("POST", "/v1/{p}/subnets", subnet=subnet)["subnet"]["id"]
    group = call("POST", "/v1/{p}/security-groups", security_group={"name": "all"})["security_group"]
    body = body_for(
        service,
        spec_code=HA,
        az_codes=service.facts.az_codes[:2],
        vpc_id=vpc,
        subnet_id=subnet_id,
        tags=[{"key": f"tag-of-{project}", "value": "x"}],
    )
    instance = call("POST", "/v2/{p}/instances", **body)["instances"][0]["instance_id"]
    path = f"/v2/{{p}}/instances/{instance}"
    at_rest(service, project, token, instance)
    nodes = call("GET", f"{path}/logical-nodes")["nodes"]
    ids = {
        "instance": instance,
        "vpc": vpc,
        "subnet": subnet_id,
        "security_group": group["id"],
        "rule": group["security_group_rules"][0]["id"],
        "group": nodes[0]["group_id"],
        "node": next(node["node_id"] for node in nodes if node["node_role"] != "master"),
    }
    if "create_acl_account" in BINDINGS:
        account = {"account_name": "reader", "account_role": "read", "account_password": "Reader-pass-1"}
        ids["account"] = call("POST", f"{path}/accounts", **account)["account_id"]
        at_rest(service, project, token, instance)
    if {"update_configurations", "list_config_histories"} <= set(BINDINGS):
        service.http(
            "PUT", f"{path.replace('{p}', project)}/configs", token=token, json={"redis_config": [POLICY]}
        )
        at_rest(service, project, token, instance)
        ids["history"] = call("GET", f"{path}/config-histories")["histories"][0]["history_id"]
    if "create_custom_template" in BINDINGS:
        ids |= template(service, project, token)
    if "copy_instance" in BINDINGS:
        ids["backup"] = call("POST", f"{path}/backups", remark="of all")["backup_id"]
        at_rest(service, project, token, instance)
    ids["task"] = call("GET", f"{path}/tasks")["tasks"][0]["id"]
    return ids


def template(service: Service, project: str, token: str) -> dict[str, str]:
    path = f"/v2/{project}/config-templates"
    listed = service.http("GET", path, token=token, params={"type": "sys"}).json()
    first = listed["templates"][0]
    body = {"template_id": first["template_id"], "name": "custom", "type": "sys", "params": {}}
    answer = service.http("POST", path, token=token, json=body)
    assert answer.status_code < 300, answer.text
    found = service.http("GET", path, token=token, params={"type": "user"}).json()["templates"]
    return {"template": found[0]["template_id"]}


def at_rest(service: Service, project: str, token: str, instance: str) -> None:
    def rests() -> bool:
        shown = service.http("GET", f"/v2/{project}/instances/{instance}", token=token).json()
        assert shown["status"] not in ("ERROR", "CREATEFAILED"), shown
        return shown["status"] == "RUNNING" and shown["task"] is None

    until(rests, seconds=60, what=f"{instance} to be at rest")


def told(answer: httpx.Response, ids: dict[Slot, str]) -> tuple[int, set[str], str]:
    """An answer without what tells one request from another."""
    text = answer.text
    for slot, value in ids.items():
        text = text.replace(value, f"<{slot.kind}>")
    if answer.is_success:  # what was made has an id and a time of its own
        text = _TIME.sub("<time>", _ID.sub("<id>", text))
    return answer.status_code, set(answer.headers), text


@pytest.mark.parametrize("operation", WITH_IDS, ids=lambda operation: operation.id)
def test_what_is_another_projects_is_as_if_it_never_was(world: World, operation: Operation) -> None:
    before = world.snapshot()
    places = slots(operation)
    for slot in places:
        assert slot.kind in world.theirs or MAKERS.get(slot.kind, operation.id) not in BINDINGS, slot
    places = [slot for slot in places if slot.kind in world.theirs]
    own = {
        slot: world.mine[slot.kind]
        for slot in places
        if slot.where == "path" or slot.kind in ("vpc", "subnet")
    }
    for foreign in ([slot] for slot in places):
        check(world, operation, own, foreign)
    if len(places) > 1:
        check(world, operation, own, places)
    assert world.snapshot() == before


def check(world: World, operation: Operation, own: dict[Slot, str], foreign: list[Slot]) -> None:
    """Ask with project A's ids in some places, and then with ids that never were."""
    what = f"{operation.id}, {', '.join(str(slot) for slot in foreign)}"
    answers = []
    for ids in (
        {slot: world.theirs[slot.kind] for slot in foreign},
        {slot: lookalike(world.theirs[slot.kind]) for slot in foreign},
    ):
        answer = world.send(operation, own | ids, world.b, world.token)
        if operation.method != "GET" and answer.is_success:
            at_rest(world.service, world.b, world.token, world.mine["instance"])
        answers.append(told(answer, ids))
    assert answers[0] == answers[1], what
    status, _, text = answers[0]
    codes = {code for slot in foreign for code in CODES.get(slot.kind, ())}
    if any(slot.where == "path" for slot in foreign):
        codes |= {ONLY_CLUSTERS[operation.id]} if operation.id in ONLY_CLUSTERS else set()
        fits = status == 404 or any(code in text for code in codes)
        assert fits, f"{what}: {status} {text}; does its body belong into GOOD?"
    elif status < 300:
        assert not found_in(text, world.theirs), f"{what}: {text}"


def found_in(text: str, ids: dict[str, str]) -> set[str]:
    return {kind for kind, value in ids.items() if value in text}


@pytest.mark.parametrize(
    "operation",
    [operation for operation in BUILT if operation.method == "GET" and not operation.public],
    ids=lambda operation: operation.id,
)
def test_no_list_and_no_figure_has_anything_of_another_project(world: World, operation: Operation) -> None:
    ids = {slot: world.mine[slot.kind] for slot in slots(operation) if slot.where == "path"}
    answer = world.send(operation, ids, world.b, world.token)
    assert answer.status_code in (200, 400, 404), answer.text
    assert not found_in(answer.text, world.theirs)
    assert f"tag-of-{world.a}" not in answer.text
    assert world.a not in answer.text


@pytest.mark.parametrize("operation", IN_PROJECT, ids=lambda operation: operation.id)
def test_another_projects_path_is_as_one_that_never_was(world: World, operation: Operation) -> None:
    before = world.snapshot()
    ids = {slot: world.theirs.get(slot.kind, lookalike(world.a)) for slot in slots(operation)}
    theirs = world.send(operation, ids, world.a, world.token)
    nobodys = world.send(operation, ids, lookalike(world.a), world.token)
    assert theirs.status_code == 401
    assert told(theirs, ids) == told(nobodys, ids)
    if operation.family == "v2":
        assert theirs.json()["error_code"] == "DCS.1004"
    assert world.snapshot() == before


def test_a_signature_opens_no_other_project(world: World) -> None:
    for project in (world.a, lookalike(world.a)):
        sdk = world.service.sdk(world.key.access, world.key.secret, project)
        with refused(401, "DCS.1004"):
            sdk.list_instances(dcs.ListInstancesRequest())
        with refused(401, "DCS.1004"):
            sdk.delete_single_instance(dcs.DeleteSingleInstanceRequest(instance_id=world.theirs["instance"]))
    own = world.service.sdk(world.key.access, world.key.secret, world.b)
    with refused(404, "DCS.3022"):
        own.show_instance(dcs.ShowInstanceRequest(instance_id=world.theirs["instance"]))


def test_a_header_opens_no_other_project(world: World) -> None:
    for project in (world.a, lookalike(world.a)):
        answer = world.service.http(
            "GET", "/v2.0/networks", token=world.token, headers={"X-Project-Id": project}
        )
        assert answer.status_code == 401, answer.text


def test_another_projects_instance_takes_no_longer_to_refuse_than_none(world: World) -> None:
    """Loosely: a difference of the same order as an answer itself would be one worth knowing of."""
    took: dict[str, list[float]] = {"theirs": [], "nobodys": []}
    for _ in range(60):
        for name, instance in (("theirs", world.theirs["instance"]), ("nobodys", lookalike(world.a))):
            began = time.perf_counter()
            answer = world.service.http("GET", f"/v2/{world.b}/instances/{instance}", token=world.token)
            took[name].append(time.perf_counter() - began)
            assert answer.status_code == 404
    theirs, nobodys = (statistics.median(times) for times in took.values())
    print(f"median of another project's {theirs * 1000:.2f} ms, of none {nobodys * 1000:.2f} ms")
    assert abs(theirs - nobodys) < max(theirs, nobodys) / 2 + 0.02


def test_both_projects_caches_go_on(world: World) -> None:
    with closing(Cache(world.service, world.theirs["instance"]).client()) as link:
        assert link.ping()
    answer = world.service.http("GET", f"/v2/{world.b}/instances/{world.mine['instance']}", token=world.token)
    assert answer.json()["status"] == "RUNNING"
