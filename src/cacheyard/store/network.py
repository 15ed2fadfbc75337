"""Rows of VPCs, subnets, security groups and addresses. Called by `services` and `tasks`.

`take_address` belongs into the transaction that writes what the address is for: then two requests
never get the same one, and none is lost when a request fails.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, case, delete, exists, func, insert, select, update

from cacheyard.domain.network import (
    AddressUnusable,
    NoAddressLeft,
    SecurityGroup,
    Subnet,
    Vpc,
    first_rules,
    reserved,
)
from cacheyard.store import security_rules
from cacheyard.store.rows import all_of, one_of
from cacheyard.store.tables import addresses, instances, security_groups, subnets, vpcs

# --- VPCs -----------------------------------------------------------------------------------------


_VPC_NAMES = select(vpcs.c.id, vpcs.c.name).where(vpcs.c.id.in_(bindparam("ids", expanding=True)))
_SUBNET = select(subnets).where(subnets.c.id == bindparam("id"))


def add_vpc(tx: Connection, vpc: Vpc) -> None:
    """A VPC."""
    tx.execute(insert(vpcs).values(**msgspec.to_builtins(vpc)))


def get_vpc(tx: Connection, project_id: str, vpc_id: str) -> Vpc | None:
    """A VPC of the project; another project's is not there."""
    query = select(vpcs).where(vpcs.c.id == vpc_id, vpcs.c.project_id == project_id)
    return one_of(Vpc, tx.execute(query))


def vpcs_of(tx: Connection, project_id: str) -> list[Vpc]:
    """The project's VPCs, oldest first."""
    query = select(vpcs).where(vpcs.c.project_id == project_id).order_by(vpcs.c.created_at, vpcs.c.id)
    return all_of(Vpc, tx.execute(query))


def change_vpc(tx: Connection, vpc_id: str, **values: Any) -> None:
    """Set columns of a VPC."""
    tx.execute(update(vpcs).where(vpcs.c.id == vpc_id).values(**values))


def remove_vpc(tx: Connection, vpc_id: str) -> None:
    """Delete a VPC that has no subnets."""
    tx.execute(delete(vpcs).where(vpcs.c.id == vpc_id))


def vpc_names(tx: Connection, vpc_ids: Sequence[str]) -> dict[str, str]:
    """Names by id, for lists of instances."""
    return {row[0]: row[1] for row in tx.execute(_VPC_NAMES, {"ids": list(vpc_ids)})}


# --- Subnets --------------------------------------------------------------------------------------


def add_subnet(tx: Connection, subnet: Subnet) -> None:
    """A subnet."""
    tx.execute(insert(subnets).values(**msgspec.to_builtins(subnet)))


def get_subnet(tx: Connection, project_id: str, subnet_id: str) -> Subnet | None:
    """A subnet of the project; another project's is not there."""
    found = subnet_by_id(tx, subnet_id)
    return found if found is not None and found.project_id == project_id else None


def subnet_by_id(tx: Connection, subnet_id: str) -> Subnet | None:
    """A subnet, whoever has it."""
    return one_of(Subnet, tx.execute(_SUBNET, {"id": subnet_id}))


def subnets_by_id(tx: Connection, subnet_ids: Sequence[str]) -> dict[str, Subnet]:
    """Subnets by id, for lists of instances."""
    found = all_of(Subnet, tx.execute(select(subnets).where(subnets.c.id.in_(subnet_ids))))
    return {subnet.id: subnet for subnet in found}


def subnets_of(tx: Connection, project_id: str, vpc_id: str | None = None) -> list[Subnet]:
    """The project's subnets, oldest first; of one VPC when it is given."""
    query = select(subnets).where(subnets.c.project_id == project_id)
    if vpc_id is not None:
        query = query.where(subnets.c.vpc_id == vpc_id)
    return all_of(Subnet, tx.execute(query.order_by(subnets.c.created_at, subnets.c.id)))


def pools(tx: Connection) -> list[IPv4Network]:
    """The pools of all projects' subnets."""
    return [IPv4Network(pool) for pool in tx.execute(select(subnets.c.pool)).scalars()]


def change_subnet(tx: Connection, subnet_id: str, **values: Any) -> None:
    """Set columns of a subnet."""
    tx.execute(update(subnets).where(subnets.c.id == subnet_id).values(**values))


def remove_subnet(tx: Connection, subnet_id: str) -> None:
    """Delete a subnet that nothing uses."""
    tx.execute(delete(subnets).where(subnets.c.id == subnet_id))


def subnet_in_use(tx: Connection, subnet_id: str) -> bool:
    """Whether an instance lives in the subnet or still holds an address of it."""
    return _any(tx, instances.c.subnet_id == subnet_id) or _any(tx, addresses.c.subnet_id == subnet_id)


# --- Security groups ------------------------------------------------------------------------------


def add_group(tx: Connection, group: SecurityGroup) -> None:
    """A security group, with the rules that every new one has."""
    tx.execute(insert(security_groups).values(**msgspec.to_builtins(group)))
    security_rules.add_rules(tx, first_rules(group))


def get_security_group(tx: Connection, project_id: str, group_id: str) -> SecurityGroup | None:
    """A security group of the project; another project's is not there."""
    query = select(security_groups).where(
        security_groups.c.id == group_id, security_groups.c.project_id == project_id
    )
    return one_of(SecurityGroup, tx.execute(query))


def groups_of(tx: Connection, project_id: str) -> list[SecurityGroup]:
    """The project's security groups, oldest first."""
    query = select(security_groups).where(security_groups.c.project_id == project_id)
    return all_of(
        SecurityGroup, tx.execute(query.order_by(security_groups.c.created_at, security_groups.c.id))
    )


def change_group(tx: Connection, group_id: str, **values: Any) -> None:
    """Set columns of a security group."""
    tx.execute(update(security_groups).where(security_groups.c.id == group_id).values(**values))


def remove_group(tx: Connection, group_id: str) -> None:
    """Delete a security group that nothing uses, its rules, and others' rules about it."""
    tx.execute(delete(security_groups).where(security_groups.c.id == group_id))


def group_in_use(tx: Connection, group_id: str) -> bool:
    """Whether an instance names the group."""
    return _any(tx, instances.c.security_group_id == group_id)


# --- Addresses ------------------------------------------------------------------------------------


def take_address(tx: Connection, subnet_id: str, instance_id: str, wanted: str | None = None) -> str:
    """Give the instance an address of the subnet's pool: the wanted one, else the lowest free one.

    Raises `AddressUnusable` when the wanted one is taken or not of the pool, `NoAddressLeft` when
    all are taken.
    """
    subnet = subnet_by_id(tx, subnet_id)
    if subnet is None:
        raise LookupError(f"no subnet {subnet_id}")  # the service has looked it up before
    number = _lowest_free(tx, subnet) if not wanted else _checked(tx, subnet, wanted)
    ip = str(IPv4Address(number))
    tx.execute(insert(addresses).values(ip=ip, number=number, subnet_id=subnet_id, instance_id=instance_id))
    return ip


def free_addresses(tx: Connection, instance_id: str, ips: Sequence[str] | None = None) -> None:
    """Give the instance's addresses back: all of them, or those in `ips`."""
    statement = delete(addresses).where(addresses.c.instance_id == instance_id)
    if ips is not None:
        statement = statement.where(addresses.c.ip.in_(ips))
    tx.execute(statement)


def addresses_of(tx: Connection, instance_id: str) -> list[str]:
    """The instance's addresses, lowest first."""
    query = select(addresses.c.ip).where(addresses.c.instance_id == instance_id)
    return list(tx.execute(query.order_by(addresses.c.number)).scalars())


def free_count(tx: Connection, subnet: Subnet) -> int:
    """How many addresses the subnet still has."""
    taken = select(func.count()).select_from(addresses).where(addresses.c.subnet_id == subnet.id)
    usable = IPv4Network(subnet.pool).num_addresses - len(reserved(subnet))
    return usable - int(tx.execute(taken).scalar_one())


_mine, _after = addresses.alias(), addresses.alias()
# The lowest free number from :start on, looked up in the index on (subnet_id, number): :start itself,
# or the one after the row of taken numbers that begins there.
_FREE = select(
    case(
        (
            ~exists().where(
                addresses.c.subnet_id == bindparam("subnet"), addresses.c.number == bindparam("start")
            ),
            bindparam("start"),
        ),
        else_=select(_mine.c.number + 1)
        .where(
            _mine.c.subnet_id == bindparam("subnet"),
            _mine.c.number >= bindparam("start"),
            ~exists().where(_after.c.subnet_id == _mine.c.subnet_id, _after.c.number == _mine.c.number + 1),
        )
        .order_by(_mine.c.number)
        .limit(1)
        .scalar_subquery(),
    )
)


def _lowest_free(tx: Connection, subnet: Subnet) -> int:
    pool = IPv4Network(subnet.pool)
    skipped = reserved(subnet)
    last = int(pool.broadcast_address)
    candidate = int(pool.network_address)
    while candidate <= last:
        if candidate in skipped:
            candidate += 1
            continue
        found = int(tx.execute(_FREE, {"subnet": subnet.id, "start": candidate}).scalar_one())
        if found not in skipped:
            return found
        candidate = found
    raise NoAddressLeft


def _checked(tx: Connection, subnet: Subnet, wanted: str) -> int:
    try:
        address = IPv4Address(wanted)
    except ValueError:
        raise AddressUnusable(ip=wanted, why="is not an IPv4 address") from None
    if address not in IPv4Network(subnet.pool):
        raise AddressUnusable(ip=wanted, why=f"is not in {subnet.pool}, where this subnet's addresses are")
    if int(address) in reserved(subnet):
        raise AddressUnusable(ip=wanted, why="is the network's, the gateway's or the broadcast address")
    if tx.execute(select(addresses.c.ip).where(addresses.c.ip == str(address))).first() is not None:
        raise AddressUnusable(ip=wanted, why="is in use")
    return int(address)


def _any(tx: Connection, condition: Any) -> bool:
    return tx.execute(select(1).where(condition).limit(1)).first() is not None
