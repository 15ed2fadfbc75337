"""Talks to one Redis server as the internal user: is it there, what does it say, make it so.

Called by the agent and by tasks that form topologies or verify from outside. A `Link` is one
connection with short time-outs and no retries: whoever calls it decides what a failure means.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswer

from cacheyard.domain.nodes import Address, Figures, NodeSettings
from cacheyard.engine.redis_conf import INTERNAL_USER, RESERVED_USERS, acl_rules, live, replication

__all__ = [
    "SECONDS",
    "BusyLoadingError",
    "Link",
    "NoAnswer",
    "RedisError",
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

SECONDS = 1.0  # how long a server may take to answer; a healthy one on this machine takes under a millisecond

_FIELD = re.compile(r"^(\w+):([^\r\n]*)", re.MULTILINE)


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
    ) -> None:
        self.address = address
        self.heard = 0.0  # when the server last answered anything, by time.monotonic()
        self._renamed = dict(renamed or {})
        self._busy = asyncio.Lock()  # an answer belongs to the oldest question
        self._connection = Connection(
            host=address.ip,
            port=address.port,
            username=user if secret is not None else None,
            password=secret,
            protocol=2,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )

    async def __aenter__(self) -> Self:
        await self._connection.connect()  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, *words: str | int, seconds: float | None = None) -> Any:
        """The answer to one command. Raises `ResponseError` when the server refuses, another `RedisError`
        when it cannot be reached; `BusyLoadingError` says that it is there, reading its data."""
        async with self._busy:
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

    async def ping(self) -> None:
        """Return if the server answers. See `call` for what is raised if it does not."""
        await self.call("PING")

    async def close(self) -> None:
        """Close the connection, once it has its answer; the next call opens it again."""
        async with self._busy:
            await self._connection.disconnect(nowait=True)

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


async def figures(link: Link, node_id: str, now: int) -> Figures:
    """What the server says of itself. Our own connection is not counted among its clients."""
    info = parse_info("\n".join(await link.calls((("INFO",), ("INFO", "commandstats")))))

    def number(name: str) -> int:
        return int(info.get(name, "0"))

    def calls(command: str) -> int:
        stats = info.get(f"cmdstat_{command}", "calls=0,")
        return int(stats.split(",", 1)[0].removeprefix("calls="))

    replica = info.get("role") == "slave"
    return Figures(
        node_id=node_id,
        seen_at=now,
        used_memory=number("used_memory"),
        max_memory=number("maxmemory"),
        keys=sum(
            int(value.split(",", 1)[0].removeprefix("keys="))
            for value in info.values()
            if value.startswith("keys=")  # of db0, db1, …
        ),
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


async def apply(link: Link, settings: NodeSettings, secret: str) -> list[str]:
    """Make the running server as `settings` want it; what it already is, is left alone. Says what it changed.

    Run twice, it changes nothing. A password that changed is in force for the next AUTH; connections
    that are logged in stay, as Redis has it, unless their user is gone.
    """
    changed = await _apply_config(link, settings, secret, await server_version(link))
    await _apply_users(link, settings)
    _, master = await role(link)
    if master != settings.replica_of:
        wanted = settings.replica_of
        await link.call("REPLICAOF", *(("NO", "ONE") if wanted is None else (wanted.ip, wanted.port)))
        changed.append("replicaof")
    return changed


async def _apply_config(
    link: Link, settings: NodeSettings, secret: str, server: tuple[int, int, int]
) -> list[str]:
    answer = await link.call("CONFIG", "GET", "*")
    now = dict(zip(answer[::2], answer[1::2], strict=True))
    wanted = live(settings, server) | replication(secret)
    # `bind` closes and opens the sockets and resets connections being made: never without need
    changes = {name: value for name, value in wanted.items() if now.get(name) != value}
    if not changes:
        return []
    if server >= (7, 0, 0):  # all or nothing
        await link.call("CONFIG", "SET", *(word for pair in changes.items() for word in pair))
    else:
        await link.calls(("CONFIG", "SET", name, value) for name, value in changes.items())
    return list(changes)


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


async def check_write(address: Address, secret: str | None, *, user: str | None = INTERNAL_USER) -> None:
    """Connect as a client would; write, read back and delete a random key. Raises when any of it fails."""
    key, value = f"cacheyard:check:{secrets.token_hex(8)}", secrets.token_hex(8)
    async with Link(address, secret, user=user) as link:
        await link.call("SET", key, value, "PX", 10_000)
        found = await link.call("GET", key)
        await link.call("DEL", key)
    if found != value:
        raise ResponseError(f"wrote {value!r} and read {found!r}")
