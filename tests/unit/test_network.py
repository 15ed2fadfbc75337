"""Networks and addresses: what clients' own ranges become, and that nobody gets an address twice."""

import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, insert
from support.region import Region, open_region

from cacheyard.contract import types as t
from cacheyard.domain.identity import Principal
from cacheyard.domain.network import AddressUnusable, NoAddressLeft, free_pool, zone_of, zones
from cacheyard.errors import Refused, WrongProject
from cacheyard.services import accounts, security_groups, subnets, vpcs
from cacheyard.services.network import (
    BadNetworkParameter,
    BadSubnet,
    NoRoomForSubnet,
    NoSecurityGroup,
    NoSubnet,
    NoVpc,
    SecurityGroupInUse,
    SubnetInUse,
    VpcInUse,
    nova_list_availability_zones,
)
from cacheyard.store import network
from cacheyard.store.tables import instances


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with open_region(tmp_path) as made:
        yield made


@pytest.fixture
def other(region: Region) -> Principal:
    """The same user on another project."""
    project = accounts.add_project(region.store, "other")
    accounts.grant(region.store, "admin", "other", "te_admin")
    return replace(region.admin, project_id=project.id, project_name="other")


def make_vpc(region: Region, cidr: str | None = "192.168.0.0/16", name: str = "v") -> str:
    body = t.CreateVpcRequestBody(vpc=t.CreateVpcOption(name=name, cidr=cidr))
    made = vpcs.create_vpc(region.call(body)).vpc
    assert made is not None
    return str(made.id)


def make_subnet(region: Region, vpc_id: str, cidr: str, **more: Any) -> t.Subnet:
    gateway = str(IPv4Network(cidr, strict=False)[1])
    option = t.CreateSubnetOption(
        **{"name": "s", "cidr": cidr, "gateway_ip": gateway, "vpc_id": vpc_id, **more}
    )
    made = subnets.create_subnet(region.call(t.CreateSubnetRequestBody(subnet=option))).subnet
    assert made is not None
    return made


def pool_of(region: Region, subnet_id: str | None) -> str:
    with region.store.read() as tx:
        found = network.subnet_by_id(tx, str(subnet_id))
    assert found is not None
    return found.pool


def put_instance(tx: Connection, region: Region, instance_id: str, subnet_id: str) -> None:
    """As little of an instance as the tables take."""
    given: dict[str, Any] = {"id": instance_id, "project_id": region.first.project_id, "subnet_id": subnet_id}
    given |= {"vpc_id": region.first.vpc_id, "security_group_id": region.first.security_group_id}
    plain: dict[type, Any] = {str: "", int: 0, bool: False}
    for column in instances.columns:
        if column.name not in given and not column.nullable:
            given[column.name] = plain.get(column.type.python_type, [])
    tx.execute(insert(instances).values(**given))


def take(region: Region, subnet_id: str, wanted: str | None = None, instance_id: str = "i") -> str:
    with region.store.write() as tx:
        return network.take_address(tx, subnet_id, instance_id, wanted)


@pytest.fixture
def small(region: Region) -> str:
    """A subnet with 13 addresses, and an instance `i` in it."""
    made = make_subnet(region, make_vpc(region), "192.168.0.0/28")
    with region.store.write() as tx:
        put_instance(tx, region, "i", str(made.id))
    return str(made.id)


# --- Addresses ------------------------------------------------------------------------------------


def test_addresses_come_lowest_first_without_gateway_and_ends(region: Region, small: str) -> None:
    pool = IPv4Network(pool_of(region, small))
    taken = [take(region, small) for _ in range(13)]
    assert taken == [str(pool[offset]) for offset in range(2, 15)]
    with pytest.raises(NoAddressLeft) as refused:
        take(region, small)
    assert refused.value.code == "DCS.4911"


def test_an_address_that_comes_back_is_given_again(region: Region, small: str) -> None:
    taken = [take(region, small) for _ in range(13)]
    with region.store.write() as tx:
        network.free_addresses(tx, "i", [taken[4], taken[9]])
        assert network.addresses_of(tx, "i") == [ip for ip in taken if ip not in (taken[4], taken[9])]
    assert [take(region, small), take(region, small)] == [taken[4], taken[9]]
    with region.store.write() as tx:
        network.free_addresses(tx, "i")
        assert network.addresses_of(tx, "i") == []


def test_a_wanted_address_is_given_once(region: Region, small: str) -> None:
    pool = IPv4Network(pool_of(region, small))
    wanted = str(pool[9])
    assert take(region, small, wanted) == wanted
    with pytest.raises(AddressUnusable, match="is in use"):
        take(region, small, wanted)
    assert [take(region, small) for _ in range(8)] == [str(pool[n]) for n in (2, 3, 4, 5, 6, 7, 8, 10)]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("192.168.0.5", "is not in 127"),
        ("x", "is not an IPv4"),
        ("127.0.0.1", "is not in"),
        ("::1", "is not an"),
    ],
)
def test_a_wanted_address_must_be_of_the_pool(region: Region, small: str, wanted: str, why: str) -> None:
    with pytest.raises(AddressUnusable, match=why):
        take(region, small, wanted)


def test_network_gateway_and_broadcast_are_never_given(region: Region, small: str) -> None:
    pool = IPv4Network(pool_of(region, small))
    for address in (pool[0], pool[1], pool[-1]):
        with pytest.raises(AddressUnusable, match="gateway"):
            take(region, small, str(address))


def test_a_gateway_in_the_middle_is_skipped(region: Region) -> None:
    made = make_subnet(region, region.first.vpc_id, "127.64.200.0/28", gateway_ip="127.64.200.5")
    assert (made.cidr, pool_of(region, made.id)) == ("127.64.200.0/28", "127.64.200.0/28")
    with region.store.write() as tx:
        put_instance(tx, region, "i", str(made.id))
    taken = [take(region, str(made.id)) for _ in range(13)]
    assert taken == [f"127.64.200.{n}" for n in (*range(1, 5), *range(6, 15))]


def test_an_address_is_lost_with_the_transaction_that_failed(region: Region, small: str) -> None:
    first = take(region, small)

    def take_and_fail() -> None:
        with region.store.write() as tx:
            network.take_address(tx, small, "i")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        take_and_fail()
    with region.store.write() as tx:
        assert network.addresses_of(tx, "i") == [first]


def test_many_at_once_never_share_an_address(region: Region) -> None:
    subnet_id = region.first.subnet_id
    with region.store.write() as tx:
        put_instance(tx, region, "i", subnet_id)
    taken: list[str] = []

    def work() -> None:
        taken.extend(take(region, subnet_id) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 200
    assert set(taken) == {str(IPv4Address("127.64.0.2") + n) for n in range(200)}


# --- VPCs and subnets -----------------------------------------------------------------------------


def test_the_default_network_is_the_slice_and_its_first_quarter(region: Region) -> None:
    vpc = vpcs.show_vpc(region.call(vpc_id=region.first.vpc_id)).vpc
    subnet = subnets.show_subnet(region.call(subnet_id=region.first.subnet_id)).subnet
    assert vpc is not None
    assert subnet is not None
    assert (vpc.name, vpc.cidr, vpc.status) == ("vpc-default", "127.64.0.0/16", "OK")
    assert (subnet.cidr, subnet.gateway_ip) == ("127.64.0.0/18", "127.64.0.1")
    assert subnet.available_ip_address_count == 16381
    assert subnet.neutron_network_id == subnet.neutron_subnet_id == subnet.id


def test_a_range_of_ones_own_is_shown_and_gets_a_pool_of_the_slice(region: Region) -> None:
    vpc_id = make_vpc(region)
    one = make_subnet(region, vpc_id, "192.168.0.0/24")
    two = make_subnet(region, vpc_id, "192.168.128.0/20")
    assert (one.cidr, one.gateway_ip) == ("192.168.0.0/24", "192.168.0.1")
    assert pool_of(region, one.id) == "127.64.64.0/24"
    assert pool_of(region, two.id) == "127.64.68.0/22"
    three = make_subnet(region, make_vpc(region), "192.168.0.0/24")
    assert pool_of(region, three.id) == "127.64.65.0/24"


def test_name_servers_and_the_like_come_back_as_they_were_set(region: Region) -> None:
    vpc_id = make_vpc(region)
    one = make_subnet(region, vpc_id, "192.168.0.0/24", primary_dns="100.125.4.25", dhcp_enable=False)
    assert (one.primary_dns, one.secondary_dns, one.dnsList) == ("100.125.4.25", "", ["100.125.4.25"])
    assert one.dhcp_enable is False
    two = make_subnet(
        region, vpc_id, "192.168.1.0/24", dnsList=["1.1.1.1", "8.8.8.8"], availability_zone="yard-1a"
    )
    shown = subnets.show_subnet(region.call(subnet_id=two.id)).subnet
    assert shown is not None
    assert (shown.primary_dns, shown.secondary_dns, shown.availability_zone) == (
        "1.1.1.1",
        "8.8.8.8",
        "yard-1a",
    )


@pytest.mark.parametrize(
    ("cidr", "more", "why"),
    [
        ("192.168.0.0/29", {}, "28 at most"),
        ("10.0.0.0/24", {}, "inside the VPC"),
        ("192.168.0.0/24", {"gateway_ip": "192.168.1.1"}, "must be an address of"),
        ("192.168.0.0/24", {"gateway_ip": "192.168.0.255"}, "must be an address of"),
        ("192.168.0.0/24", {"gateway_ip": None}, "IPv4 address"),
        ("192.168.0.1/24", {}, "IPv4 network"),
        ("192.168.0.0/24", {"name": None}, "name is missing"),
        ("192.168.9.0/24", {}, "overlaps"),
    ],
)
def test_a_subnet_that_cannot_be_is_refused(
    region: Region, cidr: str, more: dict[str, Any], why: str
) -> None:
    vpc_id = make_vpc(region)
    make_subnet(region, vpc_id, "192.168.8.0/22")
    with pytest.raises(BadSubnet, match=why):
        make_subnet(region, vpc_id, cidr, **more)


def test_loopback_outside_the_slice_and_taken_parts_of_it_are_refused(region: Region) -> None:
    anywhere = make_vpc(region, None)
    with pytest.raises(BadSubnet, match=r"inside 127\.64\.0\.0/16"):
        make_subnet(region, anywhere, "127.99.0.0/24")
    with pytest.raises(BadSubnet, match="another subnet"):
        make_subnet(region, anywhere, "127.64.1.0/24")
    with pytest.raises(BadSubnet, match="overlaps"):
        make_subnet(region, region.first.vpc_id, "127.64.1.0/24")


def test_a_full_slice_is_said_to_be_full(tmp_path: Path) -> None:
    with open_region(tmp_path, cidr="127.64.0.0/24") as region:
        vpc_id = make_vpc(region)
        for third in range(3):
            make_subnet(region, vpc_id, f"192.168.{third}.0/26")
        with pytest.raises(NoRoomForSubnet):
            make_subnet(region, vpc_id, "192.168.3.0/26")
        first = subnets.list_subnets(region.call(vpc_id=vpc_id)).subnets or []
        subnets.delete_subnet(region.call(subnet_id=first[1].id))
        assert pool_of(region, make_subnet(region, vpc_id, "192.168.3.0/26").id) == "127.64.0.128/26"


def test_free_pools_fill_gaps() -> None:
    region = IPv4Network("127.64.0.0/16")
    used = [IPv4Network(text) for text in ("127.64.0.0/18", "127.64.64.16/28", "127.64.65.0/24")]
    assert free_pool(region, IPv4Network("10.0.0.0/28"), used) == IPv4Network("127.64.64.0/28")
    assert free_pool(region, IPv4Network("10.0.0.0/24"), used) == IPv4Network("127.64.66.0/24")
    assert free_pool(region, IPv4Network("10.0.0.0/8"), used) == IPv4Network("127.64.68.0/22")
    assert free_pool(region, IPv4Network("10.0.0.0/24"), [region]) is None


def test_what_is_in_use_stays(region: Region, small: str) -> None:
    show = subnets.show_subnet(region.call(subnet_id=small)).subnet
    assert show is not None
    with pytest.raises(SubnetInUse):
        subnets.delete_subnet(region.call(subnet_id=small))
    with pytest.raises(VpcInUse):
        vpcs.delete_vpc(region.call(vpc_id=show.vpc_id))
    with pytest.raises(SecurityGroupInUse):
        security_groups.delete_security_group(region.call(security_group_id=region.first.security_group_id))
    for refusal in (SubnetInUse, VpcInUse, SecurityGroupInUse):
        assert refusal.status == 409
    with region.store.write() as tx:
        tx.exec_driver_sql("DELETE FROM instances")
    subnets.delete_vpc_subnet(region.call(subnet_id=small, vpc_id=show.vpc_id))
    vpcs.delete_vpc(region.call(vpc_id=show.vpc_id))
    with pytest.raises(NoVpc):
        vpcs.show_vpc(region.call(vpc_id=show.vpc_id))


def test_another_projects_networks_are_not_there(region: Region, other: Principal) -> None:
    first = region.first
    tries: list[tuple[type[Refused], Any]] = [
        (NoVpc, lambda: vpcs.show_vpc(region.call(who=other, vpc_id=first.vpc_id))),
        (NoVpc, lambda: vpcs.show_vpc_v3(region.call(who=other, vpc_id=first.vpc_id))),
        (NoVpc, lambda: vpcs.delete_vpc(region.call(who=other, vpc_id=first.vpc_id))),
        (NoSubnet, lambda: subnets.show_subnet(region.call(who=other, subnet_id=first.subnet_id))),
        (NoSubnet, lambda: subnets.delete_subnet(region.call(who=other, subnet_id=first.subnet_id))),
        (NoSubnet, lambda: subnets.neutron_show_network(region.call(who=other, network_id=first.subnet_id))),
        (
            NoSecurityGroup,
            lambda: security_groups.delete_security_group(
                region.call(who=other, security_group_id=first.security_group_id)
            ),
        ),
    ]
    for refusal, attempt in tries:
        assert refusal.status == 404
        with pytest.raises(refusal):
            attempt()
    body = t.CreateSubnetRequestBody(
        subnet=t.CreateSubnetOption(name="s", cidr="10.0.0.0/24", gateway_ip="10.0.0.1", vpc_id=first.vpc_id)
    )
    with pytest.raises(NoVpc):
        subnets.create_subnet(region.call(body, who=other))
    assert vpcs.list_vpcs(region.call(who=other)).vpcs == []
    assert subnets.list_subnets(region.call(who=other)).subnets == []
    assert security_groups.list_security_groups(region.call(who=other)).security_groups == []


# --- Lists ----------------------------------------------------------------------------------------


def names(listed: Any) -> list[str]:
    return [one.name for one in listed or []]


def test_lists_are_filtered_and_paged(region: Region) -> None:
    ids = [make_vpc(region, name=name) for name in ("a", "b", "c", "b")]

    def listed(**parameters: Any) -> list[str]:
        return names(vpcs.list_vpcs(region.call(**parameters)).vpcs)

    assert listed() == ["vpc-default", "a", "b", "c", "b"]
    assert listed(name="b") == ["b", "b"]
    assert listed(id=ids[2]) == ["c"]
    assert listed(limit=2) == ["vpc-default", "a"]
    assert listed(limit="2", marker=ids[0]) == ["b", "c"]
    assert listed(marker=ids[3]) == []
    assert listed(marker="gone") == []
    assert listed(limit=0) == []
    with pytest.raises(BadNetworkParameter):
        listed(limit="x")
    with pytest.raises(BadNetworkParameter):
        listed(limit=-1)


def test_v3_lists_say_where_the_next_page_begins(region: Region) -> None:
    ids = [make_vpc(region, name=name) for name in ("a", "b")]
    first = vpcs.list_vpcs_v3(region.call(limit=2))
    assert first.page_info is not None
    assert (first.page_info.current_count, first.page_info.next_marker) == (2, ids[0])
    last = vpcs.list_vpcs_v3(region.call(limit=2, marker=ids[0]))
    assert names(last.vpcs) == ["b"]
    assert last.page_info is not None
    assert last.page_info.next_marker is None
    assert names(vpcs.list_vpcs_v3(region.call(id=[ids[0], ids[1]])).vpcs) == ["a", "b"]


def test_neutrons_forms(region: Region) -> None:
    first = region.first
    (network_,) = subnets.neutron_list_networks(region.call(name="subnet-default")).networks or []
    assert (network_.id, network_.subnets, network_.tenant_id) == (
        first.subnet_id,
        [first.subnet_id],
        first.project_id,
    )
    subnet = subnets.neutron_show_subnet(region.call(subnet_id=first.subnet_id)).subnet
    assert subnet is not None
    assert subnet.allocation_pools == [t.NeutronAllocationPool(start="127.64.0.2", end="127.64.63.254")]
    assert names(subnets.neutron_list_subnets(region.call(network_id=first.subnet_id)).subnets)
    assert subnets.neutron_list_subnets(region.call(tenant_id="else")).subnets == []
    make_subnet(region, make_vpc(region), "192.168.0.0/24")
    links = subnets.neutron_list_networks(region.call(limit=1)).networks_links or []
    assert [(link.rel, str(link.href).split("/v2.0/")[1]) for link in links] == [
        ("next", f"networks?limit=1&marker={first.subnet_id}")
    ]
    nobody = replace(region.admin, project_id=None)
    with pytest.raises(WrongProject):
        subnets.neutron_list_networks(region.call(who=nobody))


def test_security_groups_in_three_forms(region: Region) -> None:
    body = t.NeutronCreateSecurityGroupRequestBody(
        security_group=t.NeutronCreateSecurityGroupOption(name="web")
    )
    made = security_groups.neutron_create_security_group(region.call(body)).security_group
    assert made is not None
    assert [rule.direction for rule in made.security_group_rules or []] == ["ingress", "egress"]
    one = security_groups.show_security_group(region.call(security_group_id=made.id)).security_group
    three = security_groups.show_security_group_v3(region.call(security_group_id=made.id)).security_group
    assert one is not None
    assert three is not None
    assert one.name == three.name == "web"
    assert names(security_groups.list_security_groups(region.call()).security_groups) == ["default", "web"]
    assert names(security_groups.list_security_groups_v3(region.call(name=["web"])).security_groups) == [
        "web"
    ]
    security_groups.delete_security_group(region.call(security_group_id=made.id))
    with pytest.raises(NoSecurityGroup):
        security_groups.show_security_group(region.call(security_group_id=made.id))


@pytest.mark.parametrize("cidr", ["192.168.0.1/16", "192.168.0.0/29", "x", "192.168.0.0", "::/64"])
def test_a_vpc_needs_a_network_or_none(region: Region, cidr: str) -> None:
    with pytest.raises(BadNetworkParameter):
        make_vpc(region, cidr)
    assert make_vpc(region, None)
    assert make_vpc(region, "")


def test_names_are_checked(region: Region) -> None:
    for name in ("a b", "x" * 65, "a/b", "<"):
        with pytest.raises(BadNetworkParameter):
            make_vpc(region, name=name)
    assert make_vpc(region, name="Ünï-1_2.3")


# --- Zones ----------------------------------------------------------------------------------------


def test_zones_are_found_by_id_and_by_code() -> None:
    found = zones("yard-1")
    assert [zone.code for zone in found] == ["yard-1a", "yard-1b", "yard-1c"]
    assert len({zone.id for zone in found}) == 3
    for zone in found:
        assert len(zone.id) == 32
        assert zone_of("yard-1", zone.id) == zone_of("yard-1", zone.code) == zone
    assert zone_of("yard-1", "yard-2a") is None
    assert found == zones("yard-1")


def test_the_compute_api_lists_the_zones(region: Region) -> None:
    listed = nova_list_availability_zones(region.call()).availabilityZoneInfo or []
    assert [(zone.zoneName, zone.zoneState) for zone in listed] == [
        (code, t.NovaZoneState(available=True)) for code in region.first.az_codes
    ]
