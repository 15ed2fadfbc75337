"""`cacheyard audit`: who did what, straight from the data directory, whether the service runs or not."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from cacheyard.cli.accounts import Data, Json, opened, refusable, time

if TYPE_CHECKING:
    from cacheyard.store.audit import Entry

_AGO = re.compile(r"(\d{1,6})([smhd])")
_FIRST = ("at", "user_name", "operation", "status", "error_code", "source", "resources")
_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def add_to(app: App) -> None:
    """Add the command."""
    app.command(audit)


@refusable
def audit(
    *,
    user: Annotated[str | None, Parameter(help="A user's name or id.")] = None,
    instance: Annotated[str | None, Parameter(help="The id of an instance, or of anything else.")] = None,
    since: Annotated[str | None, Parameter(help="A time like 2026-01-31T08:00, or 90m, 12h, 7d ago.")] = None,
    failed: Annotated[bool, Parameter(help="Only what was refused or failed.", negative="")] = False,
    limit: Annotated[int, Parameter(help="The newest that many.")] = 100,
    data: Data | None = None,
    json: Json = False,
) -> None:
    """Show who did what, newest last: what changed something, and who was not let in."""
    from cacheyard.cli import table
    from cacheyard.errors import Invalid
    from cacheyard.store import audit as rows

    if limit < 1:
        raise Invalid(parameter="limit", why="it must be at least 1")
    begin = _ms(since) if since is not None else 0
    with opened(data) as (_, store, _sealer), store.read() as tx:
        found = rows.find(tx, user=user, instance=instance, since=begin, failed=failed, limit=limit)
    told = [_told(entry) for entry in reversed(found)]
    if json:
        table.print_json(told)
    else:
        brief = [{**each, "at": each["at"][:19]} for each in told]
        table.rows(table.console(), brief, first=_FIRST)


def _told(entry: "Entry") -> dict[str, Any]:
    return {
        "at": time(entry.at),
        "user_name": entry.user_name,
        "operation": entry.operation,
        "status": entry.status,
        "error_code": entry.error_code,
        "resources": entry.resources,
        "source": entry.source,
        "action": entry.action,
        "project_id": entry.project_id,
        "request_id": entry.request_id,
        "user_id": entry.user_id,
    }


def _ms(since: str) -> int:
    from cacheyard.clock import now_ms
    from cacheyard.errors import Invalid

    if ago := _AGO.fullmatch(since):
        return now_ms() - int(ago[1]) * _MS[ago[2]]
    try:
        at = datetime.fromisoformat(since)
    except ValueError:
        why = "it must be a time like 2026-01-31T08:00 (UTC), or so long ago: 90m, 12h, 7d"
        raise Invalid(parameter="since", why=why) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
