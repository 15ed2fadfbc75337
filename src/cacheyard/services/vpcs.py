"""VPCs, in the forms of the VPC API's v1 and v3. A VPC is a label over subnets: it isolates nothing here."""

from ipaddress import IPv4Network
from typing import Any

from msgspec.structs import replace

from cacheyard.clock import now_ms
from cacheyard.contract import types as t
from cacheyard.domain.network import SMALLEST_SUBNET, Vpc, parse_cidr
from cacheyard.ids import new_id
from cacheyard.services.call import Call
from cacheyard.services.network import (
    DEFAULT_ENTERPRISE,
    BadNetworkParameter,
    NoVpc,
    VpcInUse,
    checked_description,
    checked_name,
    page,
    project_of,
    seconds,
)
from cacheyard.store import network


def list_vpcs(call: Call[Any]) -> t.ListVpcsResponse:
    """4.1: the project's VPCs."""
    with call.house.store.read() as tx:
        found = network.vpcs_of(tx, project_of(call))
    rows, _ = page(found, call.parameters, "id", "name", "cidr")
    return t.ListVpcsResponse(vpcs=[_v1(vpc) for vpc in rows])


def create_vpc(call: Call[t.CreateVpcRequestBody]) -> t.CreateVpcResponse:
    """A new VPC of any range, or of none."""
    option = call.body.vpc or t.CreateVpcOption()
    return t.CreateVpcResponse(vpc=_v1(_create(call, option.name, option.description, option.cidr)))


def show_vpc(call: Call[Any]) -> t.ShowVpcResponse:
    """One VPC."""
    return t.ShowVpcResponse(vpc=_v1(_get(call)))


def update_vpc(call: Call[t.UpdateVpcRequestBody]) -> t.UpdateVpcResponse:
    """Another name, description or range; what is not sent stays. The range must hold the subnets."""
    option = call.body.vpc or t.UpdateVpcOption()
    values: dict[str, str] = {}
    if option.name is not None:
        values["name"] = checked_name(option.name)
    if option.description is not None:
        values["description"] = checked_description(option.description)
    if option.cidr is not None:
        values["cidr"] = _checked_cidr(option.cidr)
    with call.house.store.write() as tx:
        vpc = network.get_vpc(tx, project_of(call), str(call.parameters["vpc_id"]))
        if vpc is None:
            raise NoVpc
        for subnet in network.subnets_of(tx, vpc.project_id, vpc.id) if "cidr" in values else ():
            if not IPv4Network(subnet.cidr).subnet_of(IPv4Network(values["cidr"])):
                raise BadNetworkParameter(parameter="cidr", why=f"must hold {subnet.cidr} of {subnet.id}")
        if values:
            network.change_vpc(tx, vpc.id, **values)
    return t.UpdateVpcResponse(vpc=_v1(replace(vpc, **values)))


def list_vpc_tags(call: Call[Any]) -> t.ListVpcTagsResponse:
    """Always none: VPCs have no tags here."""
    _get(call)
    return t.ListVpcTagsResponse(tags=[])


def delete_vpc(call: Call[Any]) -> None:
    """Delete a VPC; refused while it has subnets."""
    with call.house.store.write() as tx:
        vpc = network.get_vpc(tx, project_of(call), str(call.parameters["vpc_id"]))
        if vpc is None:
            raise NoVpc
        if network.subnets_of(tx, vpc.project_id, vpc.id):
            raise VpcInUse
        network.remove_vpc(tx, vpc.id)


def list_vpcs_v3(call: Call[Any]) -> t.ListVpcsV3Response:
    """The project's VPCs."""
    project_id = project_of(call)
    with call.house.store.read() as tx:
        found = network.vpcs_of(tx, project_id)
        subnets = [subnet.vpc_id for subnet in network.subnets_of(tx, project_id)]
    rows, marker = page(found, call.parameters, "id", "name", "cidr", "description")
    return t.ListVpcsV3Response(
        vpcs=[_v3(vpc, subnets.count(vpc.id)) for vpc in rows],
        page_info=t.PageInfo(current_count=len(rows), next_marker=marker),
    )


def create_vpc_v3(call: Call[t.CreateVpcV3RequestBody]) -> t.CreateVpcV3Response:
    """A new VPC."""
    option = call.body.vpc or t.CreateVpcV3Option()
    return t.CreateVpcV3Response(vpc=_v3(_create(call, option.name, option.description, option.cidr), 0))


def show_vpc_v3(call: Call[Any]) -> t.ShowVpcV3Response:
    """One VPC."""
    vpc = _get(call)
    with call.house.store.read() as tx:
        subnets = len(network.subnets_of(tx, vpc.project_id, vpc.id))
    return t.ShowVpcV3Response(vpc=_v3(vpc, subnets))


delete_vpc_v3 = delete_vpc


def _get(call: Call[Any]) -> Vpc:
    with call.house.store.read() as tx:
        vpc = network.get_vpc(tx, project_of(call), str(call.parameters["vpc_id"]))
    if vpc is None:
        raise NoVpc
    return vpc


def _create(call: Call[Any], name: str | None, description: str | None, cidr: str | None) -> Vpc:
    vpc = Vpc(
        id=new_id(),
        project_id=project_of(call),
        name=checked_name(name),
        description=checked_description(description),
        cidr=_checked_cidr(cidr) if cidr else "",
        created_at=now_ms(),
    )
    with call.house.store.write() as tx:
        network.add_vpc(tx, vpc)
    return vpc


def _checked_cidr(cidr: str) -> str:
    parsed = parse_cidr(cidr)
    if parsed is None or parsed.prefixlen > SMALLEST_SUBNET:
        raise BadNetworkParameter(
            parameter="cidr", why=f"must be an IPv4 network, /{SMALLEST_SUBNET} at most"
        )
    return cidr


def _v1(vpc: Vpc) -> t.Vpc:
    return t.Vpc(
        id=vpc.id,
        name=vpc.name,
        description=vpc.description,
        cidr=vpc.cidr,
        status="OK",
        routes=[],
        enterprise_project_id=DEFAULT_ENTERPRISE,
        enable_shared_snat=False,
        created_at=seconds(vpc.created_at),
        updated_at=seconds(vpc.created_at),
        tenant_id=vpc.project_id,
    )


def _v3(vpc: Vpc, subnets: int) -> t.VpcV3:
    return t.VpcV3(
        id=vpc.id,
        name=vpc.name,
        description=vpc.description,
        cidr=vpc.cidr,
        extend_cidrs=[],
        status="ACTIVE",
        project_id=vpc.project_id,
        enterprise_project_id=DEFAULT_ENTERPRISE,
        cloud_resources=[t.CloudResource(resource_type="virsubnet", resource_count=subnets)],
        tags=[],
        created_at=seconds(vpc.created_at) + "Z",
        updated_at=seconds(vpc.created_at) + "Z",
    )
