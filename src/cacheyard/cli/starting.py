"""`up`, `api`, `agent` and `down`. What only the serving process needs is imported when it serves."""

import gc
import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cacheyard.cli import running
from cacheyard.settings import Settings

if TYPE_CHECKING:
    from cacheyard.services.bootstrap import Bootstrap


def up(settings: Settings, *, json: bool, detach: bool) -> int:
    """Start everything, here or in the background, and say where it is."""
    return _detach(settings, json=json) if detach else run(settings, api=True, agent=True, json=json)


def run(settings: Settings, *, api: bool, agent: bool, json: bool) -> int:
    """Serve in the foreground until told to stop."""
    log_to_stderr()
    from cacheyard.agent.agent import AgentRuns
    from cacheyard.cli.reach import CertificateRefused, PlainRefused
    from cacheyard.cli.serve import DatabaseLost, PublicRefused, ZoneRefused, serve
    from cacheyard.services.bootstrap import RegionRefused
    from cacheyard.store.slices import SliceRefused

    def ready(first: "Bootstrap", endpoint: str, ca_file: str) -> None:
        _greet(first, endpoint, ca_file, json=json)
        gc.freeze()  # what is there now stays: it need not be searched again
        gc.enable()

    refusals = (
        running.AlreadyRuns,
        AgentRuns,
        CertificateRefused,
        DatabaseLost,
        PlainRefused,
        RegionRefused,
        SliceRefused,
        ZoneRefused,
        PublicRefused,
        OSError,
    )
    why: list[BaseException] = []
    try:
        serve(settings, api=api, agent=agent, ready=ready)
    except* refusals as refused:
        why += refused.exceptions
    return _sorry(why) if why else 0


def down(settings: Settings, *, instances: bool) -> int:
    """Stop what runs on the data directory."""
    stopped = running.stop(settings.run)
    print("cacheyard is stopped." if stopped else f"Nothing serves from {settings.data}.")
    if instances:
        import asyncio

        from cacheyard.agent.agent import stop_all
        from cacheyard.engine import ours

        log_to_stderr()
        ours.join()  # whitelists let those in
        ended = asyncio.run(stop_all(settings)) if settings.database.exists() else 0
        print(f"{ended} servers are stopped; the next `cacheyard up` starts them again.")
    return 0


def _sorry(why: Sequence[BaseException]) -> int:
    for error in why:
        print(f"cacheyard: {error}", file=sys.stderr)
    return 1


def _detach(settings: Settings, *, json: bool) -> int:
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (there := running.running(settings.run)) is not None:
        return _greet_again(settings, there, json=json)
    command = [sys.executable, "-m", "cacheyard", "up", "--json", "--data", str(settings.data)]
    for name in ("port", "host", "region", "cidr", "dns_port", "tls_cert", "tls_key", "tls_names"):
        given = str(getattr(settings, name))
        command += [f"--{name.replace('_', '-')}", given] if given else []
    command += [f"--{name.replace('_', '-')}" for name in ("tls", "insecure_http") if getattr(settings, name)]
    with settings.log.open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    assert child.stdout is not None  # noqa: S101
    from cacheyard.services.bootstrap import Bootstrap  # while the child starts

    line = child.stdout.readline()  # ends when it is ready, or when it has died
    child.stdout.close()
    if not line:
        code = child.wait()
        tail = settings.log.read_text(errors="replace").splitlines()[-3:]
        print("\n".join(["cacheyard did not start:", *tail]), file=sys.stderr)
        return code or 1
    told = msgspec.json.decode(line)
    first = msgspec.convert(told, Bootstrap, strict=False)
    _greet(first, told["endpoint"], told.get("ca_file", ""), json=json)
    return 0


def _greet_again(settings: Settings, there: running.Running, *, json: bool) -> int:
    from cacheyard.services.bootstrap import bootstrap
    from cacheyard.store.db import Store
    from cacheyard.store.secrets import Sealer

    store = Store(settings.database)
    try:
        first = bootstrap(store, Sealer.of(settings.secret_key), settings)
        _greet(first, there.endpoint, there.ca_file, json=json)
    finally:
        store.close()
    return 0


def _greet(first: "Bootstrap", endpoint: str, ca_file: str, *, json: bool) -> None:
    """One line for programs; for people, the credentials and what to do first."""
    if json:
        told = {"endpoint": endpoint} | ({"ca_file": ca_file} if ca_file else {}) | msgspec.to_builtins(first)
        print(msgspec.json.encode(told).decode(), flush=True)
    elif endpoint:
        print(_welcome(first, endpoint, ca_file), flush=True)
    else:
        print("The agent is ready.", flush=True)


def _welcome(first: "Bootstrap", endpoint: str, ca_file: str) -> str:
    from cacheyard.domain.flavors import flavors

    address = first.cidr.rsplit(".", 1)[0] + ".100"
    smallest = next(iter(flavors()))
    body = (
        f'{{"name":"cache-1","engine":"Redis","engine_version":"6.0","capacity":0.125,'
        f'"spec_code":"{smallest}","az_codes":["{first.az_codes[0]}"],'
        f'"vpc_id":"{first.vpc_id}","subnet_id":"{first.subnet_id}",'
        f'"private_ip":"{address}","password":"Cache-yard-1"}}'
    )
    auth = (
        f'{{"auth":{{"identity":{{"methods":["password"],"password":{{"user":{{"name":"{first.user_name}",'
        f'"password":"{first.password}","domain":{{"name":"{first.domain_name}"}}}}}}}},'
        f'"scope":{{"project":{{"id":"{first.project_id}"}}}}}}}}'
    )
    trust, curl = "", "curl -s"
    if ca_file:
        trust, curl = f"  trust       {ca_file}   (how: docs/https.md)\n", f"curl -s --cacert {ca_file}"
    return f"""cacheyard serves at {endpoint}   (reference: {endpoint}/docs)

  region      {first.region}   zones {", ".join(first.az_codes)}
  project     {first.project_id}
  user        {first.user_name} in {first.domain_name}, password {first.password}
  access key  {first.access_key}
  secret key  {first.secret_key}
  vpc         {first.vpc_id}
  subnet      {first.subnet_id}
{trust}
The first cache, in three lines:

TOKEN=$({curl} -i {endpoint}/v3/auth/tokens -d '{auth}' | sed -n 's/^x-subject-token: //Ip' | tr -d '\\r')
{curl} -H "X-Auth-Token: $TOKEN" {endpoint}/v2/{first.project_id}/instances -d '{body}'
redis-cli -h {address} -a Cache-yard-1 PING
"""


def log_to_stderr() -> None:
    """JSON lines on stderr."""
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
