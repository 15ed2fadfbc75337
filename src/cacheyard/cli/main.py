"""The `cacheyard` command."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from cacheyard.settings import Settings, default_data_dir, load

app = App(name="cacheyard", help="A self-hosted Distributed Cache Service.", version_flags=["--version"])

Data = Annotated[Path, Parameter(help="The directory that holds all state.")]
Json = Annotated[bool, Parameter(help="Print JSON, for programs.", negative="")]


@app.command
def up(
    *,
    data: Data | None = None,
    port: Annotated[int | None, Parameter(help="Where to listen; 0 takes a free port.")] = None,
    host: Annotated[str | None, Parameter(help="The address to listen on.")] = None,
    region: Annotated[str | None, Parameter(help="Name of the region, chosen at first start.")] = None,
    cidr: Annotated[str | None, Parameter(help="Slice of 127.0.0.0/8 for instances, at first start.")] = None,
    json: Json = False,
    detach: Annotated[bool, Parameter(help="Leave it running in the background.", negative="")] = False,
) -> int:
    """Start the service: API, tasks and agent. Caches that run are taken over as they are."""
    from cacheyard.cli import starting

    settings = _settings(data, port=port, host=host, region=region, cidr=cidr)
    return starting.up(settings, json=json, detach=detach)


@app.command
def api(
    *,
    data: Data | None = None,
    port: int | None = None,
    host: str | None = None,
    json: Json = False,
) -> int:
    """Start the API and the tasks alone; an agent must run beside them."""
    from cacheyard.cli import starting

    return starting.run(_settings(data, port=port, host=host), api=True, agent=False, json=json)


@app.command
def agent(*, data: Data | None = None) -> int:
    """Start this machine's agent alone."""
    from cacheyard.cli import starting

    return starting.run(_settings(data), api=False, agent=True, json=False)


@app.command
def down(
    *,
    data: Data | None = None,
    instances: Annotated[bool, Parameter(help="Stop the caches too.", negative="")] = False,
) -> int:
    """Stop the service; the caches go on, unless --instances is given."""
    from cacheyard.cli import starting

    return starting.down(_settings(data), instances=instances)


@app.command
def doctor(*, json: Json = False) -> int:
    """Say which engines and abilities this machine has, and what each missing one would give."""
    from cacheyard.cli import doctor as examination

    return examination.show(json=json)


@app.command
def coverage(*, json: Json = False, markdown: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Say which operations of the contract are built."""
    from cacheyard.cli import coverage as page

    return page.show(json=json, markdown=markdown)


@app.command
def call(
    operation: str,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Call an operation of the API: `cacheyard call create_instance --name=cache-1 …`.

    Parameters are named as in the contract; lists and objects are given as JSON. --data, --json and
    --help are the command's own; `cacheyard call <operation> --help` lists the rest.
    """
    from cacheyard.cli import calling

    return calling.call(operation, list(arguments))


def _settings(data: Path | None, **flags: object) -> Settings:
    return load(data or default_data_dir(), os.environ, **flags)


def main() -> None:
    """The entry point of the package."""
    from cacheyard.cli import accounts

    accounts.add_to(app)
    sys.exit(app() or 0)
