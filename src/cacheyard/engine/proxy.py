"""The native proxy (`proxy/`): its configuration, and the socket by which it is told and asked.

The configuration is a file in the proxy's directory without a secret in it: the password of the
proxy's own account comes through its standard input (`gate`), and a reload keeps it.
"""

import asyncio
import json
import os
from pathlib import Path

import msgspec

from cacheyard.domain.nodes import Address
from cacheyard.domain.parameters import LONGEST_ARGUMENT
from cacheyard.domain.proxies import Mode, ProxySettings, digest, places
from cacheyard.engine.redis_conf import PROXY_USER, proxy_password
from cacheyard.streams import sending

CONF = "config.toml"
CERTIFICATE = "tls.crt"
CONTROL = "control"  # the socket; in the proxy's directory, which is where it runs

_OK = "ok"


class ProxyError(OSError):
    """A proxy refuses, or cannot be asked."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a proxy says of itself; it says more."""

    mode: Mode  # which alone needs a new process to change
    ready: bool  # knows who serves, by the configuration in force
    config_digest: str | None
    listen: tuple[str, ...]
    clients: int
    commands: int  # since it began
    commands_per_second: int
    input_bytes: int  # from clients, since it began
    output_bytes: int
    input_kbps: float
    output_kbps: float
    cpu_seconds: float
    memory: int  # bytes

    def listens(self, address: Address) -> bool:
        """Whether it listens there."""
        return _place(address) in self.listen


def conf(settings: ProxySettings, key: str = "") -> str:
    """The proxy's file. `key`: where it finds its private key, if it speaks TLS."""
    chosen = settings.parameters
    lines = [
        f"mode = {_text(settings.mode.value)}",
        f"listen = [{', '.join(_text(_place(one)) for one in places(settings))}]",
        f"servers = [{', '.join(_text(_place(server)) for server in settings.servers)}]",
        f"user = {_text(PROXY_USER)}",
        'password_from = "stdin"',
        f"control = {_text(CONTROL)}",
        f"siblings = [{', '.join(_text(f'../{sibling}/{CONTROL}') for sibling in settings.siblings)}]",
        f"digest = {_text(digest(settings))}",
        f"multi_db = {chosen.databases}",
        f"dispatch_pubsub_to_fixed_shard = {json.dumps(chosen.pubsub_to_one_shard)}",
        # a process of an older version, which goes on after an upgrade, does not know these
        *([f"on_replicas = {json.dumps(chosen.replica_commands)}"] if chosen.replica_commands else []),
        *([f"readers = {json.dumps(settings.readers)}"] if settings.readers else []),
        *([] if settings.client_ip else ["client_ip = false"]),
        "[slowlog]",
        f"slower_than_us = {chosen.slow_after_us}",
        f"max_len = {chosen.slow_entries}",
        "[limits]",
        f"maxclients = {settings.maxclients}",
        *([f"max_argument = {chosen.argument_bytes}"] if chosen.argument_bytes < LONGEST_ARGUMENT else []),
        "[times]",
        f"idle_s = {chosen.idle_seconds}",
    ]
    if settings.tls:
        lines += ["[tls]", f"cert = {_text(CERTIFICATE)}", f"key = {_text(key)}"]
    if settings.rename_commands:
        lines.append("[rename]")
        lines += [f"{_text(old)} = {_text(new)}" for old, new in settings.rename_commands.items()]
    return "\n".join((*lines, ""))


def gate(secret: str) -> str:
    """Its standard input."""
    return f"{proxy_password(secret)}\n"


async def state(directory: Path, seconds: float) -> State:
    """What the proxy that runs in a directory says of itself. Raises `ProxyError`."""
    said = await _told(directory, "state", seconds)
    try:
        return msgspec.json.decode(said, type=State)
    except msgspec.DecodeError as error:
        raise ProxyError(f"it says {said[:80]!r}: {error}") from error


async def reload(directory: Path, seconds: float) -> None:
    """Have it take the file over; its clients stay. Raises `ProxyError` when it does not, and goes on as it
    was."""
    said = (await _told(directory, "reload", seconds)).strip()
    if said != _OK:
        raise ProxyError(said)


async def _told(directory: Path, word: str, seconds: float) -> str:
    """The answer to one word."""
    try:
        async with asyncio.timeout(seconds):
            return await _asked(directory, word)
    except TimeoutError as error:
        raise ProxyError(f"no answer to {word} in {seconds:g} s") from error
    except ProxyError:
        raise
    except OSError as error:
        raise ProxyError(f"{word}: {error.strerror or error}") from error


async def _asked(directory: Path, word: str) -> str:
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:  # by the descriptor, as a socket's whole path may have 107 characters at most
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{place}/{CONTROL}")
    finally:
        os.close(place)
    try:
        with sending():
            writer.write(f"{word}\n".encode())
        return (await reader.read()).decode(errors="replace")
    finally:
        writer.close()


def _place(address: Address) -> str:
    return f"{address.ip}:{address.port}"


def _text(value: str) -> str:
    """As TOML has it, which for all that can be in here is as JSON has it."""
    return json.dumps(value)
