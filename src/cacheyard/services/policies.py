"""Custom policies and user groups, as the command line administers them.

Called by `cli`. A policy and a system role are granted in the same way, by name; so a policy has no
system role's name, and none that was granted changes its name or goes.
"""

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.contract.operations import OPERATIONS
from cacheyard.domain.permissions import (
    SYSTEM_ROLES,
    WITHOUT_OPERATION,
    BadPolicy,
    Policy,
    allows,
    parse_policy,
)
from cacheyard.errors import Invalid
from cacheyard.ids import new_id
from cacheyard.services.accounts import (
    Exists,
    Needed,
    Unknown,
    check_role,
    checked_name,
    project_named,
    user_named,
)
from cacheyard.store import identity
from cacheyard.store import policies as rows
from cacheyard.store.db import Store
from cacheyard.store.policies import CustomPolicy, Group


def add_policy(store: Store, name: str, document: object, description: str = "") -> CustomPolicy:
    """A new policy, which nobody has yet. What of it is not supported is refused, never left out."""
    checked, now = _parsed(document), now_ms()
    policy = CustomPolicy(
        id=new_id().replace("-", ""),
        name=checked_name(name),
        description=description,
        document=checked,
        created_at=now,
        updated_at=now,
    )
    with store.write() as tx:
        if name in SYSTEM_ROLES:
            raise Exists(what="system role", name=name)
        if rows.get(tx, name) is not None:
            raise Exists(what="policy", name=name)
        rows.add(tx, policy)
    return policy


def change_policy(store: Store, name: str, document: object) -> CustomPolicy:
    """Another document for a policy: it counts from the next request on, for all who have it."""
    checked = _parsed(document)
    with store.write() as tx:
        rows.change(tx, _policy(tx, name).id, document=checked, updated_at=now_ms())
        return _policy(tx, name)


def show_policy(store: Store, name: str) -> CustomPolicy:
    """One policy."""
    with store.read() as tx:
        return _policy(tx, name)


def list_policies(store: Store) -> list[CustomPolicy]:
    """All custom policies."""
    with store.read() as tx:
        return rows.every(tx)


def delete_policy(store: Store, name: str) -> None:
    """Delete a policy that nobody has."""
    with store.write() as tx:
        policy = _policy(tx, name)
        if rows.is_granted(tx, name):
            raise Needed(what="policy", name=name, why="users or groups have it; revoke it first")
        rows.remove(tx, policy.id)


def allowed(store: Store, user: str, project: str, action: str) -> bool:
    """Whether a user may do something on a project, by all that the user has there."""
    if action not in _actions():
        raise Invalid(parameter="action", why=f"there is no {action}")
    with store.read() as tx:
        granted = identity.grants_on(tx, user_named(tx, user).id, project_named(tx, project).id)
    policies = [grant.policy for grant in granted if grant.policy is not None]
    return allows([grant.role for grant in granted], action, policies)


# --- Groups -----------------------------------------------------------------------------------------


def add_group(store: Store, name: str, description: str = "") -> Group:
    """A new group without users and rights."""
    made = Group(
        id=new_id().replace("-", ""),
        name=checked_name(name),
        description=description,
        created_at=now_ms(),
    )
    with store.write() as tx:
        if rows.group(tx, name) is not None:
            raise Exists(what="group", name=name)
        rows.add_group(tx, made)
    return made


def list_groups(store: Store) -> list[tuple[Group, list[str], list[tuple[str, str]]]]:
    """All groups with the names of their users, and what they have been granted as (project name, role)."""
    with store.read() as tx:
        users = {user.id: user.name for user in identity.all_users(tx)}
        projects = {project.id: project.name for project in identity.all_projects(tx)}
        return [
            (
                group,
                sorted(users[member] for member in rows.members(tx, group.id)),
                [(projects[project], role) for project, role in rows.grants(tx, group.id)],
            )
            for group in rows.groups(tx)
        ]


def delete_group(store: Store, name: str) -> None:
    """Delete a group; its users stay, without what they had by it."""
    with store.write() as tx:
        rows.remove_group(tx, _group(tx, name).id)


def join(store: Store, group: str, user: str) -> None:
    """Put a user into a group."""
    with store.write() as tx:
        rows.join(tx, _group(tx, group).id, user_named(tx, user).id)


def leave(store: Store, group: str, user: str) -> None:
    """Take a user out of a group."""
    with store.write() as tx:
        if not rows.leave(tx, _group(tx, group).id, user_named(tx, user).id):
            raise Unknown(what="user", name=f"{user} in {group}")


def grant(store: Store, group: str, project: str, role: str) -> None:
    """Give all users of a group a role or a custom policy on a project."""
    with store.write() as tx:
        rows.grant(tx, _group(tx, group).id, project_named(tx, project).id, check_role(tx, role))


def revoke(store: Store, group: str, project: str, role: str) -> None:
    """Take it away again."""
    with store.write() as tx:
        if not rows.revoke(tx, _group(tx, group).id, project_named(tx, project).id, role):
            raise Unknown(what="role", name=f"{role} of {group} on {project}")


def _policy(tx: Connection, name: str) -> CustomPolicy:
    policy = rows.get(tx, name)
    if policy is None:
        raise Unknown(what="policy", name=name)
    return policy


def _group(tx: Connection, name: str) -> Group:
    group = rows.group(tx, name)
    if group is None:
        raise Unknown(what="group", name=name)
    return group


def _parsed(document: object) -> Policy:
    try:
        return parse_policy(document, _actions())
    except BadPolicy as bad:
        raise Invalid(parameter="policy", why=str(bad)) from None


def _actions() -> set[str]:
    ours = {operation.action for operation in OPERATIONS.values() if operation.action is not None}
    return ours | WITHOUT_OPERATION
