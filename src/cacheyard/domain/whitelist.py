"""From where an instance may be reached: groups of addresses and ranges, and whether they are in force."""

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError, collapse_addresses

import msgspec

from cacheyard.domain.nodes import Address

GROUPS = 4  # of an instance; 5.11.4
ENTRIES = 20  # of an instance, in all its groups; 5.11.4


class Group(msgspec.Struct, frozen=True):
    """Some addresses and ranges under a name."""

    name: str
    ips: tuple[str, ...]


class Whitelist(msgspec.Struct, frozen=True):
    """`instances.whitelist`. Groups outlive being switched off; without any, everybody may come."""

    enabled: bool
    groups: tuple[Group, ...]


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be in force for an instance: only who comes from an allowed range may open a connection to
    one of its addresses, at any port."""

    instance_id: str
    addresses: tuple[str, ...]
    places: tuple[Address, ...] = ()  # where only this port is the instance's: its public address
    allowed: tuple[str, ...]  # ranges that neither overlap nor could be one


def network(text: str) -> IPv4Network | None:
    """An entry as a range; None: it is neither an address nor a range (`192.168.0.0/24`). The bits behind the
    prefix need not be zero, and say nothing."""
    address, slash, prefix = text.partition("/")
    if slash and not (prefix.isascii() and prefix.isdigit() and len(prefix) <= 2):  # no netmask
        return None
    try:
        return IPv4Network((address, int(prefix) if slash else 32), strict=False)
    except (AddressValueError, NetmaskValueError):
        return None


def fault(groups: Sequence[Group]) -> tuple[str, str] | None:
    """Which parameter of these groups is wrong, and why; None: they can be had."""
    if len(groups) > GROUPS:
        return "whitelist", f"there may be {GROUPS} groups, not {len(groups)}"
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        return "group_name", "two groups have the same name"
    seen: set[IPv4Network] = set()
    for group in groups:
        if not group.ips:
            return "ip_list", f"group {group.name} has no address"
        for text in group.ips:
            found = network(text)
            if found is None:
                return "ip_list", f"{text} is no IPv4 address or range such as 192.168.0.0/24"
            if found.prefixlen == 0 or text.partition("/")[0] == "0.0.0.0":
                return "ip_list", f"{text} would let everybody in: switch the whitelist off instead"
            if found in seen:
                return "ip_list", f"{text} is there twice"
            seen.add(found)
    if len(seen) > ENTRIES:
        return "ip_list", f"there may be {ENTRIES} addresses and ranges in all groups, not {len(seen)}"
    return None


def fence(
    instance_id: str,
    whitelist: Whitelist | None,
    addresses: Iterable[str],
    places: Iterable[Address] = (),
) -> Fence | None:
    """What is to be in force for the instance that has these addresses; None: everybody may come."""
    if whitelist is None or not whitelist.enabled or not whitelist.groups:
        return None
    ranges = [found for group in whitelist.groups for text in group.ips if (found := network(text))]
    return Fence(
        instance_id=instance_id,
        addresses=tuple(sorted(set(addresses))),
        places=tuple(places),
        allowed=tuple(str(one) for one in collapse_addresses(ranges)),
    )


def digest(wanted: Fence | None) -> str:
    """Says whether this is what is in force; empty: nothing is to be."""
    if wanted is None:
        return ""
    return hashlib.sha256(msgspec.json.encode(wanted, order="deterministic")).hexdigest()
