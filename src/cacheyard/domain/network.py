"""Networks, subnets, zones and addresses: types and rules without I/O.

On one machine the region is a slice of 127.0.0.0/8. A VPC and a subnet carry the ranges that their
owner chose; the addresses of instances come from the subnet's *pool*, a part of the slice.
docs/network.md tells why. Called by `store.network`, `services.network` and `services.bootstrap`.
"""

import uuid
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec

from cacheyard.errors import Refused

LOOPBACK = IPv4Network("127.0.0.0/8")
LARGEST_POOL = 22  # prefix: a subnet that its owner made wider has a thousand real addresses
DEFAULT_PART = 2  # bits: the default subnet is the first quarter of the slice, the rest is for others
SMALLEST_SUBNET = 28  # prefix; the VPC API reference
_ZONES = uuid.UUID("5b7a0f6e-2a55-4d0a-9f0e-3f1c8e0f9d21")  # drawn once; ids must never change
_ZONE_LETTERS = "abc"  # three zones: clients' tests count them


class Vpc(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `vpcs`."""

    id: str
    project_id: str
    name: str
    description: str
    cidr: str
    created_at: int


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `subnets`. `cidr` and `gateway_ip` are its owner's, `pool` is where addresses come from."""

    id: str
    project_id: str
    vpc_id: str
    name: str
    description: str
    cidr: str
    gateway_ip: str
    pool: str
    shown: dict[str, Any]
    created_at: int


class SecurityGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `security_groups`."""

    id: str
    project_id: str
    name: str
    description: str
    created_at: int


class SecurityGroupRule(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `security_group_rules`. None as protocol, ports or remote: any."""

    id: str
    project_id: str
    security_group_id: str
    direction: str  # ingress or egress
    ethertype: str  # IPv4 or IPv6
    protocol: str | None
    ports: str | None  # with commas between: 22,80-90
    remote_ip_prefix: str | None
    remote_group_id: str | None
    description: str
    action: str  # allow or deny
    priority: int
    created_at: int


def first_rules(group: SecurityGroup) -> list[SecurityGroupRule]:
    """What the cloud gives a new group: in from its own members, out to everywhere."""
    return [
        SecurityGroupRule(
            id=str(uuid.uuid5(uuid.UUID(group.id), direction)),
            project_id=group.project_id,
            security_group_id=group.id,
            direction=direction,
            ethertype="IPv4",
            protocol=None,
            ports=None,
            remote_ip_prefix=None,
            remote_group_id=group.id if direction == "ingress" else None,
            description="",
            action="allow",
            priority=100,
            created_at=group.created_at,
        )
        for direction in ("ingress", "egress")
    ]


class Zone(msgspec.Struct, frozen=True):
    """An availability zone: clients send its id or its code, by operation."""

    id: str
    code: str


# --- Refusals of addresses ------------------------------------------------------------------------


class NoAddressLeft(Refused):
    """The network ip insufficient."""

    code = "DCS.4911"


class AddressUnusable(Refused):
    """Invalid private_ip in the request: {ip} {why}."""

    code = "DCS.4800"


# --- Zones ----------------------------------------------------------------------------------------


def zones(region: str) -> tuple[Zone, ...]:
    """The region's three zones, e.g. yard-1a; ids follow from the codes, as 32 hexadecimal digits."""
    codes = [region + letter for letter in _ZONE_LETTERS]
    return tuple(Zone(uuid.uuid5(_ZONES, code).hex, code) for code in codes)


def zone_of(region: str, text: str) -> Zone | None:
    """The zone with this id or code; None when the region has none such."""
    return next((zone for zone in zones(region) if text in (zone.id, zone.code)), None)


# --- Ranges ---------------------------------------------------------------------------------------


def parse_cidr(text: str) -> IPv4Network | None:
    """A network in CIDR form with no host bits set; None when `text` is none."""
    try:
        return IPv4Network(text) if "/" in text else None
    except ValueError:
        return None


def default_pool(region_slice: IPv4Network) -> IPv4Network:
    """The range of the default subnet."""
    return next(region_slice.subnets(prefixlen_diff=DEFAULT_PART))


def free_pool(
    region_slice: IPv4Network, wanted: IPv4Network, used: Iterable[IPv4Network]
) -> IPv4Network | None:
    """A part of the slice for a new subnet: as large as its range, at most a /22; the lowest free one."""
    prefix = max(wanted.prefixlen, LARGEST_POOL)
    step = 1 << (32 - prefix)
    last = int(region_slice.broadcast_address)
    start = int(region_slice.network_address)
    for taken in sorted(used):
        if int(taken.broadcast_address) < start:
            continue
        if start + step - 1 < int(taken.network_address):
            break
        start = -(-(int(taken.broadcast_address) + 1) // step) * step
    return IPv4Network((start, prefix)) if start + step - 1 <= last else None


def reserved(subnet: Subnet) -> frozenset[int]:
    """The addresses of a pool, as numbers, that no instance gets: network, gateway, broadcast."""
    pool = IPv4Network(subnet.pool)
    first = int(pool.network_address)
    gateway = IPv4Address(subnet.gateway_ip)
    own = int(gateway) if gateway in pool else first + 1
    return frozenset((first, own, int(pool.broadcast_address)))
