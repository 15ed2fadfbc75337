"""Where the region's Sentinels are and how to get in: for the agent that runs them, and for tasks that wait
until they know something."""

import secrets
from ipaddress import IPv4Network

from cacheyard.store import identity
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

_SLICE = "slice"  # the fact that has the region's part of 127.0.0.0/8
_FACT = "sentinels"  # the fact that has their secret


def sentinel_facts(store: Store, sealer: Sealer) -> tuple[str, str]:
    """The address of the region's Sentinels, which no instance gets, and the secret they are kept with."""
    with store.write() as tx:
        region = identity.fact(tx, _SLICE)
        sealed = identity.fact(tx, _FACT)
        if sealed is None:
            sealed = sealer.seal(secrets.token_hex(32))
            identity.set_fact(tx, _FACT, sealed)
    last = IPv4Network(region).broadcast_address if region else "127.0.0.1"
    return str(last), sealer.open(sealed)
