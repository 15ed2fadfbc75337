"""Talks to one Redis server as the internal user: is it there, what does it say, make it so.

Called by the agent and by tasks that form topologies or verify from outside. A `Link` is one
connection with short time-outs and no retries: whoever calls it decides what a failure means.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from ssl import SSLContext
from types import TracebackType
from typing import Any, NamedTuple, Self

from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ServerGone
from redis.exceptions import TimeoutError as NoAnswer

from cacheyard.domain.nodes import Address, Figures, NodeSettings, Role
from cacheyard.domain.slots import Range
from cacheyard.engine import tls
from cacheyard.engine.redis_conf import INTERNAL_USER, RESERVED_USERS, acl_rules, live, replication
from cacheyard.engine.source import near
from cacheyard.streams import hang_up, sending
from cacheyard.waiting import heeding

__all__ = [
    "SECONDS",
    "BusyLoadingError",
    "Link",
    "NoAnswer",
    "RedisError",
    "Refusal",
    "ResponseError",
    "apply",
    "check_write",
    "figures",
    "flush",
    "parse_info",
    "role",
    "server_version",
    "shutdown",
]

LISTEN_SECONDS = 0.3  # how long it may fail to listen at an address
SECONDS = 1.0  # how long a server may take to answer; a healthy one on this machine takes under a millisecond

# What 7.0 says, and what servers before it do.
_REFUSED = re.compile(r"(ERR )?(CONFIG SET failed|Invalid argument '.*' for CONFIG SET)", re.DOTALL)
_SOCKETS = re.compile(r"argument '(bind|port|tls-port)'")
_FIELD = re.compile(r"^(\w+):([^\r\n]*)", re.MULTILINE)


class Refusal(ResponseError):  # noqa: N818 - read as "a refusal"
    """The server does not take a value, and will not by asking again."""


class _Connection(Connection):
    """From where no client comes; with TLS if there is whom to trust."""

    def __init__(self, trust: SSLContext | None, **how: Any) -> None:
        super().__init__(**how)
        self.trust = trust

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        try:
            with sending(), heeding():
                await super().send_packed_command(command, check_health)
        except ConnectionResetError as error:
            raise ServerGone(str(error)) from error

    async def disconnect(self, *how: Any, **why: Any) -> None:
        """At once: it has its answers, or waits for them no longer."""
        if self._writer is not None:
            hang_up(self._writer)
        await super().disconnect(*how, **why)

    def _connection_arguments(self) -> Mapping[str, Any]:
        encryption = {} if self.trust is None else {"ssl": self.trust}
        return {**super()._connection_arguments(), "local_addr": near(self.host), **encryption}


class Link:
    """One connection to the server at `address`. Knows the names of renamed commands. Opens itself."""

    def __init__(
        self,
        address: Address,
        secret: str | None,
        *,
        user: str | None = INTERNAL_USER,
        renamed: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
        trust: SSLContext | None = None,
        switched: SSLContext | None = None,
    ) -> None:
        """`trust`: speak TLS, with servers of that; None: without. `switched`: who is to be trusted when the
        server turns out to speak the other way, which it then is spoken to in."""
        self.address = address
        self.heard = 0.0  # when the server last answered anything, by time.monotonic()
        self._renamed = dict(renamed or {})
        self._busy = asyncio.Lock()  # an answer belongs to the oldest question
        how: dict[str, Any] = {
            "host": address.ip,
            "port": address.port,
            "username": user if secret is not None else None,
            "password": secret,
            "protocol": 2,
            "decode_responses": True,
            "encoding_errors": "replace",
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
        }
        self._connection = _Connection(trust, **how)
        self._other: _Connection | None = None
        if switched is not None:
            self._other = _Connection(switched if trust is None else None, **how)

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, *words: str | int, seconds: float | None = None) -> Any:
        """The answer to one command. Raises `ResponseError` when the server refuses, another `RedisError`
        when it cannot be reached; `BusyLoadingError` says that it is there, reading its data."""
        async with self._busy:
            await self._open()
            await self._connection.send_command(self._named(str(words[0])), *words[1:])
            if seconds is None:
                answer = await self._connection.read_response()
            else:
                answer = await self._connection.read_response(timeout=seconds)
            self.heard = time.monotonic()
            return answer

    async def calls(self, commands: Iterable[tuple[str | int, ...]]) -> list[Any]:
        """The answers to several commands sent at once. A refusal is raised after the last answer."""
        answers: list[Any] = []
        refusal: ResponseError | None = None
        packed = [self._connection.pack_command(self._named(str(words[0])), *words[1:]) for words in commands]
        async with self._busy:
            await self._open()
            await self._connection.send_packed_command([part for parts in packed for part in parts])
            for _ in packed:
                try:
                    answers.append(await self._connection.read_response())
                except ResponseError as error:
                    refusal = refusal or error
            self.heard = time.monotonic()
        if refusal:
            raise refusal
        return answers

    async def tell(self, *words: str | int) -> None:
        """Have the server take a command that it answers with nothing. See `call` for what is raised."""
        async with self._busy:
            await self._open()
            packed = (self._connection.pack_command(*command) for command in (words, ("PING",)))
            await self._connection.send_packed_command([part for parts in packed for part in parts])
            try:
                await self._connection.read_response()
            except ResponseError:  # the answer to PING would be taken for the next one
                await self._connection.disconnect(nowait=True)
                raise
            self.heard = time.monotonic()

    async def ping(self) -> None:
        """Return if the server answers. See `call` for what is raised if it does not."""
        await self.call("PING")

    async def close(self) -> None:
        """Close the connection, once it has its answer; the next call opens it again."""
        async with self._busy:
            await self._connection.disconnect(nowait=True)

    async def _open(self) -> None:
        """Connect, if we are not. Who is told to stop meanwhile leaves nothing open."""
        if self._connection.is_connected:
            return
        try:
            await self._connect()
        except asyncio.CancelledError:
            await self._connection.disconnect(nowait=True)
            raise

    async def _connect(self) -> None:
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            if self._other is None or isinstance(error.__context__, ConnectionRefusedError):
                raise
            encrypted = self._connection.trust is not None
            if await tls.speaks_tls(self.address) is not (not encrypted):
                raise
            self._connection, self._other = self._other, self._connection
            await self._connection.connect()  # type: ignore[no-untyped-call]

    def _named(self, command: str) -> str:
        return self._renamed.get(command.lower(), command)


def parse_info(text: str) -> dict[str, str]:
    """The fields of an INFO answer."""
    return dict(_FIELD.findall(text))


async def server_version(link: Link) -> tuple[int, int, int]:
    """The version that the running server says it is."""
    fields = parse_info(await link.call("INFO", "server"))
    major, minor, patch = fields["redis_version"].split(".")[:3]
    return int(major), int(minor), int(patch)


class Keyspace(NamedTuple):
    """A database that has keys."""

    number: int
    keys: int
    expires: int  # keys that have a time to live
    avg_ttl: int  # milliseconds


def keyspace(info: Mapping[str, str]) -> list[Keyspace]:
    """What the fields of an INFO answer say of databases."""
    found = []
    for name, value in info.items():
        if value.startswith("keys="):  # of db0, db1, …
            said = dict(part.split("=", 1) for part in value.split(","))
            numbers = (int(said[field]) for field in ("keys", "expires", "avg_ttl"))
            found.append(Keyspace(int(name.removeprefix("db")), *numbers))
    return found


async def figures(link: Link, node_id: str, now: int) -> Figures:
    """What the server says of itself. Our own connection is not counted among its clients."""
    info = parse_info("\n".join(await link.calls((("INFO",), ("INFO", "commandstats")))))

    def number(name: str) -> int:
        return int(info.get(name, "0"))

    def calls(command: str) -> int:
        stats = info.get(f"cmdstat_{command}", "calls=0,")
        return int(stats.split(",", 1)[0].removeprefix("calls="))

    replica = info.get("role") == "slave"
    there = keyspace(info)
    expires = sum(one.expires for one in there)
    return Figures(
        node_id=node_id,
        seen_at=now,
        role=Role.REPLICA if replica else Role.MASTER,
        used_memory=number("used_memory"),
        max_memory=number("maxmemory"),
        keys=sum(one.keys for one in there),
        databases=",".join(str(one.number) for one in there),
        expires=expires,
        avg_ttl=sum(one.avg_ttl * one.expires for one in there) // expires if expires else 0,
        clients=max(0, number("connected_clients") - 1),
        hits=number("keyspace_hits"),
        misses=number("keyspace_misses"),
        gets=calls("get"),
        sets=calls("set"),
        commands_per_second=number("instantaneous_ops_per_sec"),
        input_kbps=float(info.get("instantaneous_input_kbps", "0")),
        output_kbps=float(info.get("instantaneous_output_kbps", "0")),
        cpu_seconds=float(info.get("used_cpu_sys", "0")) + float(info.get("used_cpu_user", "0")),
        link_up=not replica or info.get("master_link_status") == "up",
        offset=number("slave_repl_offset" if replica else "master_repl_offset"),
    )


async def role(link: Link) -> tuple[str, Address | None]:
    """`("master", None)`, or `("replica", its master)`."""
    answer = await link.call("ROLE")
    if answer[0] == "slave":
        return "replica", Address(ip=answer[1], port=int(answer[2]))
    return str(answer[0]), None


async def apply(link: Link, settings: NodeSettings, secret: str, *, renewed: bool = False) -> list[str]:
    """Make the running server as `settings` want it; what it already is, is left alone. Says what it changed.
    `renewed`: its certificate is another one.

    Run twice, it changes nothing. A password that changed is in force for the next AUTH; connections
    that are logged in stay, as Redis has it, unless their user is gone.
    """
    changed: list[str] = []
    version = await server_version(link)
    if settings.replica_of is None:  # a master takes writes before it takes the address that clients write to
        changed += await _apply_role(link, settings)
    changed += await _apply_config(link, settings, secret, version, renewed)
    await _apply_users(link, settings)
    if settings.replica_of is not None:
        changed += await _apply_role(link, settings)
    return changed


async def _apply_role(link: Link, settings: NodeSettings) -> list[str]:
    _, master = await role(link)
    wanted = settings.replica_of
    if master == wanted or settings.clustered:
        return []
    await link.call("REPLICAOF", *(("NO", "ONE") if wanted is None else (wanted.ip, wanted.port)))
    if master is None:  # it was the master: who is still connected shall look for the new one
        await link.calls(("CLIENT", "KILL", "TYPE", kind) for kind in ("normal", "pubsub"))
    return ["replicaof"]


async def _apply_config(
    link: Link, settings: NodeSettings, secret: str, server: tuple[int, int, int], renewed: bool
) -> list[str]:
    now = await parameters(link)
    wanted = live(settings, server) | replication(secret)
    # `bind` closes and opens the sockets and resets connections being made: never without need
    changes = {name: value for name, value in wanted.items() if now.get(name) != value}
    changes |= tls.changes(settings, secret, now, renewed=renewed)
    if not changes:
        return []
    await set_parameters(link, changes, server)
    return list(changes)


async def parameters(link: Link) -> dict[str, str]:
    """All that CONFIG GET tells."""
    answer = await link.call("CONFIG", "GET", "*")
    return dict(zip(answer[::2], answer[1::2], strict=True))


async def set_parameters(link: Link, wanted: Mapping[str, str], server: tuple[int, int, int]) -> None:
    """CONFIG SET of several, from 7.0 on of all or none. Raises `Refusal` when the server does not take a
    value; one that is loading, or busy with a script, has not refused anything.

    One that is to listen elsewhere closes its sockets first. While a child that it has just forked still
    holds them it can open none, neither new nor old: then it listens nowhere, until it is told again by the
    connection that there is.
    """
    deadline = time.monotonic() + LISTEN_SECONDS
    while True:
        try:
            if server >= (7, 0, 0):
                await link.call("CONFIG", "SET", *(word for pair in wanted.items() for word in pair))
            else:
                await link.calls(("CONFIG", "SET", name, value) for name, value in wanted.items())
        except ResponseError as error:
            sockets = _SOCKETS.search(str(error))
            if sockets and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
                continue
            if _REFUSED.match(str(error)) and (not sockets or sockets[1] != "bind"):
                raise Refusal(str(error)) from error
            raise  # an address may be free in a moment
        return


async def listen(link: Link, addresses: Iterable[str]) -> None:
    """Have the server open its sockets anew, at these addresses. Raises `ResponseError`."""
    await set_parameters(link, {"bind": " ".join(addresses)}, await server_version(link))


async def _apply_users(link: Link, settings: NodeSettings) -> None:
    # Not ACL LOAD: before 7.2 it closes the connection of every user but `default`, replication's too.
    there = set(await link.call("ACL", "USERS"))
    wanted = {user.name: acl_rules(user) for user in settings.users if user.name not in RESERVED_USERS}
    wanted.setdefault("default", ("reset",))
    commands: list[tuple[str | int, ...]] = [
        ("ACL", "SETUSER", name, *rules) for name, rules in wanted.items()
    ]
    if gone := sorted(there - wanted.keys() - RESERVED_USERS):
        commands.append(("ACL", "DELUSER", *gone))
    await link.calls(commands)


async def renew(link: Link, settings: NodeSettings, secret: str) -> None:
    """Have a server that speaks TLS take the certificate that its files have now. Connections stay."""
    wanted = tls.changes(settings, secret, await parameters(link), renewed=True)
    await set_parameters(link, wanted, await server_version(link))


async def send_clients_away(link: Link) -> None:
    """Close the connections of all clients: those of replicas, masters and our own stay."""
    await link.calls(("CLIENT", "KILL", "TYPE", kind) for kind in ("normal", "pubsub"))


async def flush(link: Link) -> None:
    """Remove all keys of all databases, without holding the server up for long."""
    await link.call("FLUSHALL", "ASYNC")


async def shutdown(link: Link, *, save: bool, seconds: float) -> None:
    """Ask the server to end; it does when this returns, or soon. `save`: write dump.rdb first.

    Raises `ResponseError` when it cannot (the disk is full).
    """
    try:
        await link.call("SHUTDOWN", "SAVE" if save else "NOSAVE", seconds=seconds)
    except (BusyLoadingError, ResponseError):
        raise
    except RedisError:  # it closed the connection: that is its answer
        pass
    finally:
        await link.close()


async def check_write(
    address: Address,
    secret: str | None,
    *,
    user: str | None = INTERNAL_USER,
    slots: Iterable[Range] = (),
    trust: SSLContext | None = None,
) -> None:
    """Connect as a client would; write, read back and delete a random key, of one of the `slots` if any are
    given. Nobody else sees it: it is all one transaction. Raises when any of it fails."""
    key, value = _key_in(tuple(slots)), secrets.token_hex(8)
    async with Link(address, secret, user=user, trust=trust) as link:
        await link.call("MULTI")
        await link.call("SET", key, value)
        await link.call("GET", key)
        await link.call("DEL", key)
        found = await link.call("EXEC")
        await link.call("GET", key)  # which may be another server's to answer
    if found != ["OK", value, 1]:
        raise ResponseError(f"wrote {value!r} and read {found!r}")


def _key_in(slots: tuple[Range, ...]) -> str:
    while True:
        key = f"cacheyard:check:{secrets.token_hex(8)}"
        slot = key_slot(key.encode())
        if not slots or any(first <= slot <= last for first, last in slots):
            return key
