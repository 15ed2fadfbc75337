"""`cacheyard policy|group|enterprise …`: rights that are made here, users who share rights, labels.

Straight in the data directory, as `accounts`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from cacheyard.cli.accounts import Data, Json, changes, done, opened, refusable, show, show_all, time

if TYPE_CHECKING:
    from cacheyard.store.policies import CustomPolicy

Document = Annotated[str, Parameter(help="The policy as JSON; `@FILE` reads a file, `@-` standard input.")]

policy = App(name="policy", help="Custom policies: rights that are made here, granted as roles are.")
group = App(name="group", help="Groups: users who share rights.")
enterprise = App(name="enterprise", help="Enterprise projects: labels to sort instances by.")


def add_to(app: App) -> None:
    """Add the commands."""
    app.command(policy)
    app.command(group)
    app.command(enterprise)


@policy.command(name="add")
@changes("policy add")
def add_policy(
    name: str, document: Document, /, *, description: str = "", data: Data | None = None, json: Json = False
) -> None:
    """Add a policy; `role grant` and `group grant` give it, by its name."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        made = policies.add_policy(store, name, _read(document), description)
    show(_told(made), json=json)


@policy.command(name="change")
@changes("policy change")
def change_policy(name: str, document: Document, /, *, data: Data | None = None, json: Json = False) -> None:
    """Replace what a policy says, for all who have it."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        changed = policies.change_policy(store, name, _read(document))
    show(_told(changed), json=json)


@policy.command(name="show")
@refusable
def show_policy(name: str, /, *, data: Data | None = None) -> None:
    """Print what a policy says, as JSON."""
    from cacheyard.cli import table
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        found = policies.show_policy(store, name)
    table.print_json(_told(found)["policy"])


@policy.command(name="list")
@refusable
def list_policies(*, data: Data | None = None, json: Json = False) -> None:
    """List all custom policies; `role list` has the system's own roles."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        found = policies.list_policies(store)
    show_all([_told(each) for each in found], json=json)


@policy.command(name="delete")
@changes("policy delete")
def delete_policy(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Delete a policy that nobody has."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        policies.delete_policy(store, name)
    done(f"The policy {name} is deleted.", json, name=name)


@group.command(name="add")
@changes("group add")
def add_group(name: str, /, *, description: str = "", data: Data | None = None, json: Json = False) -> None:
    """Add a group without users and rights."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        made = policies.add_group(store, name, description)
    show({"id": made.id, "name": made.name, "description": made.description}, json=json)


@group.command(name="list")
@refusable
def list_groups(*, data: Data | None = None, json: Json = False) -> None:
    """List all groups, with their users and rights."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        found = policies.list_groups(store)
    told = [
        {
            "id": each.id,
            "name": each.name,
            "description": each.description,
            "users": users,
            "roles": [{"project": project, "role": role} for project, role in roles],
        }
        for each, users, roles in found
    ]
    show_all(told, json=json)


@group.command(name="delete")
@changes("group delete")
def delete_group(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Delete a group; its users stay."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        policies.delete_group(store, name)
    done(f"The group {name} is deleted.", json, name=name)


@group.command(name="join")
@changes("group join")
def join(group: str, user: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Put a user into a group."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        policies.join(store, group, user)
    done(f"{user} is in {group}.", json, group=group, user=user)


@group.command(name="leave")
@changes("group leave")
def leave(group: str, user: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Take a user out of a group."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        policies.leave(store, group, user)
    done(f"{user} is in {group} no more.", json, group=group, user=user)


@group.command(name="grant")
@changes("group grant")
def grant(group: str, project: str, role: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Give a group's users a role or a custom policy on a project, all three by name."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        policies.grant(store, group, project, role)
    done(f"{group} has the role {role} on {project}.", json, group=group, project=project, role=role)


@group.command(name="revoke")
@changes("group revoke")
def revoke(group: str, project: str, role: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Take it away again."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        policies.revoke(store, group, project, role)
    done(f"{group} has the role {role} on {project} no more.", json, group=group, project=project, role=role)


@enterprise.command(name="add")
@changes("enterprise add")
def add_enterprise(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Add an enterprise project; instances can be created in it."""
    from cacheyard.services import enterprise as services

    with opened(data) as (_, store, _sealer):
        made = services.add(store, name)
    show({"id": made.id, "name": made.name}, json=json)


@enterprise.command(name="list")
@refusable
def list_enterprise(*, data: Data | None = None, json: Json = False) -> None:
    """List enterprise projects; the default one is always there."""
    from cacheyard.services import enterprise as services

    with opened(data) as (_, store, _sealer):
        found = services.every(store)
    show_all([{"id": each.id, "name": each.name} for each in found], json=json)


@enterprise.command(name="delete")
@changes("enterprise delete")
def delete_enterprise(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Delete an enterprise project that no instance is in."""
    from cacheyard.services import enterprise as services

    with opened(data) as (_, store, _sealer):
        services.delete(store, name)
    done(f"The enterprise project {name} is deleted.", json, name=name)


def _read(document: str) -> object:
    import msgspec

    from cacheyard.errors import Invalid

    try:
        match document:
            case "@-":
                document = sys.stdin.read()
            case _ if document.startswith("@"):
                document = Path(document[1:]).read_text()
        return msgspec.json.decode(document)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise Invalid(parameter="policy", why=str(error)) from None


def _told(found: "CustomPolicy") -> Mapping[str, object]:
    import msgspec

    return {
        "id": found.id,
        "name": found.name,
        "description": found.description,
        "policy": msgspec.to_builtins(found.document),
        "updated_at": time(found.updated_at),
    }
