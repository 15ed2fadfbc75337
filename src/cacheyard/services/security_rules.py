"""Rules of security groups, in the forms of the VPC API (v1, v3) and of Neutron (v2.0).

Rules are rows that clients add, read and remove; they filter nothing, an instance's whitelist does. v3 knows
lists of ports, actions and priorities; the older forms show the ports of a rule that has one range.
`services.security_groups` shows the rules of a group with the forms of this module.
"""

import re
from ipaddress import ip_network
from typing import Any

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.contract import types as t
from cacheyard.domain.network import SecurityGroupRule
from cacheyard.ids import new_id
from cacheyard.services.call import Call
from cacheyard.services.network import (
    BadNetworkParameter,
    NoSecurityGroup,
    NoSecurityGroupRule,
    checked_description,
    page,
    project_of,
    seconds,
)
from cacheyard.store import network, security_rules

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_LAST_PORT = 65535


def list_security_group_rules(call: Call[Any]) -> t.ListSecurityGroupRulesResponse:
    """The project's rules."""
    rows, _ = _page(call)
    return t.ListSecurityGroupRulesResponse(security_group_rules=[v1(rule) for rule in rows])


def create_security_group_rule(
    call: Call[t.CreateSecurityGroupRuleRequestBody],
) -> t.CreateSecurityGroupRuleResponse:
    """A new rule."""
    return t.CreateSecurityGroupRuleResponse(security_group_rule=v1(_create(call)))


def show_security_group_rule(call: Call[Any]) -> t.ShowSecurityGroupRuleResponse:
    """One rule."""
    return t.ShowSecurityGroupRuleResponse(security_group_rule=v1(_get(call)))


def delete_security_group_rule(call: Call[Any]) -> None:
    """Delete a rule, be it one that every new group has."""
    rule = _get(call)
    with call.house.store.write() as tx:
        security_rules.remove_rule(tx, rule.id)


def neutron_list_security_group_rules(call: Call[Any]) -> t.NeutronListSecurityGroupRulesResponse:
    """The project's rules."""
    rows, _ = _page(call)
    return t.NeutronListSecurityGroupRulesResponse(security_group_rules=[neutron(rule) for rule in rows])


def neutron_create_security_group_rule(
    call: Call[t.NeutronCreateSecurityGroupRuleRequestBody],
) -> t.NeutronCreateSecurityGroupRuleResponse:
    """A new rule."""
    return t.NeutronCreateSecurityGroupRuleResponse(security_group_rule=neutron(_create(call)))


def neutron_show_security_group_rule(call: Call[Any]) -> t.NeutronShowSecurityGroupRuleResponse:
    """One rule."""
    return t.NeutronShowSecurityGroupRuleResponse(security_group_rule=neutron(_get(call)))


def list_security_group_rules_v3(call: Call[Any]) -> t.ListSecurityGroupRulesV3Response:
    """The project's rules."""
    rows, marker = _page(call)
    return t.ListSecurityGroupRulesV3Response(
        security_group_rules=[v3(rule) for rule in rows],
        page_info=t.PageInfo(current_count=len(rows), next_marker=marker),
    )


def create_security_group_rule_v3(
    call: Call[t.CreateSecurityGroupRuleV3RequestBody],
) -> t.CreateSecurityGroupRuleV3Response:
    """A new rule."""
    return t.CreateSecurityGroupRuleV3Response(security_group_rule=v3(_create(call)))


def show_security_group_rule_v3(call: Call[Any]) -> t.ShowSecurityGroupRuleV3Response:
    """One rule."""
    return t.ShowSecurityGroupRuleV3Response(security_group_rule=v3(_get(call)))


# --- Forms ----------------------------------------------------------------------------------------


def v1(rule: SecurityGroupRule) -> t.SecurityGroupRule:
    """As the VPC API v1 shows a rule."""
    first, last = _one_range(rule)
    return t.SecurityGroupRule(
        id=rule.id,
        description=rule.description,
        security_group_id=rule.security_group_id,
        direction=rule.direction,
        ethertype=rule.ethertype,
        protocol=rule.protocol,
        port_range_min=first,
        port_range_max=last,
        remote_ip_prefix=rule.remote_ip_prefix,
        remote_group_id=rule.remote_group_id,
        tenant_id=rule.project_id,
    )


def neutron(rule: SecurityGroupRule) -> t.NeutronSecurityGroupRule:
    """As Neutron shows a rule."""
    first, last = _one_range(rule)
    return t.NeutronSecurityGroupRule(
        id=rule.id,
        description=rule.description,
        security_group_id=rule.security_group_id,
        direction=rule.direction,
        ethertype=rule.ethertype,
        protocol=rule.protocol,
        port_range_min=first,
        port_range_max=last,
        remote_ip_prefix=rule.remote_ip_prefix,
        remote_group_id=rule.remote_group_id,
        tenant_id=rule.project_id,
        project_id=rule.project_id,
        created_at=seconds(rule.created_at),
        updated_at=seconds(rule.created_at),
    )


def v3(rule: SecurityGroupRule) -> t.SecurityGroupRuleV3:
    """As the VPC API v3 shows a rule."""
    created = seconds(rule.created_at) + "Z"
    return t.SecurityGroupRuleV3(
        id=rule.id,
        description=rule.description,
        security_group_id=rule.security_group_id,
        direction=rule.direction,
        ethertype=rule.ethertype,
        protocol=rule.protocol,
        multiport=rule.ports,
        action=rule.action,
        priority=rule.priority,
        remote_ip_prefix=rule.remote_ip_prefix,
        remote_group_id=rule.remote_group_id,
        project_id=rule.project_id,
        created_at=created,
        updated_at=created,
    )


def _one_range(rule: SecurityGroupRule) -> tuple[int | None, int | None]:
    found = _RANGE.fullmatch(rule.ports or "")
    return (int(found[1]), int(found[2] or found[1])) if found else (None, None)


# --- Rules of rules -------------------------------------------------------------------------------


def _page(call: Call[Any]) -> tuple[list[SecurityGroupRule], str | None]:
    with call.house.store.read() as tx:
        found = security_rules.rules_of(tx, project_of(call))
    return page(
        found,
        call.parameters,
        "id",
        "security_group_id",
        "direction",
        "protocol",
        "action",
        "remote_group_id",
        "remote_ip_prefix",
        "description",
    )


def _get(call: Call[Any]) -> SecurityGroupRule:
    rule_id = str(call.parameters["security_group_rule_id"])
    with call.house.store.read() as tx:
        rule = security_rules.get_rule(tx, project_of(call), rule_id)
    if rule is None:
        raise NoSecurityGroupRule(rule_id=rule_id)
    return rule


def _create(call: Call[Any]) -> SecurityGroupRule:
    """Check and write the rule of a request in any of the three forms."""
    given = call.body.security_group_rule
    if not given.direction:
        raise BadNetworkParameter(parameter="direction", why="is missing")
    rule = SecurityGroupRule(
        id=new_id(),
        project_id=project_of(call),
        security_group_id=given.security_group_id or "",
        direction=given.direction,
        ethertype=given.ethertype or "IPv4",
        protocol=_protocol(given.protocol),
        ports=_ports(given),
        remote_ip_prefix=given.remote_ip_prefix or None,
        remote_group_id=given.remote_group_id or None,
        description=checked_description(given.description),
        action=getattr(given, "action", None) or "allow",
        priority=getattr(given, "priority", None) or 1,
        created_at=now_ms(),
    )
    _check_remote(rule)
    with call.house.store.write() as tx:
        _check_groups(tx, rule)
        security_rules.add_rules(tx, [rule])
    return rule


def _protocol(given: str | None) -> str | None:
    return None if given in (None, "", "any") else given.lower()


def _ports(given: Any) -> str | None:
    """As text, whichever way they were given."""
    if isinstance(given, t.CreateSecurityGroupRuleOptionV3):
        for part in (given.multiport or "").split(",") if given.multiport else ():
            if (found := _RANGE.fullmatch(part)) is None:
                raise BadNetworkParameter(
                    parameter="multiport", why=f"has {part}, which is no range of ports"
                )
            _check_range("multiport", int(found[1]), int(found[2] or found[1]))
        return given.multiport or None
    first, last = given.port_range_min, given.port_range_max
    if first is None and last is None:
        return None
    first, last = (first if first is not None else last), (last if last is not None else first)
    if _protocol(given.protocol) not in ("icmp", "icmpv6"):  # there they are type and code
        _check_range("port_range_max", first, last)
    return f"{first}-{last}" if first != last else str(first)


def _check_range(parameter: str, first: int, last: int) -> None:
    if not 0 <= first <= last <= _LAST_PORT:
        raise BadNetworkParameter(parameter=parameter, why=f"must be ports from 0 to {_LAST_PORT}, upwards")


def _check_remote(rule: SecurityGroupRule) -> None:
    if rule.remote_ip_prefix is None:
        return
    if rule.remote_group_id is not None:
        raise BadNetworkParameter(parameter="remote_ip_prefix", why="must not be with remote_group_id")
    try:
        fits = rule.ethertype == f"IPv{ip_network(rule.remote_ip_prefix, strict=False).version}"
    except ValueError:
        fits = False
    if not fits:
        raise BadNetworkParameter(parameter="remote_ip_prefix", why=f"must be a network of {rule.ethertype}")


def _check_groups(tx: Connection, rule: SecurityGroupRule) -> None:
    for group_id in (rule.security_group_id, rule.remote_group_id):
        if group_id is not None and network.get_security_group(tx, rule.project_id, group_id) is None:
            raise NoSecurityGroup(group_id=group_id)
