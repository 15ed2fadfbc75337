"""How servers speak TLS: their settings and files, and how cacheyard itself connects to them.

A server that speaks TLS has no other port: replicas follow by TLS, the nodes of a cluster talk by TLS on
their bus, and Sentinels and cacheyard connect by TLS too. Its private key is in a file that is of no use
without a password, which comes through standard input like the other secrets. docs/tls.md says more.
"""

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Mapping
from functools import cache

from cacheyard.domain.nodes import Address, NodeSettings
from cacheyard.engine.source import near
from cacheyard.streams import sending

PAIR = "tls.pem"  # in a server's directory: its certificate, and its key
AUTHORITY = "ca.crt"  # whose certificates it takes from its master and the members of its cluster
_KEY_PASSWORD = "tls-key-file-pass"  # noqa: S105 - the name of the setting
_SECONDS = 1.0
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL


def configuration(settings: NodeSettings, secret: str) -> dict[str, str]:
    """CONFIG names and values, in the order in which a running server takes them: a port must be free before
    it can be the other one."""
    on = bool(settings.tls)
    port, encrypted = ("0", str(settings.port)) if on else (str(settings.port), "0")
    switches = {
        "tls-ca-cert-file": AUTHORITY if on else "",
        _KEY_PASSWORD: password(secret) if on else "",
        **dict.fromkeys(("tls-cert-file", "tls-key-file"), PAIR if on else ""),
        # tenants have no certificates; on a cluster's bus all must have one anyway
        **({"tls-auth-clients": "no"} if on else {}),
        "tls-replication": "yes" if on else "no",
        "tls-cluster": "yes" if on and settings.clustered else "no",
    }
    if on:
        return {**switches, "port": port, "tls-port": encrypted}
    return {"tls-port": encrypted, "port": port, **switches}


def for_start(settings: NodeSettings, secret: str) -> tuple[dict[str, str], dict[str, str]]:
    """What a server's file says, and what comes through its standard input: the port and the secrets."""
    if not settings.tls:
        return {}, {"port": str(settings.port)}
    file = configuration(settings, secret)
    gate = {name: file.pop(name) for name in (_KEY_PASSWORD, "tls-port")}
    del file["port"]
    return file, gate


def changes(settings: NodeSettings, secret: str, now: Mapping[str, str], *, renewed: bool) -> dict[str, str]:
    """What is to be changed in a server that has `now`. `renewed`: its files are others, which it reads when
    it is told their names again. Without TLS, a server may be one that is built without."""
    wanted = {name: value for name, value in configuration(settings, secret).items() if name in now}
    different = {name: value for name, value in wanted.items() if now[name] != value}
    if renewed:
        return {name: value for name, value in wanted.items() if name in different or value == PAIR}
    return different


def password(secret: str) -> str:
    """Of the server's private key. It tells nothing of the secret it is made from."""
    return hmac.new(secret.encode(), b"key file", hashlib.sha256).hexdigest()


@cache
def trust(authority: str) -> ssl.SSLContext:
    """For connections to servers with certificates of that authority, by their addresses. An expired one
    counts too: who was away for so long must be able to tell the server of the next."""
    context = ssl.create_default_context(cadata=authority)
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


async def speaks_tls(address: Address) -> bool | None:
    """Whether a server expects TLS; None: it says nothing. It is told no secret."""
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(
                address.ip, address.port, local_addr=near(address.ip)
            )
            try:
                with sending():
                    writer.write(b"PING\r\n")
                first = await reader.read(1)
            finally:
                writer.close()
    except ConnectionResetError:
        return True
    except OSError:  # a time-out too
        return None
    return first not in (b"+", b"-")
