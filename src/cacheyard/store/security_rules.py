"""Rows of security group rules. Called by `services.security_rules`, and where groups are made."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, insert, select

from cacheyard.domain.network import SecurityGroupRule
from cacheyard.store.rows import all_of, one_of
from cacheyard.store.tables import security_group_rules as rules


def add_rules(tx: Connection, new: Sequence[SecurityGroupRule]) -> None:
    """Some rules."""
    tx.execute(insert(rules), [msgspec.to_builtins(rule) for rule in new])


def get_rule(tx: Connection, project_id: str, rule_id: str) -> SecurityGroupRule | None:
    """A rule of the project; another project's is not there."""
    query = select(rules).where(rules.c.id == rule_id, rules.c.project_id == project_id)
    return one_of(SecurityGroupRule, tx.execute(query))


def rules_of(
    tx: Connection, project_id: str, group_ids: Sequence[str] | None = None
) -> list[SecurityGroupRule]:
    """The project's rules, oldest first; those of some groups when they are given."""
    query = select(rules).where(rules.c.project_id == project_id)
    if group_ids is not None:
        query = query.where(rules.c.security_group_id.in_(group_ids))
    return all_of(
        SecurityGroupRule,
        tx.execute(query.order_by(rules.c.created_at, rules.c.direction.desc(), rules.c.id)),
    )


def remove_rule(tx: Connection, rule_id: str) -> None:
    """Delete a rule."""
    tx.execute(delete(rules).where(rules.c.id == rule_id))
