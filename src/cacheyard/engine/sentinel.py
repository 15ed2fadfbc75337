"""Redis Sentinel: its configuration, and what it is told and asked.

One set of Sentinels watches all master/standby instances of a region that speak TLS, and another one the
others: a Sentinel speaks either way, with all servers. A master is watched under a
name of its own for each watch (`store.shards`), so that what a Sentinel remembers of an earlier one
(a master since moved as planned, replicas since removed) means nothing. Who watches what is in the
rows; a Sentinel's file is only what it needs to start.
"""

import hashlib
import hmac
from contextlib import suppress

import msgspec

from cacheyard.domain.nodes import Address
from cacheyard.engine.redis import Link, ResponseError
from cacheyard.engine.redis_conf import SENTINEL_USER, SILENT_MS, sentinel_password

SETS = 2  # the first for servers without TLS
COUNT = 3  # one may die while a failover is voted on
QUORUM = 2
PORT = 26379  # of the first; the others have the next ones
CONF = "sentinel.conf"
CERTIFICATE = "tls.crt"
AUTHORITY = "ca.crt"
LOG = "sentinel.log"

SOURCE_SINCE = (7, 0, 0)
READ_MS = 10_000  # how often a Sentinel reads what servers say of themselves: Redis' own
READ_SOON_MS = 200  # for as long as a task waits for it

_STUCK_MS = (
    3000  # a failover that gets stuck is given up after so long, and may be tried again after twice that
)


class Watched(msgspec.Struct, frozen=True):
    """A master as a Sentinel knows it."""

    name: str
    master: Address
    epoch: int  # of its configuration: of two Sentinels that differ, the higher one knows better
    silent: bool  # this Sentinel believes that it is down
    given_up: bool  # a quorum believes that it is down: a failover follows
    failing_over: bool  # this Sentinel is putting a replica in its place


def conf(address: Address, password: str, chooses_source: bool, key: int | None = None) -> str:
    """The file of a Sentinel that watches nobody yet. It is rewritten by Sentinel itself. `chooses_source`:
    it is of `SOURCE_SINCE` or newer, which does not by itself talk to servers from where it listens. `key`:
    the file descriptor by which it reads its private key, if it speaks TLS."""
    encryption = (
        f"tls-port {address.port}",
        f"tls-ca-cert-file {AUTHORITY}",
        f"tls-cert-file {CERTIFICATE}",
        f"tls-key-file /proc/self/fd/{key}",
        "tls-auth-clients no",
        "tls-replication yes",
    )
    return "\n".join(
        (
            f"port {address.port if key is None else 0}",
            *(() if key is None else encryption),
            f"bind {address.ip}",
            *((f"bind-source-addr {address.ip}",) if chooses_source else ()),
            "protected-mode no",
            f"logfile {LOG}",
            f"requirepass {password}",
            f"sentinel sentinel-pass {password}",
            f"sentinel announce-ip {address.ip}",
            f"sentinel announce-port {address.port}",
            "sentinel deny-scripts-reconfig yes",
            "",
        )
    )


def addresses(ip: str, *, encrypted: bool) -> list[Address]:
    """Where the Sentinels of a set are."""
    first = PORT + (COUNT if encrypted else 0)
    return [Address(ip, first + number) for number in range(COUNT)]


def password_of(secret: str) -> str:
    """What Sentinels ask for, made from a secret of the region; it tells nothing of that."""
    return hmac.new(secret.encode(), b"sentinels", hashlib.sha256).hexdigest()


async def watched(link: Link) -> dict[str, Watched]:
    """All masters that the Sentinel watches, by name."""
    found = {}
    for flat in await link.call("SENTINEL", "MASTERS"):
        master = _watched(flat)
        found[master.name] = master
    return found


async def watched_as(link: Link, name: str) -> Watched | None:
    """One master by its name; None when the Sentinel does not watch it."""
    try:
        flat = await link.call("SENTINEL", "MASTER", name)
    except ResponseError:
        return None
    return _watched(flat)


def _watched(flat: list[str]) -> Watched:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    master = Address(ip=fields["ip"], port=int(fields["port"]))
    flags = fields["flags"].split(",")
    epoch = int(fields["config-epoch"])
    return Watched(
        fields["name"],
        master,
        epoch,
        silent="s_down" in flags,
        given_up="o_down" in flags,
        failing_over="failover_in_progress" in flags,
    )


async def watch(link: Link, name: str, master: Address, secret: str) -> None:
    """Begin to watch a master, whose instance has that internal secret. Watched already: as well."""
    options: dict[str, str | int] = {
        "auth-user": SENTINEL_USER,
        "auth-pass": sentinel_password(secret),
        "down-after-milliseconds": SILENT_MS,
        "failover-timeout": _STUCK_MS,
        "parallel-syncs": 1,
    }
    words = [word for pair in options.items() for word in pair]
    try:
        await link.calls(
            (
                ("SENTINEL", "MONITOR", name, master.ip, master.port, QUORUM),
                ("SENTINEL", "SET", name, *words),
            )
        )
    except ResponseError as error:
        if "Duplicate" not in str(error) and "already" not in str(error):
            raise


async def unwatch(link: Link, name: str) -> None:
    """Watch a master no more. Not watched anyway: as well."""
    try:
        await link.call("SENTINEL", "REMOVE", name)
    except ResponseError as error:
        if "No such master" not in str(error):
            raise


async def fail_over(link: Link, name: str) -> None:
    """Have a replica take the master's place now, without a vote. Raises `ResponseError` when the Sentinel
    does not know a replica that could, or is at it already."""
    await link.call("SENTINEL", "FAILOVER", name)


async def priorities(link: Link, name: str) -> dict[str, int]:
    """The priority of each replica of a master as the Sentinel last read it, by address; nothing when it does
    not watch that master."""
    try:
        answer = await link.call("SENTINEL", "REPLICAS", name)
    except ResponseError:
        return {}
    found = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in answer]
    return {fields["ip"]: int(fields["slave-priority"]) for fields in found}


async def read_every(link: Link, milliseconds: int) -> None:
    """How often the Sentinel reads the priorities and offsets of servers. Before 7.0 it cannot be told."""
    with suppress(ResponseError):
        await link.call("SENTINEL", "DEBUG", "info-period", milliseconds)
