"""What clients need around caches: versions, tokens, catalog, networks; and the bodies Terraform sends."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest
from support.caches import HA, SINGLE, Cache, remove
from support.service import Service

# --- connections ------------------------------------------------------------------------------------


def test_a_connection_is_kept_longer_than_clients_keep_it(service: Service) -> None:
    """One that is closed just as the next request comes costs that request. Python's clients keep it 5 s."""
    with closing(HTTPConnection(service.facts.endpoint.removeprefix("http://"))) as client:
        client.request("GET", "/")
        assert client.getresponse().read()
        assert client.sock is not None
        client.sock.settimeout(6)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)


# --- identity ---------------------------------------------------------------------------------------


def test_versions_are_told_before_there_is_a_token(service: Service) -> None:
    base = service.facts.endpoint
    versions = service.http("GET", "/", token="").json()["versions"]["values"]
    assert [version["id"].split(".")[0] for version in versions] == ["v3", "v2"]
    for path in ("/v3", "/v3/"):
        version = service.http("GET", path, token="").json()["version"]
        assert version["links"] == [{"rel": "self", "href": f"{base}/v3/"}]
        assert version["media-types"][0]["base"] == "application/json"


def test_a_token_tells_what_it_is_and_can_be_revoked(service: Service) -> None:
    facts = service.facts
    token = service.new_token(facts.user_name, facts.password, facts.project_id)
    subject = {"X-Subject-Token": token}
    shown = service.http("GET", "/v3/auth/tokens", headers=subject)
    assert shown.headers["X-Subject-Token"] == token
    assert shown.json()["token"]["project"]["id"] == facts.project_id
    assert shown.json()["token"]["user"]["name"] == facts.user_name
    assert service.http("DELETE", "/v3/auth/tokens", headers=subject).status_code == 204
    assert service.http("GET", "/v3/auth/tokens", headers=subject).status_code == 404
    refused = service.http("GET", "/v2/{p}/instances", token=token)
    assert (refused.status_code, refused.json()["error_code"]) == (401, "DCS.1001")


def test_a_request_about_no_token_finds_none(service: Service) -> None:
    answer = service.http("GET", "/v3/auth/tokens")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)


def test_the_catalog_leads_to_services_that_answer(service: Service) -> None:
    catalog = service.http("GET", "/v3/auth/catalog").json()["catalog"]
    urls = {entry["type"]: entry["endpoints"][0]["url"] for entry in catalog}
    assert {"dcs", "dcsv1", "vpc", "ecs", "iam", "identity", "network", "compute"} <= set(urls)
    base = service.facts.endpoint
    assert all(url.startswith(base) for url in urls.values())
    for kind, below in (("dcs", "/instances"), ("vpc", "/vpcs"), ("compute", "/os-availability-zone")):
        assert service.http("GET", urls[kind].removeprefix(base) + below).status_code == 200


def test_a_project_is_shown_to_those_who_have_a_role_on_it(service: Service) -> None:
    shown = service.http("GET", "/v3/projects/{p}").json()["project"]
    assert (shown["id"], shown["name"]) == (service.facts.project_id, service.facts.region)
    answer = service.http("GET", "/v3/projects/0123456789abcdef")
    assert (answer.status_code, answer.json()["error"]["title"]) == (404, "Not Found")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"enabled": "true", "page": 1, "per_page": 5}, 1),
        ({"enabled": "false"}, 0),
        ({"page": 2, "per_page": 5}, 0),
        ({"parent_id": "nothing"}, 0),
        ({"name": "nothing"}, 0),
    ],
)
def test_projects_are_filtered(service: Service, query: dict[str, Any], count: int) -> None:
    answer = service.http("GET", "/v3/projects", params={"name": service.facts.region} | query)
    assert len(answer.json()["projects"]) == count


# --- both spellings ---------------------------------------------------------------------------------


def test_paths_are_taken_with_instance_and_with_instances(service: Service, steady: Cache) -> None:
    one = service.http("GET", f"/v2/{{p}}/instance/{steady.id}")
    assert (one.status_code, one.json()["instance_id"]) == (200, steady.id)
    for below in ("tags", "tasks", "whitelist", "groups"):
        answers = [
            service.http("GET", f"/v2/{{p}}/{word}/{steady.id}/{below}") for word in ("instance", "instances")
        ]
        assert answers[0].status_code == answers[1].status_code in (200, 501), below


# --- networks ---------------------------------------------------------------------------------------


@pytest.fixture
def vpc(service: Service) -> Iterator[dict[str, Any]]:
    body = {
        "vpc": {"name": "tf-vpc", "cidr": "192.168.0.0/16", "description": "", "enterprise_project_id": "0"}
    }
    made = service.http("POST", "/v1/{p}/vpcs", json=body).json()["vpc"]
    yield made
    assert service.http("DELETE", f"/v1/{{p}}/vpcs/{made['id']}").status_code == 204


@pytest.fixture
def subnet(service: Service, vpc: dict[str, Any]) -> Iterator[dict[str, Any]]:
    body = {
        "subnet": {
            "name": "tf-subnet",
            "cidr": "192.168.1.0/24",
            "gateway_ip": "192.168.1.1",
            "vpc_id": vpc["id"],
            "dhcp_enable": True,
            "dnsList": ["100.125.4.25", "1.1.1.1"],
        }
    }
    made = service.http("POST", "/v1/{p}/subnets", json=body).json()["subnet"]
    yield made
    path = f"/v1/{{p}}/vpcs/{vpc['id']}/subnets/{made['id']}"
    assert service.http("DELETE", path).status_code == 204


def test_a_vpc_is_changed(service: Service, vpc: dict[str, Any]) -> None:
    path = f"/v1/{{p}}/vpcs/{vpc['id']}"
    changed = service.http("PUT", path, json={"vpc": {"name": "tf-vpc-2", "description": "two"}}).json()[
        "vpc"
    ]
    assert (changed["name"], changed["description"], changed["cidr"]) == ("tf-vpc-2", "two", "192.168.0.0/16")
    assert service.http("PUT", path, json={"vpc": {"description": ""}}).json()["vpc"]["description"] == ""
    shown = service.http("GET", path).json()["vpc"]
    assert (shown["name"], shown["description"]) == ("tf-vpc-2", "")
    assert service.http("PUT", f"/v1/{{p}}/vpcs/{'0' * 8}", json={"vpc": {"name": "x"}}).status_code == 404


def test_a_vpc_keeps_a_range_that_holds_its_subnets(
    service: Service, vpc: dict[str, Any], subnet: dict[str, Any]
) -> None:
    path = f"/v1/{{p}}/vpcs/{vpc['id']}"
    answer = service.http("PUT", path, json={"vpc": {"cidr": "192.168.2.0/24"}})
    assert (answer.status_code, answer.json()["code"]) == (400, "VPC.0101")
    assert subnet["id"] in answer.json()["message"]
    wider = service.http("PUT", path, json={"vpc": {"cidr": "192.0.0.0/8"}})
    assert wider.json()["vpc"]["cidr"] == "192.0.0.0/8"


def test_a_subnet_is_changed(service: Service, vpc: dict[str, Any], subnet: dict[str, Any]) -> None:
    path = f"/v1/{{p}}/vpcs/{vpc['id']}/subnets/{subnet['id']}"
    body = {
        "subnet": {"name": "tf-subnet-2", "dhcp_enable": False, "primary_dns": "8.8.8.8", "secondary_dns": ""}
    }
    answer = service.http("PUT", path, json=body).json()["subnet"]
    assert answer == {"id": subnet["id"], "status": "ACTIVE"}
    shown = service.http("GET", f"/v1/{{p}}/subnets/{subnet['id']}").json()["subnet"]
    assert (shown["name"], shown["dhcp_enable"], shown["cidr"]) == ("tf-subnet-2", False, "192.168.1.0/24")
    assert shown["dnsList"][0] == shown["primary_dns"] == "8.8.8.8"
    elsewhere = f"/v1/{{p}}/vpcs/{service.facts.vpc_id}/subnets/{subnet['id']}"
    assert service.http("PUT", elsewhere, json=body).status_code == 404


def test_networks_have_no_tags_and_setting_some_is_not_built(
    service: Service, vpc: dict[str, Any], subnet: dict[str, Any]
) -> None:
    for path in (f"/v2.0/{{p}}/vpcs/{vpc['id']}/tags", f"/v2.0/{{p}}/subnets/{subnet['id']}/tags"):
        assert service.http("GET", path).json() == {"tags": []}
        body = {"action": "create", "tags": [{"key": "a", "value": "b"}]}
        assert service.http("POST", f"{path}/action", json=body).status_code == 501
    assert service.http("GET", "/v2.0/{p}/vpcs/nothing/tags").status_code == 404


def test_a_security_group_is_changed_in_both_forms(service: Service) -> None:
    body = {"security_group": {"name": "tf-group", "description": "one"}}
    group = service.http("POST", "/v3/{p}/vpc/security-groups", json=body).json()["security_group"]
    path = f"/v3/{{p}}/vpc/security-groups/{group['id']}"
    changed = service.http("PUT", path, json={"security_group": {"name": "tf-2", "description": ""}}).json()
    assert (changed["security_group"]["name"], changed["security_group"]["description"]) == ("tf-2", "")
    neutron = f"/v2.0/security-groups/{group['id']}"
    changed = service.http("PUT", neutron, json={"security_group": {"description": "three"}}).json()
    assert (changed["security_group"]["name"], changed["security_group"]["description"]) == ("tf-2", "three")
    assert service.http("DELETE", path).status_code == 204
    assert service.http("PUT", path, json=body).status_code == 404


@pytest.fixture
def group(service: Service) -> Iterator[str]:
    body = {"security_group": {"name": "tf-rules"}}
    made = service.http("POST", "/v2.0/security-groups", json=body).json()["security_group"]["id"]
    yield made
    assert service.http("DELETE", f"/v2.0/security-groups/{made}").status_code == 204


RULES = {
    "v1": "/v1/{p}/security-group-rules",
    "v2.0": "/v2.0/security-group-rules",
    "v3": "/v3/{p}/vpc/security-group-rules",
}


@pytest.mark.parametrize("form", RULES)
def test_rules_are_added_shown_and_removed(service: Service, group: str, form: str) -> None:
    ports = {"multiport": "6379"} if form == "v3" else {"port_range_min": 6379, "port_range_max": 6379}
    rule = {
        "security_group_id": group,
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": "tcp",
        "remote_ip_prefix": "10.0.0.0/24",
        "description": "of a test",
    } | ports
    answer = service.http("POST", RULES[form], json={"security_group_rule": rule})
    assert answer.status_code in (200, 201), answer.text
    made = answer.json()["security_group_rule"]
    assert rule.items() <= made.items()
    for other, path in RULES.items():
        shown = service.http("GET", f"{path}/{made['id']}").json()["security_group_rule"]
        assert (shown["id"], shown["protocol"]) == (made["id"], "tcp"), other
        listed = service.http("GET", path, params={"security_group_id": group}).json()
        assert [one["direction"] for one in listed["security_group_rules"]] == [
            "ingress",
            "egress",
            "ingress",
        ]
    for rule_id in [one["id"] for one in listed["security_group_rules"]]:
        assert service.http("DELETE", f"{RULES[form]}/{rule_id}").status_code == 204
    assert service.http("GET", f"{RULES[form]}/{made['id']}").status_code == 404
    shown = service.http("GET", f"/v2.0/security-groups/{group}").json()["security_group"]
    assert shown["security_group_rules"] == []


def test_a_rule_of_many_ports_has_none_in_the_older_forms(service: Service, group: str) -> None:
    rule = {"security_group_id": group, "direction": "egress", "protocol": "tcp", "multiport": "22,80-90"}
    body = {"security_group_rule": rule | {"action": "deny", "priority": 5}}
    made = service.http("POST", RULES["v3"], json=body).json()["security_group_rule"]
    assert (made["multiport"], made["action"], made["priority"]) == ("22,80-90", "deny", 5)
    old = service.http("GET", f"{RULES['v2.0']}/{made['id']}").json()["security_group_rule"]
    assert old.get("port_range_min") is None


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"direction": "sideways"}, 400),
        ({"direction": None}, 400),
        ({"port_range_min": 90, "port_range_max": 80}, 400),
        ({"port_range_min": 70000}, 400),
        ({"remote_ip_prefix": "10.0.0.0/40"}, 400),
        ({"remote_ip_prefix": "::/0"}, 400),
        ({"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": "x"}, 400),
        ({"remote_group_id": "nothing"}, 404),
        ({"security_group_id": "nothing"}, 404),
    ],
)
def test_a_rule_that_cannot_be_is_refused(
    service: Service, group: str, wrong: dict[str, Any], status: int
) -> None:
    rule = {"security_group_id": group, "direction": "ingress", "protocol": "tcp"} | wrong
    answer = service.http("POST", RULES["v2.0"], json={"security_group_rule": rule})
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["code"], str)


def test_a_group_takes_its_rules_and_those_about_it_along(service: Service, group: str) -> None:
    body = {"security_group": {"name": "tf-other"}}
    other = service.http("POST", "/v2.0/security-groups", json=body).json()["security_group"]["id"]
    rule = {"security_group_id": group, "direction": "ingress", "remote_group_id": other}
    assert service.http("POST", RULES["v2.0"], json={"security_group_rule": rule}).status_code == 201
    assert service.http("DELETE", f"/v2.0/security-groups/{other}").status_code == 204
    left = service.http("GET", RULES["v2.0"]).json()["security_group_rules"]
    assert other not in {one["security_group_id"] for one in left}
    assert other not in {one.get("remote_group_id") for one in left}


# --- what Terraform sends ---------------------------------------------------------------------------


@contextmanager
def created(service: Service, body: dict[str, Any]) -> Iterator[Cache]:
    facts = service.facts
    network = {"vpc_id": facts.vpc_id, "subnet_id": facts.subnet_id}
    answer = service.http("POST", "/v2/{p}/instances", json=body | network)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"instances"}
    cache = Cache(service, answer.json()["instances"][0]["instance_id"])
    try:
        cache.until_running()
        yield cache
    finally:
        remove(cache)


def test_the_huawei_cloud_provider_creates_and_changes_an_instance(service: Service) -> None:
    body = {
        "az_codes": service.facts.az_codes[:2],
        "capacity": 0.125,
        "engine": "Redis",
        "engine_version": "5.0",
        "instance_backup_policy": {
            "backup_type": "auto",
            "periodical_backup_plan": {"backup_at": [4], "begin_at": "00:00-01:00", "period_type": "weekly"},
            "save_days": 1,
        },
        "instance_num": 1,
        "maintain_begin": "22:00:00",
        "maintain_end": "23:00:00",
        "name": "tf_test_x",
        "password": "Huawei_test",
        "port": 6388,
        "rename_commands": {"keys": "keys001", "flushall": "flushall001"},
        "spec_code": HA,
        "tags": [{"key": "owner", "value": "terraform"}],
    }
    with created(service, body) as cache:
        shown = cache.show()
        assert (shown["port"], shown["capacity"], shown["capacity_minor"]) == (6388, 0, ".125")
        policy = shown["instance_backup_policy"]["policy"]
        assert policy["periodical_backup_plan"]["backup_at"] == [4]
        update = {"name": "tf_test_y", "maintain_begin": "02:00:00", "maintain_end": "03:00:00"} | {
            "description": "changed",
            "security_group_id": "",
            "instance_backup_policy": body["instance_backup_policy"],
        }
        assert cache.http("PUT", json=update).status_code == 204
        assert cache.until_running()["name"] == "tf_test_y"
        found = service.http("GET", "/v2/{p}/flavors", params={"spec_code": HA}).json()["flavors"]
        assert (found[0]["cache_mode"], found[0]["replica_count"]) == ("ha", 2)
        resize = {"change_type": "", "new_capacity": 0.25, "spec_code": HA.replace("128", "256")}
        assert cache.http("POST", "/resize", json=resize).status_code == 204
        assert cache.until_running()["spec_code"] == HA.replace("128", "256")
        reset = cache.http("POST", "/password/reset", json={"no_password_access": True})
        assert reset.json()["result"] == "success"
        assert cache.until_running()["no_password_access"] == "true"


def test_the_open_telekom_cloud_provider_creates_and_changes_an_instance(service: Service) -> None:
    zones = service.http("GET", "/v1.0/availableZones").json()["available_zones"]
    body = {
        "name": "otc-one",
        "engine": "Redis",
        "engine_version": "6.0",
        "capacity": 0.125,
        "instance_num": 1,
        "spec_code": SINGLE,
        "az_codes": [zones[1]["id"]],
        "no_password_access": False,
        "password": "Telekom_test1",
        "bss_param": {"charging_mode": ""},
        "rename_commands": {},
        "instance_backup_policy": {"backup_type": ""},
        "security_group_id": "",
        "enable_publicip": None,
        "tags": [],
    }
    with created(service, body) as cache:
        shown = cache.show()
        assert shown["az_codes"] == [zones[1]["code"]]
        assert shown.get("instance_backup_policy") is None
        assert shown.get("security_group_id") is None
        everything = {
            "name": "otc-two",
            "port": shown["port"],
            "description": "",
            "maintain_begin": shown["maintain_begin"],
            "maintain_end": "03:00:00",
            "security_group_id": "",
            "rename_commands": {},
        }
        assert cache.http("PUT", json=everything).status_code == 204
        assert cache.show()["task"] is None  # nothing to restart for
        resize = {
            "spec_code": SINGLE.replace("128", "256"),
            "new_capacity": 0.25,
            "bss_param": {},
            "execute_immediately": None,
        }
        assert cache.http("POST", "/resize", json=resize).status_code == 204
        assert cache.show()["status"] in ("EXTENDING", "RUNNING")
        cache.until_running()
        change = {"old_password": "Telekom_test1", "new_password": "Telekom_test2"}
        assert cache.http("PUT", "/password", json=change).json()["result"] == "success"
