"""Enterprise projects: instances are created in one that there is, and show its name."""

import json

from support.caches import body_for, made
from support.service import Service

UNKNOWN = "00000000-0000-0000-0000-000000000000"


def test_an_instance_is_in_the_enterprise_project_that_was_asked_for(service: Service) -> None:
    sorted_by = json.loads(service.command("enterprise", "add", "accounting", "--json"))
    with made(service, name="labelled", enterprise_project_id=sorted_by["id"]) as cache:
        shown = cache.show()
        assert (shown["enterprise_project_id"], shown["enterprise_project_name"]) == (
            sorted_by["id"],
            "accounting",
        )
        with made(service, name="plain") as plain:
            shown = plain.show()
            assert (shown["enterprise_project_id"], shown["enterprise_project_name"]) == ("0", "default")
        body = body_for(service, name="nowhere", enterprise_project_id=UNKNOWN)
        refused = service.http("POST", "/v2/{p}/instances", json=body)
        assert (refused.status_code, refused.json()["error_code"]) == (400, "DCS.4800")
        assert "enterprise_project_id" in refused.json()["error_msg"]
        assert service.http("GET", "/v2/{p}/instances?name=nowhere").json()["instance_num"] == 0
    names = [each["name"] for each in json.loads(service.command("enterprise", "list", "--json"))]
    assert names == ["default", "accounting"]
    service.command("enterprise", "delete", "accounting")


def test_networks_are_in_the_default_one(service: Service) -> None:
    for path, listed in (
        ("/v1/{p}/vpcs", "vpcs"),
        ("/v3/{p}/vpc/vpcs", "vpcs"),
        ("/v1/{p}/security-groups", "security_groups"),
        ("/v3/{p}/vpc/security-groups", "security_groups"),
    ):
        every = service.http("GET", path).json()[listed]
        assert every
        for wanted, found in (("0", every), ("all_granted_eps", every), (UNKNOWN, [])):
            answer = service.http("GET", path, params={"enterprise_project_id": wanted})
            assert answer.json()[listed] == found
