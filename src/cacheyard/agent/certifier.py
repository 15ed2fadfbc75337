"""Issues the certificates that the servers, proxies and Sentinels of this host show.

Each has its own, made here and signed by the region's authority when the process is started or switched to
TLS, when what it is for has changed, and in good time before it ends.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from ssl import SSLContext
from typing import Self

from cacheyard.clock import now_ms
from cacheyard.domain.certificates import Pair, due, issue, issued_by, names_in
from cacheyard.domain.names import zone_name
from cacheyard.engine import tls
from cacheyard.settings import Settings
from cacheyard.store.certificates import region_authority, region_name
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

LOOKS = 30  # so many times in the life of a certificate it is looked whether it is time for another
LONGEST = 30.0  # seconds from one look to the next


class Certifier:
    """One per agent."""

    def __init__(self, authority: Pair, zone: str, days: float) -> None:
        """`zone`: the DNS zone in which the region's names are, or would be."""
        self.authority = authority.certificate
        self._pair = authority
        self._zone = zone
        self._life = timedelta(days=days)

    @classmethod
    def of(cls, store: Store, sealer: Sealer, settings: Settings) -> Self:
        """That of a data directory. To be called in a thread."""
        authority = region_authority(store, sealer, settings.data)
        with store.read() as tx:
            region = region_name(tx)
        return cls(authority, zone_name(settings.dns_zone, region), settings.certificate_days)

    @property
    def trust(self) -> SSLContext:
        """For connections to those that have such certificates."""
        return tls.trust(self.authority)

    @property
    def look_seconds(self) -> float:
        """How often to look whether it is time for another."""
        return min(LONGEST, self._life.total_seconds() / LOOKS)

    def fits(self, certificate: str, wanted: Sequence[str]) -> bool:
        """Whether that certificate is for what is wanted, and has long enough to go."""
        if names_in(certificate) != set(self._names(wanted)) or due(certificate, now_ms()):
            return False
        return issued_by(self.authority, certificate)

    def issue(
        self, wanted: Sequence[str], password: str | None = None, life: timedelta | None = None
    ) -> Pair:
        """A new one, with a new key."""
        return issue(
            self._pair, self._names(wanted), now_ms(), self._life if life is None else life, password
        )

    def _names(self, wanted: Sequence[str]) -> list[str]:
        return [name if "." in name or ":" in name else f"{name}.{self._zone}" for name in wanted]


def in_memory(key: str) -> int:
    """A file descriptor by which a process that inherits it reads the key, which is on no disk."""
    descriptor = os.memfd_create("key")
    with open(descriptor, "w", closefd=False) as out:
        out.write(key)
    return descriptor
