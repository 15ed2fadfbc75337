"""cacheyard dies in the middle of each kind of change, at each of its steps, and finishes it when it is back.

`test_killed_service` kills it while many small changes are under way. Here one instance at a time is
changed in every way that there is, its slots moved, its masters switched and its type changed; the service is
killed at a step that chance chooses, sometimes again while it takes up its work. Then the change must have
been done, the instance must be whole, and all its data must be there.

CACHEYARD_SEED repeats a run's choices (not its timing); CACHEYARD_SOAK=1 is the full count.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from chaos.contents import client, fill, missing
from chaos.rounds import PROXIED, SHAPES, SOAK, masters, replicas
from chaos.service import PASSWORD, Service, nothing_left, spec
from chaos.whole import await_whole
from support.proxied import needs_program
from support.waiting import until

from cacheyard.domain.instances import CLUSTERED_MODES
from cacheyard.domain.tasks import RUNBOOKS, Change

SEED = int(os.environ.get("CACHEYARD_SEED") or random.randrange(1 << 32))
KILLED = 50 if SOAK else 0  # tasks of each shape, at least
KEYS = 20_000 if SOAK else 2_000
AGAIN = 0.25  # how often the service is killed again, soon after its start
MOMENTS = (0.0, 0.0, 0.002, 0.01, 0.05)  # seconds into a step until it is killed
ENDED = 120.0  # seconds until the task has ended


@dataclass
class Subject:
    """An instance and what it must be like."""

    service: Service
    shape: str
    id: str = ""
    code: str = ""
    port: int = 6379
    password: str = PASSWORD
    closed: bool = False
    filled: bool = True
    slow_entries: str = ""  # of slow logs, if that was chosen

    @property
    def path(self) -> str:
        """In the API."""
        return f"/instances/{self.id}"

    def act(self, action: str) -> None:
        """Restart it, or flush, stop or start it."""
        self.service.act(action, self.id)

    def resize(self, code: str, change_type: str | None = None) -> None:
        """Give it another flavor."""
        self.service.resize(self.id, code, change_type)
        self.code = code


def create(subject: Subject) -> Change:
    code = SHAPES[subject.shape]
    subject.id, subject.code = subject.service.create("cache", code), code
    subject.port, subject.password, subject.filled = 6379, PASSWORD, False
    subject.slow_entries = ""
    return Change.CREATE


def delete(subject: Subject) -> Change:
    subject.service.delete(subject.id)
    subject.id = ""
    return Change.DELETE


def switch(subject: Subject) -> Change:
    service = subject.service
    if subject.shape in CLUSTERED_MODES:
        node = random.choice(replicas(service, subject.id))
        group = f"/instance/{subject.id}/groups/{node['shard_id']}"
        service.call("POST", f"{group}/replications/{node['id']}/async-switchover")
    else:
        service.call("PUT", f"{subject.path}/async-swap")
    return Change.SWITCHOVER


def prioritize(subject: Subject) -> Change:
    node = replicas(subject.service, subject.id)[0]
    path = f"{subject.path}/groups/{node['shard_id']}/replications/{node['id']}/slave-priority"
    subject.service.call("POST", path, {"slave_priority_weight": 50 if node["priority"] == 100 else 100})
    return Change.PRIORITIZE


def add_replicas(subject: Subject) -> Change:
    subject.resize(SHAPES[f"{subject.shape}-r3"], "createReplication")
    return Change.ADD_REPLICAS


def remove_replicas(subject: Subject) -> Change:
    subject.resize(SHAPES[subject.shape], "deleteReplication")
    return Change.REMOVE_REPLICAS


def add_shards(subject: Subject) -> Change:
    subject.resize(SHAPES["cluster-s4"])
    return Change.ADD_SHARDS


def remove_shards(subject: Subject) -> Change:
    subject.resize(SHAPES["cluster"])
    return Change.REMOVE_SHARDS


def grow(subject: Subject) -> Change:
    larger = {"ha": spec("ha", 256), "ha_rw_split": spec("ha_rw_split", 2048)}
    subject.resize(larger.get(subject.shape) or spec(subject.shape, 8192))
    return Change.RESIZE


def to_proxy(subject: Subject) -> Change:
    subject.resize(SHAPES["proxy"], "instanceType")
    return Change.TO_PROXY


def from_proxy(subject: Subject) -> Change:
    subject.resize(
        SHAPES["ha_rw_split"] if subject.shape == "ha_rw_split" else spec("ha", 1024), "instanceType"
    )
    return Change.FROM_PROXY


def shrink(subject: Subject) -> Change:
    subject.resize(SHAPES[subject.shape])
    return Change.RESIZE


def password(subject: Subject) -> Change:
    subject.password = f"Yard-{random.randrange(10**9)}"
    subject.service.call("POST", f"{subject.path}/password/reset", {"new_password": subject.password})
    return Change.RECONFIGURE


def tune(subject: Subject) -> Change:
    subject.slow_entries = str(random.randrange(1, 1000))
    asked = {"param_id": "27", "param_name": "slowlog-max-len", "param_value": subject.slow_entries}
    subject.service.call("PUT", f"{subject.path}/async-configs", {"redis_config": [asked]})
    return Change.SET_PARAMETERS


def port(subject: Subject) -> Change:
    subject.port = 6400 if subject.port == 6379 else 6379
    subject.service.call("PUT", subject.path, {"port": subject.port})
    return Change.RECONFIGURE


def restart(subject: Subject) -> Change:
    subject.act("restart")
    return Change.RESTART


def flush(subject: Subject) -> Change:
    subject.act("flush")
    subject.filled = False
    return Change.FLUSH


def stop(subject: Subject) -> Change:
    subject.act("stop")
    subject.closed = True
    return Change.STOP


def start(subject: Subject) -> Change:
    subject.act("start")
    subject.closed = False
    return Change.START


Act = Callable[[Subject], Change]
ROUND_TRIPS: dict[str, tuple[Act, ...]] = {
    "ha": (
        *(
            switch,
            tune,
            add_replicas,
            prioritize,
            switch,
            remove_replicas,
            grow,
            shrink,
            password,
            port,
            port,
        ),
        *(restart, restart, flush, stop, start, delete, create),
    ),
    "cluster": (
        *(
            switch,
            tune,
            add_shards,
            switch,
            remove_shards,
            add_replicas,
            remove_replicas,
            grow,
            shrink,
            password,
        ),
        *(port, port, restart, flush, stop, start, delete, create),
    ),
    "proxy": (
        *(switch, tune, grow, shrink, from_proxy, to_proxy, switch, password, port, port, restart),
        *(flush, stop, start, from_proxy, to_proxy, delete, create),
    ),
    "ha_rw_split": (
        *(
            switch,
            tune,
            add_replicas,
            prioritize,
            remove_replicas,
            grow,
            shrink,
            to_proxy,
            from_proxy,
            switch,
        ),
        *(password, port, port, restart, flush, stop, start, to_proxy, from_proxy, delete, create),
    ),
}
SHORT: dict[str, tuple[Act, ...]] = {
    "ha": (switch, tune, add_replicas, remove_replicas, restart),
    "cluster": (add_shards, switch, remove_shards, add_replicas, remove_replicas),
    "proxy": (from_proxy, to_proxy),
    "ha_rw_split": (add_replicas, remove_replicas, to_proxy, from_proxy),
}


@dataclass
class Kills:
    """Kills the service, and knows what that hit."""

    service: Service
    landed: Counter[str] = field(default_factory=Counter)
    to_rest: list[float] = field(default_factory=list)

    def strike(self, instance_id: str, change: Change) -> None:
        """Kill the service at some step of the task that has begun, and let it finish."""
        steps = RUNBOOKS[change]
        aim = random.randrange(len(steps))
        query = (
            "SELECT t.status, max(s.number) AS number FROM tasks t JOIN task_steps s ON s.task_id = t.id "
            "AND s.status != 'WAITING' WHERE t.instance_id = ? AND t.kind = ? "
            "GROUP BY t.id ORDER BY t.created_at DESC LIMIT 1"
        )

        def there() -> bool:
            found = self.service.rows(query, instance_id, change)
            return bool(found) and (found[0]["status"] != "EXECUTING" or found[0]["number"] >= aim)

        until(there, seconds=ENDED, what=f"{change} to be at {steps[aim]}", pause=0.0)
        time.sleep(random.choice(MOMENTS))
        self._kill()
        began = time.monotonic()
        while random.random() < AGAIN:
            self.service.begin()
            time.sleep(random.uniform(0.3, 1.5))
            self._kill()
        self.service.start()
        nothing_left(self.service.unfinished, seconds=ENDED, what="the task to end")
        self.to_rest.append(time.monotonic() - began)

    def _kill(self) -> None:
        self.service.kill()
        under_way = self.service.rows(
            "SELECT kind, s.name FROM tasks t LEFT JOIN task_steps s ON s.task_id = t.id "
            "AND s.status = 'EXECUTING' WHERE t.status = 'EXECUTING'"
        )
        self.landed.update(f"{row['kind']}: {row['name'] or 'undoing'}" for row in under_way)
        self.landed["nothing"] += not under_way


@pytest.fixture
def kills(service: Service, tell: Callable[[object], None]) -> Iterator[Kills]:
    """Kills, told of at the end."""
    made = Kills(service)
    random.seed(SEED)
    yield made
    tell(f"seed {SEED}: {sum(made.landed.values())} kills, {made.landed['nothing']} of them with no task")
    if SOAK:
        for where, count in sorted(made.landed.items()):
            tell(f"  landed in {where}: {count}")
    if made.to_rest:
        tell(f"  longest time until all was done: {max(made.to_rest):.1f} s")


def check(subject: Subject, instance_id: str, change: Change) -> None:
    """What was asked for has happened, and nothing else."""
    service = subject.service
    task = service.rows(
        "SELECT * FROM tasks WHERE instance_id = ? AND kind = ? ORDER BY created_at DESC", instance_id, change
    )[0]
    assert task["status"] == "SUCCESS", f"{change}: {task['error']}\n{service.story(instance_id)}"
    if not subject.id:
        assert service.show(instance_id) is None
        nothing_left(service.leftovers, seconds=10, what="all of it to be gone")
        return
    if subject.closed:
        shown = service.show(subject.id) or {}
        assert shown["status"] == "CLOSED", service.story(subject.id)
        nothing_left(service.leftovers, seconds=10, what="all processes to be gone")
        return
    shown = await_whole(service, subject.id, password=subject.password)
    assert (shown["spec_code"], shown["port"]) == (subject.code, subject.port)
    if subject.slow_entries:
        assert slow_entries_of(subject, shown) == {subject.slow_entries}
    if subject.filled:
        gone = missing(shown, KEYS, subject.password)
        assert gone == [], f"{len(gone)} of {KEYS} keys are lost\n{service.log()}"
    else:
        assert keys_in(subject, shown) == 0
        fill(shown, KEYS, subject.password)
        subject.filled = True


def slow_entries_of(subject: Subject, shown: dict[str, Any]) -> set[str]:
    """What servers say of their slow logs."""
    found = set()
    for node in (*masters(subject.service, subject.id), *replicas(subject.service, subject.id)):
        alone = shown | {"ip": node["ip"], "cache_mode": "single"}
        with client(alone, subject.password) as link:
            found.add(link.config_get("slowlog-max-len")["slowlog-max-len"])
    return found


def keys_in(subject: Subject, shown: dict[str, Any]) -> int:
    """How many keys all masters have."""
    found = 0
    for node in masters(subject.service, subject.id):
        alone = shown | {"ip": node["ip"], "cache_mode": "single"}
        with client(alone, subject.password) as link:
            found += link.dbsize()
    return found


@pytest.mark.timeout(3600 if SOAK else 300)
@pytest.mark.parametrize(
    "shape", ["ha", "cluster", *(pytest.param(shape, marks=needs_program) for shape in PROXIED)]
)
def test_the_service_may_die_at_any_step_of_any_task(service: Service, kills: Kills, shape: str) -> None:
    subject = Subject(service, shape)
    create(subject)
    service.now_running(subject.id)
    fill(await_whole(service, subject.id), KEYS)
    subject.filled = True
    while True:
        for act in (ROUND_TRIPS if SOAK else SHORT)[shape]:
            before = subject.id
            change = act(subject)
            instance_id = subject.id or before
            kills.strike(instance_id, change)
            check(subject, instance_id, change)
        if sum(kills.landed.values()) - kills.landed["nothing"] >= KILLED:
            return
