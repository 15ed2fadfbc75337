"""A data directory, opened whether its service runs or not. Called by `accounts` and `calling`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cacheyard.errors import Refused
from cacheyard.settings import Settings
from cacheyard.store import identity as rows
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer


class NoYard(Refused):
    """There is nothing in {data}; `cacheyard up --data {data}` makes it."""

    status = 404


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Store, Sealer]]:
    """Its store and its key. Raises `NoYard` rather than making them."""
    if not settings.database.exists() or not settings.secret_key.exists():
        raise NoYard(data=settings.data)
    store = Store(settings.database)
    try:
        yield store, Sealer.of(settings.secret_key)
    finally:
        store.close()


def first_user(store: Store, sealer: Sealer) -> dict[str, Any]:
    """What the first start made: ids, names, the password and the access key, in clear."""
    with store.read() as tx:
        first = rows.fact(tx, "bootstrap")
    if first is None:
        raise NoYard(data="this data directory")
    return {**first, **{name: sealer.open(first[name]) for name in ("password", "secret_key")}}
