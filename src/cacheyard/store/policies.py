"""Rows of custom policies and of user groups. Called by `services.policies` and `services.accounts`."""

from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, union, update
from sqlalchemy.dialects.sqlite import insert as upsert

from cacheyard.domain.permissions import Policy
from cacheyard.store.rows import all_of, one_of
from cacheyard.store.tables import (
    policies,
    role_assignments,
    user_group_grants,
    user_group_members,
    user_groups,
)


class CustomPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `policies`."""

    id: str
    name: str
    description: str
    document: Policy
    created_at: int
    updated_at: int


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `user_groups`."""

    id: str
    name: str
    description: str
    created_at: int


# --- Policies ---------------------------------------------------------------------------------------


def add(tx: Connection, policy: CustomPolicy) -> None:
    """A policy that nobody has yet."""
    tx.execute(insert(policies).values(**msgspec.to_builtins(policy)))


def get(tx: Connection, name: str) -> CustomPolicy | None:
    """The policy of that name."""
    return one_of(CustomPolicy, tx.execute(select(policies).where(policies.c.name == name)))


def every(tx: Connection) -> list[CustomPolicy]:
    """All policies, by name."""
    return all_of(CustomPolicy, tx.execute(select(policies).order_by(policies.c.name)))


def change(tx: Connection, policy_id: str, **values: Any) -> None:
    """Set columns of a policy."""
    tx.execute(update(policies).where(policies.c.id == policy_id).values(**msgspec.to_builtins(values)))


def remove(tx: Connection, policy_id: str) -> None:
    """Delete a policy."""
    tx.execute(delete(policies).where(policies.c.id == policy_id))


def is_granted(tx: Connection, role: str) -> bool:
    """Whether any user or group has it."""
    own = select(role_assignments.c.role).where(role_assignments.c.role == role)
    shared = select(user_group_grants.c.role).where(user_group_grants.c.role == role)
    return tx.execute(union(own, shared)).first() is not None


# --- Groups -----------------------------------------------------------------------------------------


def add_group(tx: Connection, group: Group) -> None:
    """A group that nobody is in yet."""
    tx.execute(insert(user_groups).values(**msgspec.to_builtins(group)))


def group(tx: Connection, name: str) -> Group | None:
    """The group of that name."""
    return one_of(Group, tx.execute(select(user_groups).where(user_groups.c.name == name)))


def groups(tx: Connection) -> list[Group]:
    """All groups, by name."""
    return all_of(Group, tx.execute(select(user_groups).order_by(user_groups.c.name)))


def remove_group(tx: Connection, group_id: str) -> None:
    """Delete a group: its users lose what they had by it."""
    for table in (user_group_members, user_group_grants):
        tx.execute(delete(table).where(table.c.group_id == group_id))
    tx.execute(delete(user_groups).where(user_groups.c.id == group_id))


def join(tx: Connection, group_id: str, user_id: str) -> None:
    """Put a user into a group; twice is no error."""
    values = {"group_id": group_id, "user_id": user_id}
    tx.execute(upsert(user_group_members).values(**values).on_conflict_do_nothing())


def leave(tx: Connection, group_id: str, user_id: str) -> bool:
    """Take a user out of a group. Whether the user was in it."""
    mine = user_group_members.c
    where = (mine.group_id == group_id, mine.user_id == user_id)
    return tx.execute(delete(user_group_members).where(*where)).rowcount > 0


def members(tx: Connection, group_id: str) -> list[str]:
    """The ids of a group's users."""
    mine = user_group_members.c
    return list(tx.execute(select(mine.user_id).where(mine.group_id == group_id)).scalars())


def grant(tx: Connection, group_id: str, project_id: str, role: str) -> None:
    """Give a group a role on a project; giving it twice is no error."""
    values = {"group_id": group_id, "project_id": project_id, "role": role}
    tx.execute(upsert(user_group_grants).values(**values).on_conflict_do_nothing())


def revoke(tx: Connection, group_id: str, project_id: str, role: str) -> bool:
    """Take a role away from a group. Whether there was one."""
    mine = user_group_grants.c
    where = (mine.group_id == group_id, mine.project_id == project_id, mine.role == role)
    return tx.execute(delete(user_group_grants).where(*where)).rowcount > 0


def grants(tx: Connection, group_id: str) -> list[tuple[str, str]]:
    """What a group has been granted, as (project id, role)."""
    mine = user_group_grants.c
    query = select(mine.project_id, mine.role).where(mine.group_id == group_id).order_by(*mine)
    return [(row.project_id, row.role) for row in tx.execute(query)]
