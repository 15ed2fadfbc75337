"""Every command with its options, for cyclopts. Called by `main`, which reads a plain `up` by itself."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from cacheyard.cli import accounts, audit, policies
from cacheyard.cli.places import settings_of

app = App(name="cacheyard", help="A self-hosted Distributed Cache Service.", version_flags=["--version"])

Data = Annotated[Path, Parameter(help="The directory that holds all state.")]
Tls = Annotated[
    bool, Parameter(help="Speak HTTPS, with a certificate of the region's authority.", negative="")
]
TlsCert = Annotated[str, Parameter(help="Speak HTTPS with this certificate: a PEM file with its chain.")]
TlsKey = Annotated[str, Parameter(help="Its key, a PEM file, if it is not in the same.")]
TlsNames = Annotated[str, Parameter(help="More names and addresses that clients use, with commas.")]
InsecureHttp = Annotated[
    bool, Parameter(help="Plain HTTP even where other machines can reach it.", negative="")
]
Json = Annotated[bool, Parameter(help="Print JSON, for programs.", negative="")]


@app.command
def up(
    *,
    data: Data | None = None,
    port: Annotated[int | None, Parameter(help="Where to listen; 0 takes a free port.")] = None,
    host: Annotated[str | None, Parameter(help="The address to listen on.")] = None,
    region: Annotated[str | None, Parameter(help="Name of the region, chosen at first start.")] = None,
    cidr: Annotated[str | None, Parameter(help="Slice of 127.0.0.0/8 for instances, at first start.")] = None,
    dns_port: Annotated[
        int | None, Parameter(help="Where to answer for instances' names; 0: nowhere.")
    ] = None,
    tls: Tls | None = None,
    tls_cert: TlsCert | None = None,
    tls_key: TlsKey | None = None,
    tls_names: TlsNames | None = None,
    insecure_http: InsecureHttp | None = None,
    json: Json = False,
    detach: Annotated[bool, Parameter(help="Leave it running in the background.", negative="")] = False,
) -> int:
    """Start the service: API, tasks and agent. Caches that run are taken over as they are."""
    from cacheyard.cli import starting

    settings = settings_of(
        data,
        port=port,
        host=host,
        region=region,
        cidr=cidr,
        dns_port=dns_port,
        tls=tls,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_names=tls_names,
        insecure_http=insecure_http,
    )
    return starting.up(settings, json=json, detach=detach)


@app.command
def api(
    *,
    data: Data | None = None,
    port: int | None = None,
    host: str | None = None,
    dns_port: int | None = None,
    tls: Tls | None = None,
    tls_cert: TlsCert | None = None,
    tls_key: TlsKey | None = None,
    tls_names: TlsNames | None = None,
    insecure_http: InsecureHttp | None = None,
    json: Json = False,
) -> int:
    """Start the API and the tasks alone; an agent must run beside them."""
    from cacheyard.cli import starting

    settings = settings_of(
        data,
        port=port,
        host=host,
        dns_port=dns_port,
        tls=tls,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_names=tls_names,
        insecure_http=insecure_http,
    )
    return starting.run(settings, api=True, agent=False, json=json)


@app.command
def agent(*, data: Data | None = None) -> int:
    """Start this machine's agent alone."""
    from cacheyard.cli import starting

    return starting.run(settings_of(data), api=False, agent=True, json=False)


@app.command
def down(
    *,
    data: Data | None = None,
    instances: Annotated[bool, Parameter(help="Stop the caches too.", negative="")] = False,
) -> int:
    """Stop the service; the caches go on, unless --instances is given."""
    from cacheyard.cli import starting

    return starting.down(settings_of(data), instances=instances)


@app.command
def doctor(*, data: Data | None = None, json: Json = False) -> int:
    """Say which engines and abilities this machine has, and what each missing one would give."""
    from cacheyard.cli import doctor as examination

    return examination.show(json=json, data=data)


@app.command
def coverage(
    *,
    json: Json = False,
    markdown: Annotated[bool, Parameter(help="Print what docs/coverage.md holds.", negative="")] = False,
) -> int:
    """Say which operations of the contract are built."""
    from cacheyard.cli import coverage as page

    return page.show(json=json, markdown=markdown)


@app.command
def call(operation: str = "", /, *arguments: str) -> int:
    """Call an operation of the API: `cacheyard call list_instances --limit=5`.

    Parameters are named as in the contract. Without an operation it lists them all;
    `cacheyard call <operation> --help` lists the parameters of one.
    """
    # `main` never comes here: these words are the contract's to read, not this parser's
    from cacheyard.cli import calling

    return calling.call(operation, list(arguments))


accounts.add_to(app)
policies.add_to(app)
audit.add_to(app)


def run(words: list[str]) -> int:
    """Do what the words say; 2 when they cannot be understood."""
    try:
        done = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"cacheyard: {error}", file=sys.stderr)
        return 2
    return done if isinstance(done, int) else 0
