"""`cacheyard user|project|role|key …` and `token`: accounts, straight in the data directory.

They need no running service and disturb none: what they change counts from the next request on. Who
may read the data directory may do all of this.
"""

import getpass
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from cacheyard.errors import Refused
    from cacheyard.settings import Settings
    from cacheyard.store.db import Store
    from cacheyard.store.secrets import Sealer

P = ParamSpec("P")
Data = Annotated[Path, Parameter(help="The directory that holds all state.")]
Json = Annotated[bool, Parameter(help="Print JSON, for programs.", negative="")]
Password = Annotated[str, Parameter(help="A generated one unless given; `-` asks for it.")]
ONCE = "It is not shown again."

user = App(name="user", help="Users: who may call the API.")
project = App(name="project", help="Projects: what instances belong to.")
role = App(name="role", help="Roles: what a user may do on a project.")
key = App(name="key", help="Access keys: how programs sign requests.")


def add_to(app: App) -> None:
    """Add the commands."""
    for group in (user, project, role, key):
        app.command(group)
    app.command(token)


def refusable(command: Callable[P, None]) -> Callable[P, int]:
    """A refusal is a line on stderr and 1."""
    return _run(command, "")


def changes(name: str) -> Callable[[Callable[P, None]], Callable[P, int]]:
    """The same, and an entry in the audit log: the command's name, and the names it was given."""
    return lambda command: _run(command, name)


def _run(command: Callable[P, None], name: str) -> Callable[P, int]:
    @wraps(command)
    def run(*given: P.args, **named: P.kwargs) -> int:
        from cacheyard.errors import Refused

        refusal: Refused | None = None
        try:
            command(*given, **named)
        except Refused as refused:
            print(f"cacheyard: {refused}", file=sys.stderr)
            refusal = refused
        if name:
            _keep(name, given, named.get("data"), refusal)
        return 0 if refusal is None else 1

    return run


def _keep(name: str, given: Sequence[object], data: object, refusal: "Refused | None") -> None:
    from cacheyard.cli.yard import NoYard
    from cacheyard.clock import now_ms
    from cacheyard.ids import new_id
    from cacheyard.store import audit

    names = [word for word in given if isinstance(word, str) and len(word) <= 64 and word[:1] not in "{@"]
    entry = audit.Entry(
        at=now_ms(),
        request_id=new_id(),
        user_id=None,
        user_name=getpass.getuser(),
        project_id=None,
        operation=f"cacheyard {name}",
        action=None,
        resources=names,
        status=200 if refusal is None else refusal.status,
        error_code=None if refusal is None else refusal.code,
        source="command",
    )
    where = Path(str(data)) if data else None
    with suppress(NoYard), opened(where) as (_, store, _sealer), store.note() as tx:
        audit.add(tx, [entry])


@user.command(name="add")
@changes("user add")
def add_user(
    name: str, /, *, password: Password | None = None, data: Data | None = None, json: Json = False
) -> None:
    """Add a user, and print the password. A user has no role anywhere until `role grant` gives one."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        made, secret = accounts.add_user(store, name, _typed(password))
    told = {"id": made.id, "name": made.name, "domain_name": made.domain_name, "password": secret}
    show(told, json=json, note=ONCE)


@user.command(name="list")
@refusable
def list_users(*, data: Data | None = None, json: Json = False) -> None:
    """List all users."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        found = accounts.list_users(store)
    told = [
        {"id": u.id, "name": u.name, "enabled": u.enabled, "created_at": time(u.created_at)} for u in found
    ]
    show_all(told, json=json)


@user.command(name="disable")
@changes("user disable")
def disable_user(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Shut a user out: tokens are revoked, keys sign nothing."""
    _enable(name, False, data, json)


@user.command(name="enable")
@changes("user enable")
def enable_user(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Let a user in again; old tokens stay revoked."""
    _enable(name, True, data, json)


@user.command(name="delete")
@changes("user delete")
def delete_user(name: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Delete a user with roles, tokens and keys. Instances stay; the audit log keeps the name."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        accounts.delete_user(store, name)
    done(f"The user {name} is deleted.", json, name=name)


@user.command(name="password")
@changes("user password")
def set_password(
    name: str, /, *, password: Password | None = None, data: Data | None = None, json: Json = False
) -> None:
    """Set a user's password, and print it. The user's tokens are revoked."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, sealer):
        secret = accounts.set_password(store, sealer, name, _typed(password))
    show({"name": name, "password": secret}, json=json, note=ONCE)


@project.command(name="add")
@changes("project add")
def add_project(name: str, /, *, description: str = "", data: Data | None = None, json: Json = False) -> None:
    """Add a project. Nobody has a role on it until `role grant` gives one."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        made = accounts.add_project(store, name, description)
    show({"id": made.id, "name": made.name, "description": made.description}, json=json)


@project.command(name="list")
@refusable
def list_projects(*, data: Data | None = None, json: Json = False) -> None:
    """List all projects."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        found = accounts.list_projects(store)
    show_all(
        [{"id": p.id, "name": p.name, "enabled": p.enabled, "description": p.description} for p in found],
        json=json,
    )


@role.command(name="grant")
@changes("role grant")
def grant_role(
    user: str, project: str, role: str, /, *, data: Data | None = None, json: Json = False
) -> None:
    """Give a user a role or a custom policy on a project, all three by name."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        accounts.grant(store, user, project, role)
    done(f"{user} has the role {role} on {project}.", json, user=user, project=project, role=role)


@role.command(name="revoke")
@changes("role revoke")
def revoke_role(
    user: str, project: str, role: str, /, *, data: Data | None = None, json: Json = False
) -> None:
    """Take a role away again."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        accounts.revoke(store, user, project, role)
    done(f"{user} has the role {role} on {project} no more.", json, user=user, project=project, role=role)


@role.command(name="list")
@refusable
def list_roles(user: str | None = None, /, *, data: Data | None = None, json: Json = False) -> None:
    """List a user's roles; without a user, the roles that there are and what they allow."""
    from cacheyard.domain.permissions import SYSTEM_ROLES
    from cacheyard.services import accounts

    if user is None:
        told: list[dict[str, object]] = [
            {"role": name, "allow": list(rule.allow), "but": list(rule.but)}
            for name, rule in SYSTEM_ROLES.items()
        ]
    else:
        with opened(data) as (_, store, _sealer):
            found = accounts.list_roles(store, user)
        told = [{"project": where, "role": what, "group": by} for where, what, by in found]
    show_all(told, json=json)


@role.command(name="check")
@refusable
def check_role(
    user: str, project: str, action: str, /, *, data: Data | None = None, json: Json = False
) -> None:
    """Say whether a user may do something: `role check ann lab dcs:instance:create`."""
    from cacheyard.services import policies

    with opened(data) as (_, store, _sealer):
        may = policies.allowed(store, user, project, action)
    sentence = f"{user} {'may' if may else 'may not'} do {action} on {project}."
    done(sentence, json, user=user, project=project, action=action, allowed=may)


@key.command(name="create")
@changes("key create")
def create_key(user: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Make a pair of keys for a user, and print it."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, sealer):
        made = accounts.create_access_key(store, sealer, user)
    told = {"user_name": user, "access_key": made.access, "secret_key": made.secret}
    show(told, json=json, note="The secret key is not shown again.")


@key.command(name="list")
@refusable
def list_keys(user: str | None = None, /, *, data: Data | None = None, json: Json = False) -> None:
    """List access keys without their secrets; of one user when named."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        found = accounts.list_access_keys(store, user)
    told = [
        {
            "access_key": k.access,
            "user_name": k.user_name,
            "enabled": k.enabled,
            "created_at": time(k.created_at),
        }
        for k in found
    ]
    show_all(told, json=json)


@key.command(name="delete")
@changes("key delete")
def delete_key(access_key: str, /, *, data: Data | None = None, json: Json = False) -> None:
    """Delete an access key; what is signed with it is refused from now on."""
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        accounts.delete_access_key(store, access_key)
    done(f"The key {access_key} is deleted.", json, access_key=access_key)


@refusable
def token(
    *,
    user: Annotated[str | None, Parameter(help="The first user unless named.")] = None,
    password: Annotated[str | None, Parameter(help="Of the user; asked for unless given.")] = None,
    project: Annotated[str | None, Parameter(help="The first project, or the user's only one.")] = None,
    data: Data | None = None,
    json: Json = False,
) -> None:
    """Print a fresh token, to paste into curl: `curl -H "X-Auth-Token: $(cacheyard token)" …`."""
    from cacheyard.cli.yard import first_user
    from cacheyard.clock import now_ms
    from cacheyard.services.tokens import issue_token

    with opened(data) as (settings, store, sealer):
        first = first_user(store, sealer)
        mine = user is None or user == first["user_name"]
        who = {
            "name": first["user_name"] if mine else user,
            "password": _given(password, first["password"] if mine else None),
            "domain": {"name": first["domain_name"]},
        }
        auth: dict[str, object] = {"identity": {"methods": ["password"], "password": {"user": who}}}
        if project is not None:
            auth["scope"] = {"project": {"name": project, "domain": who["domain"]}}
        elif mine:
            auth["scope"] = {"project": {"id": first["project_id"]}}
        issued = issue_token(
            store,
            {"auth": auth},
            base_url="",
            region=first["region"],
            hours=settings.token_hours,
            now=now_ms(),
        )
    scope = issued.body["token"].get("project", {})
    told = {
        "token": issued.text,
        "expires_at": issued.body["token"]["expires_at"],
        "project_id": scope.get("id"),
    }
    if json:
        show(told, json=True)
    else:
        print(issued.text)


def _enable(name: str, enabled: bool, data: Path | None, json: bool) -> None:
    from cacheyard.services import accounts

    with opened(data) as (_, store, _sealer):
        changed = accounts.enable_user(store, name, enabled)
    done(f"{name} is {'enabled' if enabled else 'disabled'}.", json, name=name, enabled=changed.enabled)


@contextmanager
def opened(data: Path | None) -> Iterator[tuple["Settings", "Store", "Sealer"]]:
    """The data directory's settings, store and key."""
    from cacheyard.cli import yard
    from cacheyard.cli.places import settings_of

    settings = settings_of(data)
    with yard.opened(settings) as (store, sealer):
        yield settings, store, sealer


def _typed(password: str | None) -> str | None:
    """`-` keeps a password out of the shell's history and the process list."""
    return getpass.getpass("Password: ") if password == "-" else password  # noqa: S105


def _given(password: str | None, known: str | None) -> str:
    if password is None and known is not None:
        return known
    return _typed(password if password is not None else "-") or ""


def time(ms: int) -> str:
    """A time as the API writes it."""
    from cacheyard.clock import iso

    return iso(ms) or ""


def show(told: Mapping[str, object], *, json: bool, note: str = "") -> None:
    """One thing, and a note below it for people."""
    from cacheyard.cli import table

    if json:
        table.print_json(told)
        return
    table.pairs(table.console(), told)
    if note:
        print(note)


def show_all(told: Sequence[Mapping[str, object]], *, json: bool) -> None:
    """A list."""
    from cacheyard.cli import table

    if json:
        table.print_json(told)
    else:
        table.rows(table.console(), told)


def done(sentence: str, json: bool, **told: object) -> None:
    """What was done, in a sentence for people or in fields for programs."""
    if json:
        show(told, json=True)
    else:
        print(sentence)
