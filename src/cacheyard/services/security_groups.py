"""Security groups, in the forms of the VPC API (v1, v3) and of Neutron (v2.0).

A group is a label that instances carry. Its rules, `services.security_rules`, begin with the two that the
cloud gives a new group. They filter nothing; an instance's whitelist does.
"""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from cacheyard.clock import now_ms
from cacheyard.contract import types as t
from cacheyard.domain.network import SecurityGroup, SecurityGroupRule
from cacheyard.ids import new_id
from cacheyard.services import security_rules as rule_forms
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
from cacheyard.store import network, security_rules


def list_security_groups(call: Call[Any]) -> t.ListSecurityGroupsResponse:
    """The project's groups."""
    rows, _ = _page(call)
    return t.ListSecurityGroupsResponse(security_groups=_v1(call, *rows))


def create_security_group(call: Call[t.CreateSecurityGroupRequestBody]) -> t.CreateSecurityGroupResponse:
    """A new group."""
    option = call.body.security_group or t.CreateSecurityGroupOption()
    [made] = _v1(call, _create(call, option.name, option.description))
    return t.CreateSecurityGroupResponse(security_group=made)


def show_security_group(call: Call[Any]) -> t.ShowSecurityGroupResponse:
    """One group."""
    [found] = _v1(call, _get(call))
    return t.ShowSecurityGroupResponse(security_group=found)


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
    return t.NeutronListSecurityGroupsResponse(security_groups=_neutron(call, *rows))


def neutron_create_security_group(
    call: Call[t.NeutronCreateSecurityGroupRequestBody],
) -> t.NeutronCreateSecurityGroupResponse:
    """A new group."""
    option = call.body.security_group or t.NeutronCreateSecurityGroupOption()
    [made] = _neutron(call, _create(call, option.name, option.description))
    return t.NeutronCreateSecurityGroupResponse(security_group=made)


def neutron_show_security_group(call: Call[Any]) -> t.NeutronShowSecurityGroupResponse:
    """One group."""
    [found] = _neutron(call, _get(call))
    return t.NeutronShowSecurityGroupResponse(security_group=found)


def neutron_update_security_group(
    call: Call[t.NeutronUpdateSecurityGroupRequestBody],
) -> t.NeutronUpdateSecurityGroupResponse:
    """Another name or description."""
    [changed] = _neutron(call, _update(call))
    return t.NeutronUpdateSecurityGroupResponse(security_group=changed)


neutron_delete_security_group = delete_security_group


def list_security_groups_v3(call: Call[Any]) -> t.ListSecurityGroupsV3Response:
    """The project's groups, without rules, as v3 lists them."""
    rows, marker = _page(call)
    return t.ListSecurityGroupsV3Response(
        security_groups=[_v3(group, None) for group in rows],
        page_info=t.PageInfo(current_count=len(rows), next_marker=marker),
    )


def create_security_group_v3(
    call: Call[t.CreateSecurityGroupV3RequestBody],
) -> t.CreateSecurityGroupV3Response:
    """A new group."""
    option = call.body.security_group or t.CreateSecurityGroupV3Option()
    made = _create(call, option.name, option.description)
    return t.CreateSecurityGroupV3Response(security_group=_v3_whole(call, made))


def show_security_group_v3(call: Call[Any]) -> t.ShowSecurityGroupV3Response:
    """One group."""
    return t.ShowSecurityGroupV3Response(security_group=_v3_whole(call, _get(call)))


def update_security_group_v3(
    call: Call[t.UpdateSecurityGroupV3RequestBody],
) -> t.UpdateSecurityGroupV3Response:
    """Another name or description."""
    return t.UpdateSecurityGroupV3Response(security_group=_v3_whole(call, _update(call)))


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


def _update(call: Call[Any]) -> SecurityGroup:
    """What is not sent stays."""
    option = call.body.security_group or t.UpdateSecurityGroupOption()
    values: dict[str, str] = {}
    if option.name is not None:
        values["name"] = checked_name(option.name)
    if option.description is not None:
        values["description"] = checked_description(option.description)
    group_id = str(call.parameters["security_group_id"])
    with call.house.store.write() as tx:
        group = network.get_security_group(tx, project_of(call), group_id)
        if group is None:
            raise NoSecurityGroup(group_id=group_id)
        if values:
            network.change_group(tx, group.id, **values)
    return replace(group, **values)


def _rules(call: Call[Any], groups: Sequence[SecurityGroup]) -> dict[str, list[SecurityGroupRule]]:
    """The rules of some groups, by group."""
    found: dict[str, list[SecurityGroupRule]] = {group.id: [] for group in groups}
    with call.house.store.read() as tx:
        for rule in security_rules.rules_of(tx, project_of(call), list(found)):
            found[rule.security_group_id].append(rule)
    return found


def _v1(call: Call[Any], *groups: SecurityGroup) -> list[t.SecurityGroup]:
    rules = _rules(call, groups)
    return [
        t.SecurityGroup(
            id=group.id,
            name=group.name,
            description=group.description,
            enterprise_project_id=DEFAULT_ENTERPRISE,
            security_group_rules=[rule_forms.v1(rule) for rule in rules[group.id]],
        )
        for group in groups
    ]


def _neutron(call: Call[Any], *groups: SecurityGroup) -> list[t.NeutronSecurityGroup]:
    rules = _rules(call, groups)
    return [
        t.NeutronSecurityGroup(
            id=group.id,
            name=group.name,
            description=group.description,
            tenant_id=group.project_id,
            project_id=group.project_id,
            security_group_rules=[rule_forms.neutron(rule) for rule in rules[group.id]],
            created_at=seconds(group.created_at),
            updated_at=seconds(group.created_at),
        )
        for group in groups
    ]


def _v3(group: SecurityGroup, rules: list[SecurityGroupRule] | None) -> t.SecurityGroupV3:
    created = seconds(group.created_at) + "Z"
    return t.SecurityGroupV3(
        id=group.id,
        name=group.name,
        description=group.description,
        project_id=group.project_id,
        enterprise_project_id=DEFAULT_ENTERPRISE,
        tags=[],
        security_group_rules=None if rules is None else [rule_forms.v3(rule) for rule in rules],
        created_at=created,
        updated_at=created,
    )


def _v3_whole(call: Call[Any], group: SecurityGroup) -> t.SecurityGroupV3:
    return _v3(group, _rules(call, [group])[group.id])
