"""Clients in tests that come from other addresses than usual, as whitelists tell them apart."""

import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.caches import PASSWORD, Cache
from support.service import Service
from support.waiting import until

from cacheyard.engine import nft

FRIEND, OTHER_FRIEND, STRANGER = "127.10.0.7", "127.10.1.200", "127.0.0.1"
NAMED = [{"group_name": "friends", "ip_list": [FRIEND, "127.10.1.128/25", "192.0.2.0/24"]}]
_CAPABILITIES = {"CAP_SETGID": 6, "CAP_NET_ADMIN": 12}


def lack() -> str:
    """Why this machine cannot filter connections; empty: it can."""
    if nft.program() is None:
        return "nftables is not installed"
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
    assert found is not None
    missing = [name for name, bit in _CAPABILITIES.items() if not int(found[1], 16) >> bit & 1]
    return f"this user has no {' and no '.join(missing)}" if missing else ""


needs_filter = pytest.mark.skipif(bool(lack()), reason=f"no whitelist can be kept here: {lack()}")


def dial(ip: str, port: int = 6379, source: str = STRANGER, seconds: float = 5.0) -> socket.socket:
    """A connection from that address."""
    made = socket.socket()
    made.settimeout(seconds)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((source, 0))
        made.connect((ip, port))
    except OSError:
        made.close()
        raise
    return made


def gets_in(ip: str, port: int = 6379, source: str = STRANGER) -> bool:
    """Whether a client from there is let in; one that is not is told so at once."""
    try:
        dial(ip, port, source).close()
    except ConnectionRefusedError:
        return False
    return True


def says(link: socket.socket, command: str) -> bytes:
    """The answer to a command with a short answer."""
    link.sendall(f"{command}\r\n".encode())
    return link.recv(1 << 16)


def logged_in(ip: str, source: str) -> socket.socket:
    """A client from there, which has shown its password."""
    with ExitStack() as otherwise:
        link = otherwise.enter_context(dial(ip, source=source))
        if (said := says(link, f"AUTH {PASSWORD}")) != b"+OK\r\n":
            raise ConnectionError(f"{ip} says {said!r}")  # it is about to go
        otherwise.pop_all()
    return link


def is_cut(link: socket.socket) -> bool:
    """Whether a connection that was open has been ended from outside."""
    try:
        return link.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def info(ip: str, section: str, source: str = FRIEND) -> dict[str, str]:
    """INFO of a server, asked by somebody who may."""
    with closing(logged_in(ip, source)) as link:
        said = says(link, f"INFO {section}").decode()
    return dict(line.split(":", 1) for line in said.splitlines() if ":" in line)


def addresses(cache: Cache) -> dict[str, str]:
    """All addresses at which somebody may listen for an instance, and what each is."""
    with closing(sqlite3.connect(cache.service.data / "cacheyard.sqlite", timeout=10)) as rows:
        found = {
            ip: "the node" for (ip,) in rows.execute("SELECT ip FROM nodes WHERE instance_id=?", [cache.id])
        }
        for (ip,) in rows.execute("SELECT ip FROM instances WHERE id=?", [cache.id]):
            found.setdefault(ip, "the instance")
    return found


def put(cache: Cache, **body: Any) -> Any:
    """Set the whitelist as clients do; the answer."""
    return cache.service.http("PUT", f"/v2/{{p}}/instance/{cache.id}/whitelist", json=body)


def close_to_strangers(cache: Cache) -> None:
    """Only `FRIEND` and `OTHER_FRIEND` may come."""
    answer = put(cache, enable_whitelist=True, whitelist=NAMED)
    assert answer.status_code == 204, answer.text


def shown(cache: Cache) -> dict[str, Any]:
    """The whitelist as the API shows it."""
    found: dict[str, Any] = cache.service.http("GET", f"/v2/{{p}}/instance/{cache.id}/whitelist").json()
    return found


def table(service: Service) -> str:
    """The kernel's filter for a yard; empty: there is none."""
    return nft.listing(nft.table_of(service.data.resolve()))


@contextmanager
def pressed(cache: Cache) -> Iterator[list[str]]:
    """A stranger tries every address of an instance all the time, those that it gets meanwhile too. Where it
    got in, if anywhere."""
    got_in: list[str] = []
    done = threading.Event()

    def press() -> None:
        while not done.is_set():
            for ip in addresses(cache):
                if gets_in(ip):
                    got_in.append(ip)
            tries.append(1)

    tries: list[int] = []
    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield got_in
        seen = len(tries)
        while len(tries) < seen + 2 and thread.is_alive():
            done.wait(0.01)
    finally:
        done.set()
        thread.join(30)
    assert tries


class Unprivileged(Service):
    """A service that lacks a capability, whoever runs it."""

    def __init__(self, lacks: str | None) -> None:
        self._lacks = lacks
        super().__init__()

    def __enter__(self) -> "Unprivileged":
        return self

    def continues(self, lacks: str | None) -> None:
        """From now on it lacks that one, or none."""
        self._lacks = lacks
        self.restart()

    @contextmanager
    def without(self, capability: str) -> Iterator[None]:
        """It lacks that one meanwhile, and none afterwards."""
        try:
            self.continues(capability)
            yield
        finally:
            self.continues(None)

    def _command(self, *arguments: str) -> list[str]:
        lacks = self._lacks
        if lacks is None or os.geteuid() != 0:  # who is not root lacks it anyway
            return super()._command(*arguments)
        drop = ["setpriv", f"--inh-caps=-{lacks}", f"--bounding-set=-{lacks}", "--"]
        return [*drop, *super()._command(*arguments)]


def flush(service: Service) -> None:
    """What an administrator might do who does not know whose table it is."""
    program = nft.program()
    assert program is not None
    name = nft.table_of(service.data.resolve())
    subprocess.run([program, "delete", "table", "ip", name], check=True, timeout=10)


class World:
    """Another machine, as far as the kernel knows: a network namespace at the other end of a cable."""

    def __init__(self, inside: list[str], here: str, there: str) -> None:
        self.here, self.there = here, there  # our address at the cable, and its own
        self._inside = inside

    def ask(self, ip: str, port: int = 6379, words: str = "PING") -> str:
        """What a server answers to a client there which has shown its password; `refused`, or `nothing`."""
        done = subprocess.run(
            [*self._inside, sys.executable, "-c", _ASK, ip, str(port), PASSWORD, words],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout.strip()


_ASK = """
import socket, sys
ip, port, password, words = sys.argv[1:]
try:
    with socket.create_connection((ip, int(port)), timeout=5) as link:
        for command in (f"AUTH {password}", words):
            link.sendall(f"{command}\\r\\n".encode())
            said = link.recv(4096).decode()
    print(said.strip())
except ConnectionRefusedError:
    print("refused")
except TimeoutError:
    print("nothing")
"""


@contextmanager
def world() -> Iterator[World]:
    """One that is gone afterwards: with its process, which ends with us, however we end."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
    ours, cable, end = Path("/proc/self/ns/net").readlink(), f"cy{os.getpid()}a", f"cy{os.getpid()}b"
    with subprocess.Popen(command) as holder:
        try:
            theirs, inside = Path(f"/proc/{holder.pid}/ns/net"), ["nsenter", "-t", str(holder.pid), "-n"]
            until(lambda: theirs.readlink() != ours, seconds=10, what="the other machine")
            here, there = _ends()
            for command in (
                ["ip", "link", "add", cable, "type", "veth", "peer", "name", end, "netns", str(holder.pid)],
                ["ip", "addr", "add", f"{here}/30", "dev", cable],
                ["ip", "link", "set", cable, "up"],
                [*inside, "ip", "addr", "add", f"{there}/30", "dev", end],
                [*inside, "ip", "link", "set", end, "up"],
            ):
                subprocess.run(command, check=True, timeout=10, capture_output=True)
            yield World(inside, here, there)
        finally:
            holder.kill()


def _ends() -> tuple[str, str]:
    """Addresses for a cable that no other cable of this machine has."""
    shown = subprocess.run(["ip", "-4", "-o", "addr"], check=True, timeout=10, capture_output=True, text=True)
    free = [at for at in range(0, 256, 4) if f" 198.51.100.{at + 1}/" not in shown.stdout]
    at = random.choice(free)  # so that runs side by side do not meet
    return f"198.51.100.{at + 1}", f"198.51.100.{at + 2}"
