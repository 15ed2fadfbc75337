"""What the operations on networks share: whose they are, pages, checks, refusals; and the zones.

Called by `services.vpcs`, `services.subnets` and `services.security_groups`, which answer in the
forms of the VPC API (v1, v3) and of Neutron (v2.0). A VPC and a security group are labels here;
what is real of a subnet is its pool of addresses. docs/network.md says more.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from cacheyard import errors
from cacheyard.contract.types import NovaAvailabilityZone, NovaListAvailabilityZonesResponse, NovaZoneState
from cacheyard.domain.network import zones
from cacheyard.errors import Refused
from cacheyard.services.call import Call

PAGE = 2000  # the VPC API's default and largest limit
DEFAULT_ENTERPRISE = "0"
_NAME = re.compile(r"[\w.-]{0,64}")  # letters of any script, as the cloud takes
_DESCRIPTION_LENGTH = 255


class _Row(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Row)


# --- Refusals, in the VPC API's codes -------------------------------------------------------------


class BadNetworkParameter(Refused):
    """Param is invalid: {parameter} {why}."""

    code = "VPC.0101"


class BadSubnet(Refused):
    """Param is invalid: {parameter} {why}."""

    code = "VPC.0201"


class NoRoomForSubnet(Refused):
    """The region's slice {cidr} has no room left for another subnet of this size."""

    code = "VPC.0204"
    status = 409


class NoVpc(Refused):
    """VPC does not exist."""

    code = "VPC.0003"
    status = 404


class NoSubnet(Refused):
    """Query resource by id {subnet_id} fail. The subnet could not be found."""

    code = "VPC.0202"
    status = 404


class NoSecurityGroup(Refused):
    """Security group {group_id} does not exist."""

    code = "VPC.0603"
    status = 404


class NoSecurityGroupRule(Refused):
    """Security group rule {rule_id} does not exist."""

    code = "VPC.0607"
    status = 404


class VpcInUse(Refused):
    """Router contains subnets, please delete subnet before delete router."""

    code = "VPC.0104"
    status = 409


class SubnetInUse(Refused):
    """The subnet is still used by DCS instances."""

    code = "VPC.0209"
    status = 409


class SecurityGroupInUse(Refused):
    """Security group {group_id} is in use."""

    code = "VPC.0604"
    status = 409


# --- Shared by the operations ---------------------------------------------------------------------


def project_of(call: Call[Any]) -> str:
    """The project of the path; Neutron's paths have none, there it is the caller's."""
    if (named := call.parameters.get("project_id")) and named == call.who.project_id:
        return str(named)
    if call.who.project_id is None:
        raise errors.WrongProject
    return call.who.project_id


def page(found: Sequence[R], parameters: Mapping[str, Any], *exact: str) -> tuple[list[R], str | None]:
    """The part of a list that a request asks for, and the marker of the next page if there is one.

    `exact` names the fields that may be filtered by, each by one value or by several.
    """
    if parameters.get("enterprise_project_id") not in (None, "", "all_granted_eps", DEFAULT_ENTERPRISE):
        found = []  # networks are all in the default one
    rows = [row for row in found if all(_fits(row, name, parameters.get(name)) for name in exact)]
    if marker := parameters.get("marker"):
        at = next((number for number, row in enumerate(rows) if row.id == marker), len(rows))
        rows = rows[at + 1 :]
    limit = _limit(parameters.get("limit"))
    return rows[:limit], rows[limit - 1].id if 0 < limit < len(rows) else None


def checked_name(name: str | None) -> str:
    """A network's or group's name, which may be empty."""
    if not _NAME.fullmatch(name or ""):
        raise BadNetworkParameter(parameter="name", why="must have up to 64 letters, digits, _, - and .")
    return name or ""


def checked_description(description: str | None) -> str:
    """A description, which may be empty."""
    text = description or ""
    if len(text) > _DESCRIPTION_LENGTH or "<" in text or ">" in text:
        raise BadNetworkParameter(parameter="description", why="must have up to 255 characters, no < or >")
    return text


def seconds(ms: int) -> str:
    """`2026-01-31T23:59:59`, as the VPC API v1 writes UTC times; v3 adds a Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def nova_list_availability_zones(call: Call[Any]) -> NovaListAvailabilityZonesResponse:
    """The region's zones, as the compute API lists them."""
    return NovaListAvailabilityZonesResponse(
        availabilityZoneInfo=[
            NovaAvailabilityZone(zoneName=zone.code, zoneState=NovaZoneState(available=True))
            for zone in zones(call.house.region)
        ]
    )


def _fits(row: _Row, name: str, wanted: Any) -> bool:
    if wanted in (None, "", []):
        return True
    values = wanted if isinstance(wanted, list) else [wanted]
    return getattr(row, name) in values


def _limit(given: Any) -> int:
    try:
        limit = PAGE if given in (None, "") else int(given)
    except ValueError:
        raise BadNetworkParameter(parameter="limit", why="must be a number") from None
    if limit < 0:
        raise BadNetworkParameter(parameter="limit", why="must not be negative")
    return min(limit, PAGE)
