"""A region of its own on a temporary directory, for tests of what the services decide. No server runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacheyard.clock import now_ms
from cacheyard.contract.types import CreateInstanceBody, CreateInstanceResponse
from cacheyard.domain import flavors
from cacheyard.domain.engines import Engine
from cacheyard.domain.identity import Principal
from cacheyard.domain.placement import Host
from cacheyard.domain.statuses import Status
from cacheyard.services import identity
from cacheyard.services.bootstrap import Bootstrap, bootstrap
from cacheyard.services.call import Call, House
from cacheyard.services.lifecycle import create_instance
from cacheyard.settings import Settings
from cacheyard.store import hosts, instances
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

NOW = 1_800_000_000_000  # 2027-01-15T08:00:00Z; tests tell the time, they do not ask for it
BASE = "http://127.0.0.1:7654"


PROXY = "/usr/bin/cacheyard-proxy"


def a_host(**changes: Any) -> Host:
    """A machine with one server and the proxy, which is heard of now."""
    engine = Engine(name="redis", version=(7, 0, 15), binary="/usr/bin/redis-server", tls=True)
    chosen: dict[str, Any] = {
        "id": "local",
        "az_codes": (),
        "memory_mb": 1 << 20,
        "cores": 2,
        "engines": (engine,),
        "proxy": PROXY,
        "seen_at": now_ms(),
    }
    return Host(**(chosen | changes))


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

    def host(self, **changes: Any) -> None:
        """The only machine, in all zones; or that one known anew."""
        with self.store.write() as tx:
            hosts.register(tx, a_host(**{"az_codes": self.first.az_codes, **changes}))

    def create(self, spec_code: str, **changes: Any) -> str:
        """Ask for an instance, which nobody makes; its id."""
        flavor = flavors.find(spec_code)
        assert flavor is not None
        chosen: dict[str, Any] = {
            "name": "cache-1",
            "engine": "Redis",
            "engine_version": flavor.engine_versions[-1],
            "capacity": flavor.capacity_mb / 1024,
            "spec_code": spec_code,
            "az_codes": list(self.first.az_codes),
            "vpc_id": self.first.vpc_id,
            "subnet_id": self.first.subnet_id,
            "password": "Cache-yard-1",
        }
        answer = create_instance(self.call(CreateInstanceBody(**(chosen | changes))))
        assert isinstance(answer, CreateInstanceResponse)
        [made] = answer.instances or []
        return str(made.instance_id)

    def running(self, spec_code: str, **changes: Any) -> str:
        """The same, and no task has it any more."""
        instance_id = self.create(spec_code, **changes)
        self.free(instance_id)
        return instance_id

    def free(self, instance_id: str) -> None:
        """No task has the instance, which runs."""
        with self.store.write() as tx:
            instances.change(tx, instance_id, status=Status.RUNNING, task_id=None)

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
