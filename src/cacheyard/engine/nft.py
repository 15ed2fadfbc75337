"""The kernel's filter, by the program `nft`: one table per yard, rendered whole and taken over at once.

The table looks at the first packet of a connection alone: the packets of those that are there pass by one
comparison. A connection that may not be is refused with a reset, so that clients know at once. Connections
from this machine are looked at where they go out, because only there the kernel knows whose they are; those
from elsewhere where they come in.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from cacheyard.domain.whitelist import Fence
from cacheyard.engine import ours, sockets
from cacheyard.engine.find import PLACES

SECONDS = 10.0  # it takes some milliseconds, with hundreds of instances some more
_TABLE = re.compile(r"^table ip (cacheyard_[0-9a-f]{12})$", re.MULTILINE)
_SAID = re.compile(r'^\tcomment "([^"]*)"$', re.MULTILINE)
_COMMENT = re.compile(r"/[\w./ +,=@-]{1,100}", re.ASCII)  # paths that need no quoting and are short enough
_NEW = "tcp flags & (fin | syn | rst | ack) == syn"


class NftError(OSError):
    """The filter could not be changed, and is as it was."""


def program() -> str | None:
    """Where `nft` is."""
    return shutil.which("nft") or shutil.which("nft", path=":".join(PLACES))


def fault() -> str | None:
    """Why this process cannot filter connections here; None: it can. Changes nothing."""
    if not (ours.joined() or ours.may_join()):
        return "cacheyard may not change its group (it needs root, or CAP_SETGID beside CAP_NET_ADMIN)"
    if program() is None:
        return "the program nft is not installed (apt install nftables)"
    sample = Fence(instance_id="", addresses=("127.0.0.1",), allowed=("192.0.2.0/24",))
    try:
        _run("--check", "--file", "-", text=render("cacheyard_check", [sample]))
    except NftError as error:
        return f"nft cannot filter here: {error}"
    if (why := sockets.fault()) is not None:
        return f"the kernel does not let connections be cut: {why}"
    return None


def table_of(data: Path) -> str:
    """The name of a yard's table: two yards of one machine have two."""
    return f"cacheyard_{hashlib.sha256(str(data).encode()).hexdigest()[:12]}"


def render(table: str, fences: Sequence[Fence], data: Path | None = None) -> str:
    """What `nft` reads to make the table this and nothing else, whatever it was; without fences, no table.
    `data`: the yard's directory, which the table names for whoever finds it."""
    lines = [f"add table ip {table}", f"delete table ip {table}"]
    if not fences:
        return _text(lines)
    lines.append(f"table ip {table} {{")
    if data is not None and _COMMENT.fullmatch(str(data)):
        lines.append(f'  comment "{data}"')
    for number, fence in enumerate(fences):
        lines += [
            f"  set s{number} {{ type ipv4_addr; flags interval; elements = {_set(fence.allowed)}; }}",
            f"  chain c{number} {{ ip saddr @s{number} accept; reject with tcp reset; }}",
            f"  chain o{number} {{ meta skgid {ours.GROUP} accept; goto c{number}; }}",
        ]
    for way, chain in (("local", "o"), ("remote", "c")):
        places = (
            f"{ip} : goto {chain}{number}" for number, fence in enumerate(fences) for ip in fence.addresses
        )
        lines.append(f"  map {way} {{ type ipv4_addr : verdict; elements = {_set(places)}; }}")
        lines += _public(way, chain, fences)
    public = any(fence.places for fence in fences)
    ports = f" {_NEW} ip daddr . tcp dport vmap @public_{{}};" if public else ""
    lines += [
        "  chain out { type filter hook output priority filter; policy accept;",
        f"    {_NEW} ip daddr vmap @local;{ports.format('local')} }}",
        "  chain in { type filter hook input priority filter; policy accept;",
        '    iif "lo" accept;',
        f"    {_NEW} ip daddr vmap @remote;{ports.format('remote')} }}",
        "}",
    ]
    return _text(lines)


def _public(way: str, chain: str, fences: Sequence[Fence]) -> list[str]:
    """Of these addresses one port is an instance's, and the rest is not our business."""
    places = [
        f"{place.ip} . {place.port} : goto {chain}{number}"
        for number, fence in enumerate(fences)
        for place in fence.places
    ]
    if not places:
        return []
    kind = "type ipv4_addr . inet_service : verdict"
    return [f"  map public_{way} {{ {kind}; elements = {_set(places)}; }}"]


def apply(text: str) -> None:
    """Take over what `render` made, all of it or nothing. Raises `NftError`."""
    _run("--file", "-", text=text)


def listing(table: str) -> str:
    """The table as the kernel has it, to be compared with an earlier listing; empty: there is none."""
    try:
        return _run("list", "table", "ip", table)
    except NftError:
        return ""


def orphans() -> list[str]:
    """Tables of yards whose directories are no longer there."""
    found = []
    for table in _TABLE.findall(_run("list", "tables", "ip")):
        said = _SAID.search(listing(table))
        if said is not None and not Path(said[1]).exists():
            found.append(table)
    return found


def remove(table: str) -> bool:
    """Take the table away; whether there was one. Raises `NftError`."""
    if program() is None or not listing(table):
        return False
    apply(render(table, ()))
    return True


def _run(*arguments: str, text: str = "") -> str:
    found = program()
    if found is None:
        raise NftError("the program nft is not installed")
    try:
        done = subprocess.run(
            [found, *arguments], input=text, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise NftError(f"nft did not end in {SECONDS:g} s") from late
    if done.returncode != 0:
        raise NftError(" ".join(done.stderr.split())[:300] or f"nft ended with {done.returncode}")
    return done.stdout


def _set(items: Iterable[str]) -> str:
    return f"{{ {', '.join(items)} }}"


def _text(lines: Iterable[str]) -> str:
    return "\n".join((*lines, ""))
