"""Has the kernel hold traffic to a bandwidth, by the programs `tc` and `nft`.

The loopback device, through which clients of this machine talk to its servers, gets a hierarchical token
bucket (HTB) with two classes for each cap: one for what comes from its addresses, one for what goes to them.
A table of ours in nft, one for each yard, names the class of each address; all other traffic, and what
addresses of the region's slice say to each other, passes by. That table is also the record of whose the
classes are: it is written before a class is made, and after it is removed, so one that no table names is
nobody's. Whatever was cut off at any moment, `apply` goes on from it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cacheyard.domain.caps import Cap
from cacheyard.engine.find import PLACES

DEVICE = "lo"
HANDLE = "ca"  # of our queueing discipline, in hexadecimal: all classes are ca:<number>
WAYS = {"source": "saddr", "target": "daddr"}  # maps of the table, and what they look at
SECONDS = 10.0  # a call takes some milliseconds
BURST = 128 << 10  # bytes, at least: what the loopback device carries in one piece is 64 KB
BURST_MS = 2  # of the rate, for the fast ones
QUANTUM = 60_000  # bytes; between classes that want more than they have, of which there are none
_LOCK = Path("/run/cacheyard-caps.lock")  # yards of one machine take turns
_PREFIX = "cacheyard_caps_"
_LAST = 0xFFFF
_CLASS = re.compile(rf"^class htb {HANDLE}:([0-9a-f]+) .*? rate (\d+)([KMG]?)bit ", re.MULTILINE)
_PATH = re.compile(r"/[\w./ +,=@-]{1,100}", re.ASCII)  # what needs no quoting and is short enough
_COMMENT = re.compile(r'^\tcomment "([^"]*)"$', re.MULTILINE)
_KBIT = {"": 0.001, "K": 1.0, "M": 1e3, "G": 1e6}
_CAP_NET_ADMIN = 12  # its bit in CapEff

Places = dict[str, dict[str, int]]  # way, then address: the number of its class


class CapError(OSError):
    """Traffic cannot be held to a bandwidth here."""


def table_of(data: Path) -> str:
    """The name of a yard's table: two yards of one machine have two."""
    return f"{_PREFIX}{hashlib.sha256(str(data).encode()).hexdigest()[:12]}"


def fault() -> str | None:
    """Why this process cannot cap anything here; None: it probably can. Changes nothing."""
    for name, package in (("tc", "iproute2"), ("nft", "nftables")):
        if _program(name) is None:
            return f"the program {name} is not installed (apt install {package})"
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    rights = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    if not rights >> _CAP_NET_ADMIN & 1:
        return "cacheyard may not change the network (it needs root, or CAP_NET_ADMIN)"
    sample = {way: {"127.0.0.1": 1} for way in WAYS}
    try:
        _is_ours()
        _run("nft", "--check", "--file", "-", text=_render(f"{_PREFIX}check", None, "127.0.0.0/8", sample))
    except CapError as error:
        return str(error)
    return None


def apply(data: Path, region: str, caps: Sequence[Cap]) -> bool:
    """Have these caps in force, and no others of this yard, nor of one whose directory is gone. Whether
    anything had to be changed. `region`: the slice whose addresses are not held to anything among themselves.

    Raises `CapError`; what was done is kept, and the next call goes on.
    """
    table = table_of(data)
    with _alone():
        there, classes = _maps(), _classes()
        mine = there.pop(table, {})
        left = [other for other in there if _is_left(other)]
        for other in left:
            del there[other]
        others = {number for maps in there.values() for number in _numbers(maps)}
        wanted, rates = _assign(mine, others | set(classes), caps)
        late = [number for number, mbit in rates.items() if classes.get(number) != mbit]
        gone = [number for number in classes if number not in others and number not in rates]
        if caps and not _is_ours():
            _run("tc", "qdisc", "add", "dev", DEVICE, "root", "handle", f"{HANDLE}:", "htb")
        _batch(f"class del dev {DEVICE} classid {HANDLE}:{number:x}" for number in gone)
        for other in left:
            _run("nft", "delete", "table", "ip", other)
        if mine != wanted:
            _run("nft", "--file", "-", text=_render(table, data, region, wanted))
        _batch(_class(number, rates[number]) for number in late)
        if not caps and not others and _is_ours():
            _run("tc", "qdisc", "del", "dev", DEVICE, "root")
        return bool(late or gone or left or mine != wanted)


def remove(data: Path) -> bool:
    """Take all caps of this yard away; whether there were any. Raises `CapError`."""
    if _program("tc") is None or _program("nft") is None:
        return False
    return apply(data, "127.0.0.0/8", ())


def _assign(mine: Places, taken: set[int], caps: Sequence[Cap]) -> tuple[Places, dict[int, int]]:
    """The class of each address, and the Mbit/s of each class. A cap keeps the class of its addresses."""
    wanted: Places = {}
    rates: dict[int, int] = {}
    free = (number for number in range(1, _LAST) if number not in taken)
    for way in WAYS:
        for cap in caps:
            known = (mine.get(way, {}).get(address, 0) for address in cap.addresses)
            number = next((one for one in known if one and one not in rates), 0) or next(free, 0)
            if not number:
                raise CapError(f"the kernel has no more than {_LAST} classes")
            rates[number] = cap.mbit
            wanted.setdefault(way, {}).update(dict.fromkeys(cap.addresses, number))
    return wanted, rates


def _render(table: str, data: Path | None, region: str, wanted: Mapping[str, Mapping[str, int]]) -> str:
    """What `nft` reads to make the table this and nothing else; without anything wanted, no table. It says
    whose it is, if `nft` can be told so."""
    lines = [f"add table ip {table}", f"delete table ip {table}"]
    if wanted:
        lines.append(f"table ip {table} {{")
        if data is not None and _PATH.fullmatch(str(data)):
            lines.append(f'  comment "{data}"')
        for way, places in wanted.items():
            items = ", ".join(f"{ip} : {HANDLE}:{number:x}" for ip, number in places.items())
            lines.append(f"  map {way} {{ type ipv4_addr : classid; elements = {{ {items} }}; }}")
        lines += [
            "  chain out { type filter hook output priority filter; policy accept;",
            f'    oifname != "{DEVICE}" return',
            f"    ip saddr {region} ip daddr {region} return",
        ]
        lines += [f"    meta priority set ip {WAYS[way]} map @{way}" for way in wanted]
        lines += ["  }", "}"]
    return "\n".join((*lines, ""))


def _class(number: int, mbit: int) -> str:
    burst = max(BURST, mbit * 125 * BURST_MS)
    rate = f"rate {mbit}mbit burst {burst} cburst {burst} quantum {QUANTUM}"
    return f"class replace dev {DEVICE} parent {HANDLE}: classid {HANDLE}:{number:x} htb {rate}"


def _maps() -> dict[str, Places]:
    """The tables of all yards."""
    said = msgspec.json.decode(_run("nft", "--json", "list", "ruleset", "ip"))
    found: dict[str, Places] = {}
    for one in said["nftables"]:
        if (known := one.get("map")) is not None and known["table"].startswith(_PREFIX):
            places = {ip: int(place.partition(":")[2], 16) for ip, place in known.get("elem", ())}
            found.setdefault(known["table"], {})[known["name"]] = places
    return found


def _classes() -> dict[int, int]:
    """The Mbit/s of all classes that there are."""
    said = _CLASS.findall(_run("tc", "class", "show", "dev", DEVICE))
    return {int(number, 16): round(int(rate) * _KBIT[unit] / 1000) for number, rate, unit in said}


def _is_left(table: str) -> bool:
    """Whether the directory of its yard is gone."""
    said = _COMMENT.search(_run("nft", "list", "table", "ip", table))
    return said is not None and not Path(said[1]).exists()


def _numbers(places: Places) -> set[int]:
    return {number for way in places.values() for number in way.values()}


def _is_ours() -> bool:
    """Whether the device has our queueing discipline; False: it has none. Raises `CapError` when it has
    somebody else's."""
    said = msgspec.json.decode(_run("tc", "-json", "qdisc", "show", "dev", DEVICE))
    root = next((one for one in said if one.get("root")), {"kind": "noqueue"})
    if root["kind"] == "noqueue":
        return False
    if (root["kind"], root["handle"]) != ("htb", f"{HANDLE}:"):
        raise CapError(f"{DEVICE} has somebody else's queueing discipline ({root['kind']})")
    return True


@contextmanager
def _alone() -> Iterator[None]:
    try:
        lock = os.open(_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CapError(f"{_LOCK}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(PLACES))


def _batch(lines: Iterator[str]) -> None:
    if text := "\n".join(lines):
        _run("tc", "-batch", "-", text=f"{text}\n")


def _run(name: str, *arguments: str, text: str = "") -> str:
    program = _program(name)
    if program is None:
        raise CapError(f"the program {name} is not installed")
    try:
        done = subprocess.run(
            [program, *arguments], input=text, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise CapError(f"{name} did not end in {SECONDS:g} s") from late
    if done.returncode != 0:
        raise CapError(" ".join(done.stderr.split())[:300] or f"{name} ended with {done.returncode}")
    return done.stdout
