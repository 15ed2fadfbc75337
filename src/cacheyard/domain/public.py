"""Public access: a further address of the machine at which an instance answers, chosen from the operator's.

The API knows such an address by the id of a load balancer. None is needed here: the master binds the
address beside its own, as it does with the one that clients of a master/standby instance use, and
proxies listen there.
"""

from ipaddress import IPv4Address

import msgspec

UNFIT = ("cluster",)  # clients of a Redis Cluster are sent to the addresses of its nodes


class PublicAccess(msgspec.Struct, frozen=True, kw_only=True):
    """`instances.public_access`."""

    elb_id: str
    address: str


def pool(text: str) -> dict[str, str]:
    """The operator's addresses by id: `front-1=192.0.2.10, front-2=192.0.2.11`. Raises `ValueError`."""
    found: dict[str, str] = {}
    for part in text.replace(",", " ").split():
        name, equals, address = part.partition("=")
        if not name or not equals:
            raise ValueError(f"{part} is not an id and an address, id=address")
        one = IPv4Address(address)
        if one.is_loopback or one.is_unspecified or one.is_multicast:
            raise ValueError(f"{address} is no public address")
        if name in found or address in found.values():
            raise ValueError(f"{part} is there twice")
        found[name] = address
    return found
