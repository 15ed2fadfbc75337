"""The region's certificate authority: made at first need, its key sealed; its certificate also as a file, for
people, who give it to their clients."""

import os
import secrets
from pathlib import Path

from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain.certificates import Pair, new_authority
from cacheyard.store import identity
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

FILE = "ca.crt"  # in the data directory
_FACT = "authority"


def region_authority(store: Store, sealer: Sealer, data: Path) -> Pair:
    """The region's authority, the same for ever, and its certificate in the file `ca.crt` under `data`."""
    with store.read() as tx:
        found = _kept(tx, sealer)
    if found is None:
        with store.write() as tx:
            found = _kept(tx, sealer)  # another process may have been quicker
            if found is None:
                # two regions' authorities must not have one name: who trusts both would mix them up
                found = new_authority(f"cacheyard authority {secrets.token_hex(4)}", now_ms())
                kept = {"certificate": found.certificate, "key": sealer.seal(found.key)}
                identity.set_fact(tx, _FACT, kept)
    _publish(data / FILE, found.certificate)
    return found


def authority_certificate(tx: Connection) -> str | None:
    """The certificate alone; None as long as nothing has needed it."""
    kept = identity.fact(tx, _FACT)
    return None if kept is None else str(kept["certificate"])


def region_name(tx: Connection) -> str:
    """What the region is called; empty before its first start has made it."""
    first = identity.fact(tx, "bootstrap")
    return "" if first is None else str(first["region"])


def _kept(tx: Connection, sealer: Sealer) -> Pair | None:
    kept = identity.fact(tx, _FACT)
    return None if kept is None else Pair(kept["certificate"], sealer.open(kept["key"]))


def _publish(file: Path, certificate: str) -> None:
    """Write it if it is not there, whole or not at all."""
    if file.exists() and file.read_text() == certificate:
        return
    made = file.with_name(f".{file.name}.{os.getpid()}")
    made.write_text(certificate)
    made.replace(file)
