"""Subnets, in the VPC API's form (v1) and as Neutron's networks and subnets (v2.0), under one id.

A subnet shows the range that its owner chose. Its instances get addresses of its pool: the range
itself when it lies in the region's slice, else a part of the slice of the same size.
"""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.contract import types as t
from cacheyard.domain.network import (
    LOOPBACK,
    SMALLEST_SUBNET,
    Subnet,
    free_pool,
    parse_cidr,
    reserved,
)
from cacheyard.ids import new_id
from cacheyard.services.call import Call
from cacheyard.services.network import (
    BadSubnet,
    NoRoomForSubnet,
    NoSubnet,
    NoVpc,
    SubnetInUse,
    checked_description,
    checked_name,
    page,
    project_of,
    seconds,
)
from cacheyard.store import network
from cacheyard.store.identity import fact

# --- VPC API --------------------------------------------------------------------------------------


def list_subnets(call: Call[Any]) -> t.ListSubnetsResponse:
    """4.2: the project's subnets, of one VPC when asked for."""
    with call.house.store.read() as tx:
        found = network.subnets_of(tx, project_of(call))
        rows, _ = page(found, call.parameters, "vpc_id")
        return t.ListSubnetsResponse(subnets=[_v1(subnet, network.free_count(tx, subnet)) for subnet in rows])


def show_subnet(call: Call[Any]) -> t.ShowSubnetResponse:
    """One subnet."""
    with call.house.store.read() as tx:
        subnet = _get(tx, call)
        return t.ShowSubnetResponse(subnet=_v1(subnet, network.free_count(tx, subnet)))


def create_subnet(call: Call[t.CreateSubnetRequestBody]) -> t.CreateSubnetResponse:
    """A new subnet in a VPC, and a pool of addresses for it."""
    option = call.body.subnet or t.CreateSubnetOption()
    cidr = _checked_cidr(option.cidr)
    gateway = _checked_gateway(option.gateway_ip, cidr)
    if not option.name:
        raise BadSubnet(parameter="name", why="is missing")
    given = {name: getattr(option, name) for name in _Shown.__struct_fields__}
    with call.house.store.write() as tx:
        vpc = network.get_vpc(tx, project_of(call), option.vpc_id or "")
        if vpc is None:
            raise NoVpc
        if vpc.cidr and not cidr.subnet_of(IPv4Network(vpc.cidr)):
            raise BadSubnet(parameter="cidr", why=f"must be inside the VPC's {vpc.cidr}")
        for other in network.subnets_of(tx, vpc.project_id, vpc.id):
            if cidr.overlaps(IPv4Network(other.cidr)):
                raise BadSubnet(parameter="cidr", why=f"overlaps {other.cidr} of subnet {other.id}")
        subnet = Subnet(
            id=new_id(),
            project_id=vpc.project_id,
            vpc_id=vpc.id,
            name=checked_name(option.name),
            description=checked_description(option.description),
            cidr=str(cidr),
            gateway_ip=str(gateway),
            pool=str(_pool(tx, cidr)),
            shown={name: msgspec.to_builtins(value) for name, value in given.items() if value is not None},
            created_at=now_ms(),
        )
        network.add_subnet(tx, subnet)
        return t.CreateSubnetResponse(subnet=_v1(subnet, network.free_count(tx, subnet)))


def update_subnet(call: Call[t.UpdateSubnetRequestBody]) -> t.UpdateSubnetResponse:
    """Another name, description or DHCP settings; what is not sent stays, as do range and gateway."""
    option = call.body.subnet or t.UpdateSubnetOption()
    sent = {
        name: value for name in _Shown.__struct_fields__ if (value := getattr(option, name, None)) is not None
    }
    if "dnsList" in sent:  # the other spelling must not contradict it
        sent["primary_dns"], sent["secondary_dns"] = [*sent["dnsList"], "", ""][:2]
    elif "primary_dns" in sent or "secondary_dns" in sent:
        sent["dnsList"] = []
    values: dict[str, Any] = {}
    if option.name is not None:
        values["name"] = checked_name(option.name)
    if option.description is not None:
        values["description"] = checked_description(option.description)
    with call.house.store.write() as tx:
        subnet = _get(tx, call)
        if call.parameters["vpc_id"] != subnet.vpc_id:
            raise NoSubnet(subnet_id=subnet.id)
        if sent:
            values["shown"] = subnet.shown | msgspec.to_builtins(sent)
        if values:
            network.change_subnet(tx, subnet.id, **values)
    return t.UpdateSubnetResponse(subnet=t.UpdatedSubnet(id=subnet.id, status="ACTIVE"))


def list_subnet_tags(call: Call[Any]) -> t.ListVpcTagsResponse:
    """Always none: subnets have no tags here."""
    with call.house.store.read() as tx:
        _get(tx, call)
    return t.ListVpcTagsResponse(tags=[])


def delete_subnet(call: Call[Any]) -> None:
    """Delete a subnet; refused while instances are in it."""
    with call.house.store.write() as tx:
        subnet = _get(tx, call)
        if call.parameters.get("vpc_id") not in (None, subnet.vpc_id):
            raise NoSubnet(subnet_id=subnet.id)
        if network.subnet_in_use(tx, subnet.id):
            raise SubnetInUse
        network.remove_subnet(tx, subnet.id)


delete_vpc_subnet = delete_subnet


# --- Neutron --------------------------------------------------------------------------------------


def neutron_list_networks(call: Call[Any]) -> t.NeutronListNetworksResponse:
    """Each subnet is a network of its own."""
    rows, marker = _neutron_page(call)
    return t.NeutronListNetworksResponse(
        networks=[_network(subnet) for subnet in rows], networks_links=_next(call, "networks", marker)
    )


def neutron_show_network(call: Call[Any]) -> t.NeutronShowNetworkResponse:
    """The network of a subnet."""
    with call.house.store.read() as tx:
        return t.NeutronShowNetworkResponse(network=_network(_get(tx, call, "network_id")))


def neutron_list_subnets(call: Call[Any]) -> t.NeutronListSubnetsResponse:
    """The project's subnets."""
    rows, marker = _neutron_page(call)
    return t.NeutronListSubnetsResponse(
        subnets=[_neutron(subnet) for subnet in rows], subnets_links=_next(call, "subnets", marker)
    )


def neutron_show_subnet(call: Call[Any]) -> t.NeutronShowSubnetResponse:
    """One subnet."""
    with call.house.store.read() as tx:
        return t.NeutronShowSubnetResponse(subnet=_neutron(_get(tx, call)))


# --- Rules and forms ------------------------------------------------------------------------------


def _get(tx: Connection, call: Call[Any], parameter: str = "subnet_id") -> Subnet:
    subnet_id = str(call.parameters[parameter])
    subnet = network.get_subnet(tx, project_of(call), subnet_id)
    if subnet is None:
        raise NoSubnet(subnet_id=subnet_id)
    return subnet


def _checked_cidr(text: str | None) -> IPv4Network:
    cidr = parse_cidr(text or "")
    if cidr is None or cidr.prefixlen > SMALLEST_SUBNET:
        raise BadSubnet(parameter="cidr", why=f"must be an IPv4 network, /{SMALLEST_SUBNET} at most")
    return cidr


def _checked_gateway(text: str | None, cidr: IPv4Network) -> IPv4Address:
    try:
        gateway = IPv4Address(text or "")
    except ValueError:
        raise BadSubnet(parameter="gateway_ip", why="must be an IPv4 address") from None
    if gateway not in cidr or gateway in (cidr.network_address, cidr.broadcast_address):
        raise BadSubnet(parameter="gateway_ip", why=f"must be an address of {cidr}")
    return gateway


def _pool(tx: Connection, cidr: IPv4Network) -> IPv4Network:
    """Where the subnet's addresses will come from."""
    region = IPv4Network(fact(tx, "slice"))
    used = network.pools(tx)
    if cidr.overlaps(LOOPBACK):
        # loopback addresses are real ones: those of the slice are ours, the others are not
        if not cidr.subnet_of(region):
            raise BadSubnet(parameter="cidr", why=f"must be inside {region} or outside {LOOPBACK}")
        if any(cidr.overlaps(other) for other in used):
            raise BadSubnet(parameter="cidr", why="overlaps addresses of another subnet")
        return cidr
    pool = free_pool(region, cidr, used)
    if pool is None:
        raise NoRoomForSubnet(cidr=region)
    return pool


class _Shown(msgspec.Struct):
    """What a client set, means nothing here, and is given back."""

    dhcp_enable: bool = True
    primary_dns: str = ""
    secondary_dns: str = ""
    dnsList: list[str] = []  # noqa: N815 - the API's spelling
    availability_zone: str = ""
    extra_dhcp_opts: list[t.ExtraDhcpOption] = []


def _shown(subnet: Subnet) -> _Shown:
    """With both spellings of the name servers, whichever the client used."""
    shown = msgspec.convert(subnet.shown, _Shown)
    servers = shown.dnsList or [name for name in (shown.primary_dns, shown.secondary_dns) if name]
    return msgspec.structs.replace(
        shown,
        dnsList=servers,
        primary_dns=shown.primary_dns or "".join(servers[:1]),
        secondary_dns=shown.secondary_dns or "".join(servers[1:2]),
    )


def _v1(subnet: Subnet, free: int) -> t.Subnet:
    shown = _shown(subnet)
    return t.Subnet(
        id=subnet.id,
        name=subnet.name,
        description=subnet.description,
        cidr=subnet.cidr,
        gateway_ip=subnet.gateway_ip,
        ipv6_enable=False,
        dhcp_enable=shown.dhcp_enable,
        primary_dns=shown.primary_dns,
        secondary_dns=shown.secondary_dns,
        dnsList=shown.dnsList,
        availability_zone=shown.availability_zone,
        vpc_id=subnet.vpc_id,
        status="ACTIVE",
        neutron_network_id=subnet.id,
        neutron_subnet_id=subnet.id,
        extra_dhcp_opts=shown.extra_dhcp_opts,
        created_at=seconds(subnet.created_at),
        updated_at=seconds(subnet.created_at),
        tenant_id=subnet.project_id,
        available_ip_address_count=free,
    )


def _neutron_page(call: Call[Any]) -> tuple[list[Subnet], str | None]:
    with call.house.store.read() as tx:
        found = network.subnets_of(tx, project_of(call))
    parameters = dict(call.parameters)
    if wanted := parameters.get("network_id"):
        found = [subnet for subnet in found if subnet.id == wanted]
    for name in ("tenant_id", "project_id"):
        if wanted := parameters.get(name):
            found = [subnet for subnet in found if subnet.project_id == wanted]
    return page(found, parameters, "id", "name", "cidr")


def _next(call: Call[Any], kind: str, marker: str | None) -> list[t.NeutronPageLink]:
    if marker is None:
        return []
    query = f"limit={call.parameters.get('limit')}&marker={marker}"
    return [t.NeutronPageLink(rel="next", href=f"{call.base_url}/v2.0/{kind}?{query}")]


def _network(subnet: Subnet) -> t.NeutronNetwork:
    return t.NeutronNetwork(
        id=subnet.id,
        name=subnet.name,
        status="ACTIVE",
        admin_state_up=True,
        shared=False,
        subnets=[subnet.id],
        tenant_id=subnet.project_id,
        project_id=subnet.project_id,
        availability_zones=[],
        availability_zone_hints=[],
        port_security_enabled=True,
        created_at=seconds(subnet.created_at),
        updated_at=seconds(subnet.created_at),
    )


def _neutron(subnet: Subnet) -> t.NeutronSubnet:
    """With the addresses that there really are as its allocation pool."""
    pool, shown = IPv4Network(subnet.pool), _shown(subnet)
    usable = sorted({int(pool[1]), int(pool[2]), int(pool[-2])} - reserved(subnet))
    ends = [t.NeutronAllocationPool(start=str(IPv4Address(usable[0])), end=str(IPv4Address(usable[-1])))]
    return t.NeutronSubnet(
        id=subnet.id,
        name=subnet.name,
        network_id=subnet.id,
        tenant_id=subnet.project_id,
        project_id=subnet.project_id,
        cidr=subnet.cidr,
        gateway_ip=subnet.gateway_ip,
        ip_version=4,
        enable_dhcp=shown.dhcp_enable,
        dns_nameservers=shown.dnsList,
        allocation_pools=ends,
        host_routes=[],
        created_at=seconds(subnet.created_at),
        updated_at=seconds(subnet.created_at),
    )
