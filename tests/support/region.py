"""A region of its own on a temporary directory, for tests of what the services decide. No server runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacheyard.domain.identity import Principal
from cacheyard.services import identity
from cacheyard.services.bootstrap import Bootstrap, bootstrap
from cacheyard.services.call import Call, House
from cacheyard.settings import Settings
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

NOW = 1_800_000_000_000  # 2027-01-15T08:00:00Z; tests tell the time, they do not ask for it
BASE = "http://127.0.0.1:7654"


@dataclass(frozen=True)
class Region:
    """An open store with a bootstrapped region in it."""

    settings: Settings
    store: Store
    sealer: Sealer
    first: Bootstrap
    claims: Path

    @property
    def admin(self) -> Principal:
        """The first user, on the first project."""
        return Principal(
            user_id=self.first.user_id,
            user_name=self.first.user_name,
            domain_id=self.first.domain_id,
            domain_name=self.first.domain_name,
            project_id=self.first.project_id,
            project_name=self.first.region,
            roles=("admin", "te_admin"),
        )

    def call(self, body: Any = None, *, who: Principal | None = None, **parameters: Any) -> Call[Any]:
        """A request, parsed and allowed."""
        principal = who or self.admin
        house = House(self.settings, self.first.region, self.store, self.sealer, lambda _: None)
        return Call(house, principal, {"project_id": principal.project_id, **parameters}, body, BASE)

    def signatures(self) -> identity.Signatures:
        """As after a restart: nothing in memory."""
        return identity.Signatures(self.store)


@contextmanager
def open_region(path: Path, **settings: Any) -> Iterator[Region]:
    """A region in `path`; claims its slice there too, so that tests never touch the machine's claims."""
    chosen = Settings(data=path / "data", **{"cidr": "127.64.0.0/16", **settings})
    migrate(chosen.database)
    store = Store(chosen.database)
    try:
        sealer = Sealer.of(chosen.secret_key)
        claims = path / "claims"
        yield Region(chosen, store, sealer, bootstrap(store, sealer, chosen, claims), claims)
    finally:
        store.close()
