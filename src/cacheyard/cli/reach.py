"""By what names and addresses clients reach the API, and whether others than this machine can.

Called by `serve` and `https`.
"""

import ipaddress
import socket

from cacheyard.settings import Settings

WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # all addresses, and one of them
_ELSEWHERE = (("192.0.2.1", socket.AF_INET), ("2001:db8::1", socket.AF_INET6))  # nothing is sent there


class PlainRefused(Exception):  # noqa: N818 - read as what happened
    """At {host} others than this machine would send passwords and tokens over plain HTTP. Use --tls, or
    --tls-cert and --tls-key; --insecure-http if something in front of it speaks TLS."""

    def __init__(self, host: str) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()).format(host=host))


class CertificateRefused(Exception):  # noqa: N818 - read as what happened
    """The certificate in {where} cannot be used: {why}."""

    def __init__(self, where: str, why: object) -> None:
        super().__init__((type(self).__doc__ or "").format(where=where, why=why))


def reached_at(settings: Settings) -> list[str]:
    """The names and addresses that clients may use, the one to tell them first."""
    named = [name for part in settings.tls_names.split(",") if (name := part.strip())]
    mine = [settings.host]
    if settings.host in WILDCARDS:
        mine = [*_own_addresses(), *([name] if (name := socket.gethostname()).isascii() else [])]
    return [_plain(name) for name in (*named, *mine)]


def is_private(listening: socket.socket) -> bool:
    """Whether nobody but this machine reaches that address."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url(scheme: str, host: str, port: int) -> str:
    """`https://[::1]:7654`."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _plain(name: str) -> str:
    """An address in the one way that certificates have it; a name as it is."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _own_addresses() -> list[str]:
    """What this machine would be called by from elsewhere."""
    found = []
    for address, family in _ELSEWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                found.append(probe.getsockname()[0])
        except OSError:
            continue  # there is no way out
    return found or ["127.0.0.1"]
