"""Security groups, in the forms of the VPC API (v1, v3) and of Neutron (v2.0).

A group is a label that instances carry. Its rules are always the two that the cloud gives a new
group: in from its own members, out to everywhere. They filter nothing; an instance's whitelist does.
"""

import uuid
from typing import Any

from cacheyard.clock import now_ms
from cacheyard.contract import types as t
from cacheyard.domain.network import SecurityGroup
from cacheyard.ids import new_id
from cacheyard.services.call import Call
from cacheyard.services.network import (
    DEFAULT_ENTERPRISE,
    BadNetworkParameter,
    NoSecurityGroup,
    SecurityGroupInUse,
    checked_description,
    checked_name,
    page,
    project_of,
    seconds,
)
from cacheyard.store import network

_DIRECTIONS = ("ingress", "egress")


def list_security_groups(call: Call[Any]) -> t.ListSecurityGroupsResponse:
    """The project's groups."""
    rows, _ = _page(call)
    return t.ListSecurityGroupsResponse(security_groups=[_v1(group) for group in rows])


def create_security_group(call: Call[t.CreateSecurityGroupRequestBody]) -> t.CreateSecurityGroupResponse:
    """A new group."""
    option = call.body.security_group or t.CreateSecurityGroupOption()
    return t.CreateSecurityGroupResponse(security_group=_v1(_create(call, option.name, option.description)))


def show_security_group(call: Call[Any]) -> t.ShowSecurityGroupResponse:
    """One group."""
    return t.ShowSecurityGroupResponse(security_group=_v1(_get(call)))


def delete_security_group(call: Call[Any]) -> None:
    """Delete a group; refused while an instance names it."""
    group = _get(call)
    with call.house.store.write() as tx:
        if network.group_in_use(tx, group.id):
            raise SecurityGroupInUse(group_id=group.id)
        network.remove_group(tx, group.id)


def neutron_list_security_groups(call: Call[Any]) -> t.NeutronListSecurityGroupsResponse:
    """The project's groups."""
    rows, _ = _page(call)
    return t.NeutronListSecurityGroupsResponse(security_groups=[_neutron(group) for group in rows])


def neutron_create_security_group(
    call: Call[t.NeutronCreateSecurityGroupRequestBody],
) -> t.NeutronCreateSecurityGroupResponse:
    """A new group."""
    option = call.body.security_group or t.NeutronCreateSecurityGroupOption()
    made = _create(call, option.name, option.description)
    return t.NeutronCreateSecurityGroupResponse(security_group=_neutron(made))


def neutron_show_security_group(call: Call[Any]) -> t.NeutronShowSecurityGroupResponse:
    """One group."""
    return t.NeutronShowSecurityGroupResponse(security_group=_neutron(_get(call)))


neutron_delete_security_group = delete_security_group


def list_security_groups_v3(call: Call[Any]) -> t.ListSecurityGroupsV3Response:
    """The project's groups, without rules, as v3 lists them."""
    rows, marker = _page(call)
    return t.ListSecurityGroupsV3Response(
        security_groups=[_v3(group, with_rules=False) for group in rows],
        page_info=t.PageInfo(current_count=len(rows), next_marker=marker),
    )


def create_security_group_v3(
    call: Call[t.CreateSecurityGroupV3RequestBody],
) -> t.CreateSecurityGroupV3Response:
    """A new group."""
    option = call.body.security_group or t.CreateSecurityGroupV3Option()
    return t.CreateSecurityGroupV3Response(security_group=_v3(_create(call, option.name, option.description)))


def show_security_group_v3(call: Call[Any]) -> t.ShowSecurityGroupV3Response:
    """One group."""
    return t.ShowSecurityGroupV3Response(security_group=_v3(_get(call)))


delete_security_group_v3 = delete_security_group


def _page(call: Call[Any]) -> tuple[list[SecurityGroup], str | None]:
    with call.house.store.read() as tx:
        found = network.groups_of(tx, project_of(call))
    return page(found, call.parameters, "id", "name", "description")


def _get(call: Call[Any]) -> SecurityGroup:
    group_id = str(call.parameters["security_group_id"])
    with call.house.store.read() as tx:
        group = network.get_security_group(tx, project_of(call), group_id)
    if group is None:
        raise NoSecurityGroup(group_id=group_id)
    return group


def _create(call: Call[Any], name: str | None, description: str | None) -> SecurityGroup:
    if not name:
        raise BadNetworkParameter(parameter="name", why="is missing")
    group = SecurityGroup(
        id=new_id(),
        project_id=project_of(call),
        name=checked_name(name),
        description=checked_description(description),
        created_at=now_ms(),
    )
    with call.house.store.write() as tx:
        network.add_group(tx, group)
    return group


def _rule_id(group: SecurityGroup, direction: str) -> str:
    return str(uuid.uuid5(uuid.UUID(group.id), direction))


def _members(group: SecurityGroup, direction: str) -> str | None:
    return group.id if direction == "ingress" else None


def _v1(group: SecurityGroup) -> t.SecurityGroup:
    return t.SecurityGroup(
        id=group.id,
        name=group.name,
        description=group.description,
        enterprise_project_id=DEFAULT_ENTERPRISE,
        security_group_rules=[
            t.SecurityGroupRule(
                id=_rule_id(group, direction),
                description="",
                security_group_id=group.id,
                direction=direction,
                ethertype="IPv4",
                remote_group_id=_members(group, direction),
                tenant_id=group.project_id,
            )
            for direction in _DIRECTIONS
        ],
    )


def _neutron(group: SecurityGroup) -> t.NeutronSecurityGroup:
    created = seconds(group.created_at)
    return t.NeutronSecurityGroup(
        id=group.id,
        name=group.name,
        description=group.description,
        tenant_id=group.project_id,
        project_id=group.project_id,
        security_group_rules=[
            t.NeutronSecurityGroupRule(
                id=_rule_id(group, direction),
                description="",
                security_group_id=group.id,
                direction=direction,
                ethertype="IPv4",
                remote_group_id=_members(group, direction),
                tenant_id=group.project_id,
                project_id=group.project_id,
                created_at=created,
                updated_at=created,
            )
            for direction in _DIRECTIONS
        ],
        created_at=created,
        updated_at=created,
    )


def _v3(group: SecurityGroup, *, with_rules: bool = True) -> t.SecurityGroupV3:
    created = seconds(group.created_at) + "Z"
    rules = [
        t.SecurityGroupRuleV3(
            id=_rule_id(group, direction),
            description="",
            security_group_id=group.id,
            direction=direction,
            ethertype="IPv4",
            action="allow",
            priority=100,
            remote_group_id=_members(group, direction),
            project_id=group.project_id,
            created_at=created,
            updated_at=created,
        )
        for direction in _DIRECTIONS
    ]
    return t.SecurityGroupV3(
        id=group.id,
        name=group.name,
        description=group.description,
        project_id=group.project_id,
        enterprise_project_id=DEFAULT_ENTERPRISE,
        tags=[],
        security_group_rules=rules if with_rules else None,
        created_at=created,
        updated_at=created,
    )
