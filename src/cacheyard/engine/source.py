"""From where cacheyard talks to the servers of this machine: an address that no client uses.

Servers of one machine are talked to through its loopback device, by clients too. What cacheyard, Sentinels
and the servers themselves say to each other must not wait behind what clients are held to (`engine.tc`): a
server whose answer comes late is taken for dead. So all of them use addresses of the region's slice.
"""

LOOPBACK = "127."


def near(ip: str) -> tuple[str, int] | None:
    """Where a connection to a server at `ip` is to come from, with any port: the last address of its /24,
    which is in every slice that it is in. Never its own: a connection that nobody takes could find itself.
    None: what the kernel chooses."""
    if not ip.startswith(LOOPBACK):
        return None
    head, _, last = ip.rpartition(".")
    return f"{head}.{254 if last == '255' else 255}", 0
