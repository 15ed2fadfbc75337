"""The first start makes a region: its slice, a project, a user with keys, a network to put instances in.

Called by `cli` at each start; later starts find what the first one made and return the same.
"""

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain.identity import Project, User
from cacheyard.domain.network import SecurityGroup, Subnet, Vpc, default_pool, zones
from cacheyard.domain.passwords import generate_password, hash_password
from cacheyard.errors import Failed
from cacheyard.ids import new_id
from cacheyard.services.accounts import new_key
from cacheyard.settings import Settings
from cacheyard.store import identity as rows
from cacheyard.store import network
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer
from cacheyard.store.slices import CLAIMS, claim

DOMAIN = "cacheyard"
USER = "admin"
ROLES = ("admin", "te_admin")
_FACT = "bootstrap"
REGION = "yard-1"  # unless the operator chooses another
SLICE = "slice"  # the fact that has the region's part of 127.0.0.0/8


class RegionRefused(Exception):  # noqa: N818 - reads as it is meant
    """The data directory belongs to another region. For the operator, at start."""


class Bootstrap(msgspec.Struct, frozen=True, kw_only=True):
    """What the first user needs to know. The password and the secret key show in no repr."""

    region: str
    cidr: str  # the region's slice
    project_id: str
    domain_id: str
    domain_name: str
    user_id: str
    user_name: str
    password: str
    access_key: str
    secret_key: str
    vpc_id: str
    subnet_id: str
    security_group_id: str
    az_codes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Bootstrap(region={self.region!r}, project_id={self.project_id!r}, …)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("region", self.region), ("project_id", self.project_id)]


def bootstrap(store: Store, sealer: Sealer, settings: Settings, claims: Path = CLAIMS) -> Bootstrap:
    """Make what is missing of the region and say what there is.

    Raises `RegionRefused` and `store.slices.SliceRefused`, for the operator.
    """
    with store.read() as tx:
        kept, first = rows.fact(tx, SLICE) or "", rows.fact(tx, _FACT)
    region = settings.region or (first["region"] if first is not None else REGION)
    if first is not None and first["region"] != region:
        # the project's name and the ids of the zones follow from it
        raise RegionRefused(f"this is region {first['region']}: it cannot become {region}")
    cidr = claim(settings.data, settings.cidr, kept, claims)
    password = None if first is not None else generate_password()
    hashed = hash_password(password) if password is not None else ""
    with store.write() as tx:
        rows.set_fact(tx, SLICE, cidr)
        first = rows.fact(tx, _FACT)  # another process may have been quicker
        if first is None:
            if password is None:
                raise Failed(request_id="(start)")
            first = _make(tx, sealer, region=region, cidr=cidr, password=password, hashed=hashed)
        elif all(key.access != first["access_key"] for key in rows.keys(tx, first["user_id"])):
            key = new_key(tx, sealer, first["user_id"])  # its owner has deleted it
            first = {**first, "access_key": key.access, "secret_key": sealer.seal(key.secret)}
        rows.set_fact(tx, _FACT, first)
    opened = {name: sealer.open(first[name]) for name in ("password", "secret_key")}
    facts = {**first, **opened, "cidr": cidr, "az_codes": [zone.code for zone in zones(first["region"])]}
    return msgspec.convert(facts, Bootstrap)


def _make(
    tx: Connection, sealer: Sealer, *, region: str, cidr: str, password: str, hashed: str
) -> dict[str, Any]:
    now = now_ms()
    domain_id, project_id, user_id = (new_id().replace("-", "") for _ in range(3))
    rows.add_domain(tx, domain_id, DOMAIN)
    # clients look the project up by the region's name
    rows.add_project(
        tx, Project(id=project_id, domain_id=domain_id, name=region, description="", enabled=True)
    )
    user = User(id=user_id, name=USER, domain_id=domain_id, domain_name=DOMAIN, enabled=True, created_at=now)
    rows.add_user(tx, user, hashed)
    for role in ROLES:
        rows.grant(tx, user_id, project_id, role)
    key = new_key(tx, sealer, user_id)
    vpc = Vpc(
        id=new_id(), project_id=project_id, name="vpc-default", description="", cidr=cidr, created_at=now
    )
    network.add_vpc(tx, vpc)
    pool = default_pool(IPv4Network(cidr))
    subnet = Subnet(
        id=new_id(),
        project_id=project_id,
        vpc_id=vpc.id,
        name="subnet-default",
        description="",
        cidr=str(pool),
        gateway_ip=str(pool.network_address + 1),
        pool=str(pool),
        shown={},
        created_at=now,
    )
    network.add_subnet(tx, subnet)
    group = SecurityGroup(
        id=new_id(),
        project_id=project_id,
        name="default",
        description="Default security group",
        created_at=now,
    )
    network.add_group(tx, group)
    return {
        "region": region,
        "project_id": project_id,
        "domain_id": domain_id,
        "domain_name": DOMAIN,
        "user_id": user_id,
        "user_name": USER,
        "password": sealer.seal(password),
        "access_key": key.access,
        "secret_key": sealer.seal(key.secret),
        "vpc_id": vpc.id,
        "subnet_id": subnet.id,
        "security_group_id": group.id,
    }
