"""The zone at one moment: every name in it, and the records that stand there, as text."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from dns.name import Name, from_text
from dns.rdatatype import NS, SOA, A, RdataType

from cacheyard.domain.names import (
    TTL,
    Named,
    addresses,
    has_readonly_name,
    host_of,
    readonly_addresses,
    readonly_host_of,
)

Records = Mapping[RdataType, list[str]]

SERVER = "ns"  # the host in the zone that is this server
_SECONDARY = "3600 600 86400"  # refresh, retry, expire: for secondary servers, of which there are none


class Zone:
    """What names there are. A name is looked up by the one label that it has before the zone's own."""

    def __init__(self, zone: str, server: str, serial: int, instances: Iterable[Named]) -> None:
        """`server`: the address of this server. `serial`: grows from one zone to the next."""
        self.origin = from_text(zone)
        ns = f"{SERVER}.{self.origin}"
        self._apex: Records = {
            SOA: [f"{ns} hostmaster.{self.origin} {serial} {_SECONDARY} {TTL}"],
            NS: [ns],
        }
        self._hosts: dict[bytes, list[str]] = {}
        for named in instances:
            self._hosts[host_of(named.id).encode()] = addresses(named)
            if has_readonly_name(named.cache_mode):
                self._hosts[readonly_host_of(named.id).encode()] = readonly_addresses(named)
        self._server: Records = {RdataType.AAAA if ip_address(server).version == 6 else A: [server]}

    @property
    def soa(self) -> list[str]:
        """What a negative answer shows; its last number says how long to remember that."""
        return self._apex[SOA]

    def at(self, name: Name) -> Records | None:
        """The records of a name of the zone; None: there is no such name."""
        labels = name.relativize(self.origin).labels
        if not labels:
            return self._apex
        host = labels[0].lower()
        if len(labels) > 1:
            return None
        if host == SERVER.encode():
            return self._server
        found = self._hosts.get(host)
        return None if found is None else {A: found}
