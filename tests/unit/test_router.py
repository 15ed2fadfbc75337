"""The router finds the operation that a path means, however it is spelled."""

import pytest

from cacheyard.api.router import Router
from cacheyard.contract.model import Operation
from cacheyard.contract.operations import OPERATIONS
from cacheyard.errors import MethodNotAllowed, NotFound

ROUTER = Router(OPERATIONS.values())


def operation(name: str, method: str, path: str) -> Operation:
    return Operation(
        id=name,
        section="",
        method=method,
        path=path,
        tag="",
        summary="",
        family="v2",
        success=200,
        action=None,
        public=False,
        project_scoped=False,
        parameters=(),
        body=None,
        body_required=False,
        answer=None,
        deprecated=False,
    )


def found(method: str, path: str) -> str:
    return ROUTER.find(method, path)[0].id


@pytest.mark.parametrize("order", [1, -1])
def test_a_literal_segment_wins_over_a_parameter_in_whatever_order(order: int) -> None:
    router = Router([operation("any", "GET", "/a/{id}"), operation("one", "GET", "/a/status")][::order])
    assert router.find("GET", "/a/status")[0].id == "one"
    assert router.find("GET", "/a/x")[0].id == "any"


def test_a_literal_that_leads_nowhere_is_taken_for_a_parameter() -> None:
    router = Router([operation("one", "GET", "/a/status"), operation("tags", "GET", "/a/{id}/tags")])
    tags, values = router.find("GET", "/a/status/tags")
    assert (tags.id, values) == ("tags", {"id": "status"})


def test_a_method_that_only_the_parameter_has_is_found_behind_the_literal() -> None:
    router = Router([operation("one", "GET", "/a/status"), operation("put", "PUT", "/a/{id}")])
    assert router.find("PUT", "/a/status") == (operation("put", "PUT", "/a/{id}"), {"id": "status"})


def test_the_fixed_paths_of_the_contract_are_not_instances() -> None:
    assert found("GET", "/v2/p/instances/status") == "list_number_of_instances_in_different_status"
    assert found("GET", "/v2/p/instances/statistic") == "list_statistics_of_running_instances"
    assert found("GET", "/v2/instances/maintain-windows") == "list_maintenance_windows"
    assert found("GET", "/v1.0/instances/maintain-windows") == "v1_list_maintenance_windows"


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.id)
def test_every_operation_is_found_under_both_spellings(operation: Operation) -> None:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    path = operation.path
    for number, name in enumerate(names):
        path = path.replace("{" + name + "}", f"x{number}")
    values = {name: f"x{number}" for number, name in enumerate(names)}
    assert ROUTER.find(operation.method, path) == (operation, values)
    if "/instances/" in path:
        assert ROUTER.find(operation.method, path.replace("/instances/", "/instance/")) == (operation, values)
    if "/instance/" in path:
        assert ROUTER.find(operation.method, path.replace("/instance/", "/instances/")) == (operation, values)


def test_what_clients_spell_one_way_and_the_contract_the_other() -> None:
    for word in ("instance", "instances"):
        base = f"/v2/p/{word}/i"
        assert found("PUT", f"{base}/whitelist") == "update_ip_whitelist"
        assert found("GET", f"{base}/whitelist") == "show_ip_whitelist"
        assert found("POST", f"{base}/groups/g/replications/n/slave-priority") == "update_slave_priority"
        assert found("DELETE", f"{base}/groups/g/replications/n/remove-ip") == "delete_ip_from_domain_name"
        assert found("GET", base) == "show_instance"


def test_an_id_that_reads_instance_stays_as_it_is() -> None:
    router = Router([operation("one", "GET", "/a/{id}/b")])
    assert router.find("GET", "/a/instance/b")[1] == {"id": "instance"}


def test_two_operations_with_one_path_are_an_error_of_the_contract() -> None:
    with pytest.raises(ValueError, match="b and a"):
        Router([operation("a", "GET", "/instance/{id}"), operation("b", "GET", "/instances/{name}")])


def test_parameters_are_decoded_and_an_encoded_slash_divides_nothing() -> None:
    assert ROUTER.find("GET", "/v2/p/instances/a%20b%2Fc%C3%A4")[1] == {
        "project_id": "p",
        "instance_id": "a b/cä",
    }
    assert found("GET", "/v2/p/inst%61nces") == "list_instances"


@pytest.mark.parametrize("path", ["/v2/p/instances/", "/v2/p/instances", "v2/p/instances"])
def test_a_slash_at_the_end_makes_no_difference(path: str) -> None:
    assert found("GET", path) == "list_instances"


def test_the_root_is_a_path_like_any() -> None:
    assert found("GET", "/") == "keystone_list_versions"
    assert found("GET", "/v3/") == "keystone_show_version"


@pytest.mark.parametrize(
    "path", ["/v2", "/v2//instances", "/v2/p/nothing", "/v9/p/instances", "/v2/p/instances/i/x"]
)
def test_a_path_of_no_operation_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        ROUTER.find("GET", path)


def test_a_method_of_no_operation_on_a_known_path_is_not_allowed() -> None:
    for method, path in (("PATCH", "/v2/p/instances/i"), ("GET", "/v2/p/instances/i/resize"), ("POST", "/")):
        with pytest.raises(MethodNotAllowed):
            ROUTER.find(method, path)
