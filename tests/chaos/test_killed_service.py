"""cacheyard dies at any moment, and nobody's cache notices; what it was doing is done when it is back.

One yard lives through all the kills. Four slots, each a thread, change an instance of their own
through the API without pause; three further instances are left alone and read every few ms. After
each kill the service is started, sometimes killed again while it takes up its work, and all that
is there is held against what the slots know that they asked for.

CACHEYARD_SEED repeats a run's choices (not its timing); CACHEYARD_SOAK=1 is the full count.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from chaos.service import (
    PASSWORD,
    Service,
    answer,
    connect,
    delete_all,
    nothing_left,
    put,
    service_in,
    size_of,
    spec,
)
from chaos.watch import Watch
from support.waiting import until

KILLS = 200 if os.environ.get("CACHEYARD_SOAK") else 20
SEED = int(os.environ.get("CACHEYARD_SEED") or random.randrange(1 << 32))
# Moments of kills are random: nothing is waited for, as any step may be the one that a kill meets.
SPREAD = 0.4  # seconds after a request within which the service is killed
RECOVERY = 1.6  # seconds after its start within which it is killed again
AGAIN = 0.25  # how often it is
REST = 20.0  # seconds until all that was under way has ended; a second on an idle machine
SIZES = {"single": (128, 256, 512), "ha": (128, 256)}
PORTS = (6379, 6380, 6400)
RUNNING, CLOSED = "RUNNING", "CLOSED"


@dataclass
class Known:
    """What a slot knows of its instance."""

    id: str | None = None  # None: it does not know yet, as its creation got no answer
    status: str = "GONE"
    size: int = 128
    port: int = 6379
    password: str = PASSWORD
    marker: str | None = None
    run_id: str = ""


@dataclass
class Asked:
    """What was asked for last, until it is seen how it ended."""

    act: str
    changes: dict[str, Any] = field(default_factory=dict)
    answered: bool = False


class Slot(threading.Thread):
    """Changes one instance after the other, act by act, as long as it may."""

    def __init__(self, yard: "Yard", number: int, mode: str) -> None:
        super().__init__(daemon=True)
        self.mode = mode
        self.known = Known()
        self.asked: Asked | None = None
        self.parked = threading.Event()
        self.faults: list[str] = []
        self.acts: Counter[str] = Counter()
        self._yard = yard
        self._service = yard.service
        self._random = random.Random(f"{SEED}-{number}")
        self._number = number
        self._made = 0
        self.client = yard.service.client

    @property
    def name_(self) -> str:
        """Of the instance."""
        return f"slot-{self._number}-{self._made}"

    def run(self) -> None:
        """Work while the service does."""
        while not self._yard.over.is_set():
            if not self._yard.go.wait(0.1):
                self.parked.set()
                continue
            try:
                self.act()
                self.settle()
            except (httpx.TransportError, OSError, redis.RedisError) as error:
                if self._yard.go.is_set() and not self._yard.killing.wait(2.0):
                    self._fault(f"{type(error).__name__}: {error}")
                self._yard.wait_for_kill()
            except AssertionError as error:
                self._fault(str(error))
                self._yard.wait_for_kill()

    # --- Asking ----------------------------------------------------------------------------------

    def act(self) -> None:
        """Ask for one change."""
        known, choose = self.known, self._random
        if known.status == "GONE":
            self._made += 1
            self._ask("create", "POST", "/instances", size=128, port=6379, password=PASSWORD)
            return
        here = f"/instances/{known.id}"
        if known.status == CLOSED:
            if choose.random() < 0.7:
                self._ask("start", "PUT", "/instances/status")
            else:
                self._ask("delete", "DELETE", here)
            return
        act = choose.choice(
            ("resize", "restart", "soft_restart", "flush", "password", "port", "stop", "delete", "delete")
        )
        if act == "resize":
            size = choose.choice([size for size in SIZES[self.mode] if size != known.size])
            self._ask(act, "POST", f"{here}/resize", size=size)
        elif act == "password":
            self._ask(act, "POST", f"{here}/password/reset", password=f"Yard-{choose.randrange(10**9)}")
        elif act == "port":
            self._ask(act, "PUT", here, port=choose.choice([port for port in PORTS if port != known.port]))
        elif act == "delete":
            self._ask(act, "DELETE", here)
        else:
            self._ask(act, "PUT", "/instances/status")

    def _ask(self, act: str, method: str, path: str, **changes: Any) -> None:
        self.asked = Asked(act, changes)
        self.acts[act] += 1
        self._yard.asked()
        told = answer(self.client.request(method, path, json=self._body(act, changes)))
        self.asked.answered = True
        if act == "create":
            self.known.id = told["instances"][0]["instance_id"]

    def _body(self, act: str, changes: dict[str, Any]) -> Any:
        if act == "create":
            return self._service.body(
                self.name_, spec(self.mode, 128), tags=[{"key": "slot", "value": str(self._number)}]
            )
        if act == "resize":
            code = spec(self.mode, changes["size"])
            return {"spec_code": code, "new_capacity": size_of(code) / 1024}
        if act == "password":
            return {"new_password": changes["password"]}
        if act in ("port", "delete"):
            return changes or None
        return {"action": act, "instances": [self.known.id]}

    # --- Seeing how it ended ---------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until nothing is under way, and hold what is there against what was asked for.

        What got an answer must have happened; what got none may have, but whole.
        """
        asked, known = self.asked, self.known
        if asked is None:
            return
        shown = self._at_rest()
        sure = asked.answered
        if shown is None:
            assert asked.act == "delete" or (asked.act == "create" and not sure), self._wrong("is gone")
            self.known, self.asked = Known(), None
            return
        assert not (asked.act == "delete" and sure), self._wrong("is still there")
        known.id = shown["instance_id"]
        before = known.status
        statuses = {"stop": CLOSED, "start": RUNNING, "create": RUNNING}
        allowed = {statuses.get(asked.act, before)} | ({before} if not sure else set())
        assert shown["status"] in allowed, self._wrong(f"is {shown['status']}, not {allowed}")
        for name, seen in (("size", shown["max_memory"]), ("port", shown["port"])):
            old, new = getattr(known, name), asked.changes.get(name, getattr(known, name))
            assert seen == new or (not sure and seen == old), self._wrong(f"has {name} {seen}, not {new}")
            setattr(known, name, seen)
        if shown["status"] == RUNNING:
            self._look_inside(shown, asked)
        known.status, self.asked = shown["status"], None

    def _at_rest(self) -> dict[str, Any] | None:
        """The instance, once no task has it."""
        if self.known.id is None:
            found = answer(
                self.client.get(
                    "/instances", params={"name": self.name_, "name_equal": "true", "include_failure": "true"}
                )
            )["instances"]
            assert len(found) <= 1, f"{len(found)} instances are called {self.name_}"
            if not found:
                return None
            self.known.id = found[0]["instance_id"]

        def check() -> tuple[dict[str, Any] | None] | None:
            response = self.client.get(f"/instances/{self.known.id}")
            if response.status_code == 404:
                return (None,)
            shown = answer(response)
            done = shown["task"] is None and shown["status"] in (RUNNING, CLOSED, "CREATEFAILED", "ERROR")
            return (shown,) if done else None

        return until(check, seconds=REST, what=f"{self.name_} to be at rest", pause=0.01)[0]

    def _look_inside(self, shown: dict[str, Any], asked: Asked) -> None:
        known = self.known
        if asked.act == "password":
            known.password = self._password_of(shown, [asked.changes["password"], known.password])
            assert known.password == asked.changes["password"] or not asked.answered, self._wrong("password")
        with closing(connect(shown["ip"], shown["port"], known.password)) as client:
            limit = int(client.config_get("maxmemory")["maxmemory"] or 0)
            assert limit == known.size << 20, self._wrong(f"has maxmemory {limit}")
            run_id = client.info("server")["run_id"]
            if asked.act in ("resize", "password", "flush"):
                assert run_id == known.run_id, self._wrong("was restarted")
            elif asked.act != "create" and asked.answered:
                assert run_id != known.run_id, self._wrong("was not restarted")
            self._check_marker(client.get("marker"), asked, restarted=run_id != known.run_id)
            known.marker, known.run_id = f"{SEED}-{self._random.random()}", run_id
            client.set("marker", known.marker)
        if self.mode == "ha":
            self._check_replica(shown)

    def _check_marker(self, seen: Any, asked: Asked, *, restarted: bool) -> None:
        emptied = asked.act == "flush" or (
            asked.act == "restart" and self.mode == "single" and (restarted or asked.answered)
        )
        if emptied and asked.answered:
            assert seen is None, self._wrong("still has its data")
        else:
            allowed = (self.known.marker, None) if emptied else (self.known.marker,)
            assert seen in allowed, self._wrong(f"has {seen!r}, not {allowed!r}")

    def _check_replica(self, shown: dict[str, Any]) -> None:
        query = "SELECT ip, port FROM nodes WHERE instance_id = ? AND role = 'replica'"
        row = self._service.rows(query, shown["instance_id"])[0]

        def follows() -> bool:
            try:
                with closing(connect(row["ip"], row["port"], self.known.password)) as client:
                    return client.get("marker") == self.known.marker
            except redis.RedisError as error:
                raise OSError(str(error)) from error

        until(follows, seconds=3, what=f"the replica of {self.name_} to have what was written")

    def _password_of(self, shown: dict[str, Any], candidates: list[str]) -> str:
        for candidate in candidates:
            with closing(connect(shown["ip"], shown["port"], candidate)) as client:
                try:
                    client.ping()
                except redis.AuthenticationError:
                    continue
                return candidate
        raise AssertionError(self._wrong("takes neither the old password nor the new one"))

    def _wrong(self, what: str) -> str:
        story = self._service.story(self.known.id) if self.known.id else ""
        return f"{self.name_} {what} after {self.asked}; known: {self.known}\n{story}"

    def _fault(self, what: str) -> None:
        self.faults.append(f"{self.name_}, {self.asked}: {what}")


class Yard:
    """The service, the slots, and what the kills hit."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.go = threading.Event()  # the slots may work
        self.killing = threading.Event()  # the service is being killed
        self.over = threading.Event()
        self.landed: Counter[str] = Counter()
        self.idle = 0
        self.kills = 0
        self.to_ready: list[float] = []
        self.to_rest: list[float] = []
        self._random = random.Random(SEED)
        self._sent = threading.Semaphore(0)
        self.slots = [
            Slot(self, number, mode) for number, mode in enumerate(("single", "ha", "single", "ha"))
        ]
        for slot in self.slots:
            slot.start()

    def asked(self) -> None:
        """A slot sends a request."""
        self._sent.release()

    def wait_for_kill(self) -> None:
        """For slots that cannot go on."""
        while self.go.is_set() and not self.over.is_set():
            time.sleep(0.005)

    def let_work_and_kill(self) -> None:
        """Kill the service some time after one of the next requests."""
        while self._sent.acquire(blocking=False):
            pass
        for slot in self.slots:
            slot.parked.clear()
        self.killing.clear()
        self.go.set()
        for _ in range(self._random.randint(1, 8)):
            self._sent.acquire(timeout=5)
        time.sleep(self._random.uniform(0, SPREAD))
        self._kill()
        self.go.clear()
        for slot in self.slots:
            assert slot.parked.wait(15), f"{slot.name_} does not stop: {slot.asked}"

    def recover(self) -> None:
        """Start it, perhaps killing it again on the way, and wait until it has done what was under way."""
        while self.kills < KILLS and self._random.random() < AGAIN:
            self.service.begin()
            time.sleep(self._random.uniform(0, RECOVERY))
            self._kill()
        began = time.monotonic()
        self.service.start()
        self.to_ready.append(time.monotonic() - began)
        nothing_left(self.service.unfinished, seconds=REST, what="all tasks to end")
        self.to_rest.append(time.monotonic() - began)

    def check(self, kept: dict[str, str]) -> None:
        """Everything is as it was asked for, and nothing else is there. `kept`: status by instance id."""
        faults = [fault for slot in self.slots for fault in slot.faults]
        assert not faults, "\n".join(faults)
        for slot in self.slots:
            slot.settle()
        expected = kept | {slot.known.id: slot.known.status for slot in self.slots if slot.known.id}
        assert expected == {row["id"]: row["status"] for row in self.service.rows("SELECT * FROM instances")}
        failed = self.service.rows("SELECT * FROM tasks WHERE status = 'FAILED'")
        assert not failed, [(row["kind"], row["error"]) for row in failed]
        nothing_left(self.service.leftovers, seconds=3, what="what nobody asked for to go")

    def figures(self) -> str:
        """What the run was like."""
        lines = [f"seed {SEED}: {self.kills} kills, {self.idle} of them with no task under way"]
        lines += [f"  landed in {task}: {count}" for task, count in sorted(self.landed.items())]
        acts = sum((slot.acts for slot in self.slots), Counter[str]())
        lines.append(f"  requests: {dict(sorted(acts.items()))}")
        for name, taken in (("ready", self.to_ready), ("all done", self.to_rest)):
            times = sorted(taken)
            p50, p95 = times[len(times) // 2], times[int(len(times) * 0.95)]
            lines.append(f"  from start to {name}: p50 {p50:.2f} s, p95 {p95:.2f} s, max {times[-1]:.2f} s")
        return "\n".join(lines)

    def close(self) -> None:
        """The slots end."""
        self.over.set()
        self.go.clear()
        for slot in self.slots:
            slot.join(15)

    def _kill(self) -> None:
        self.killing.set()
        self.service.kill()
        self.kills += 1
        query = (
            "SELECT kind, s.name FROM tasks t LEFT JOIN task_steps s ON s.task_id = t.id "
            "AND s.status = 'EXECUTING' WHERE t.status = 'EXECUTING'"
        )
        under_way = self.service.rows(query)
        self.idle += not under_way
        self.landed.update(f"{row['kind']}: {row['name'] or 'undoing'}" for row in under_way)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    """A yard with its slots, which wait."""
    with service_in(tmp_path) as service:
        yard = Yard(service)
        try:
            yield yard
        finally:
            yard.close()


@pytest.mark.timeout(60 + 15 * KILLS)
def test_the_service_may_die_at_any_moment(yard: Yard, capsys: pytest.CaptureFixture[str]) -> None:
    service = yard.service
    untouched = [service.running_instance(f"kept-{mode}", spec(mode, 128)) for mode in ("single", "ha")]
    closed = service.running_instance("kept-closed", spec("ha", 128))
    for shown in (*untouched, closed):
        put(shown, "marker", shown["name"])
    service.act("stop", closed["instance_id"])
    service.at_rest(closed["instance_id"])
    kept = {shown["instance_id"]: RUNNING for shown in untouched} | {closed["instance_id"]: CLOSED}

    watch = Watch([target(shown) for shown in untouched])
    try:
        while yard.kills < KILLS:
            yard.let_work_and_kill()
            yard.recover()
            yard.check(kept)
        seen = watch.seen()
    finally:
        watch.close()
        with capsys.disabled():
            print(f"\n{yard.figures()}")

    for name, told in seen.items():
        with capsys.disabled():
            print(f"  {name}: {told['asks']} reads, the longest {told['longest']:.0f} ms")
        assert not told["gaps"], (name, told["gaps"])
        assert len(told["run_ids"]) == 1, name
    service.act("start", closed["instance_id"])
    assert service.at_rest(closed["instance_id"]) is not None
    for shown in (*untouched, closed):
        with closing(connect(shown["ip"])) as client:
            assert client.get("marker") == shown["name"]
    delete_all(service)


def target(shown: dict[str, Any]) -> dict[str, Any]:
    """An instance as a target of `Watch`."""
    value = {"name": shown["name"], "key": "marker", "value": shown["name"]}
    return value | {"ip": shown["ip"], "port": shown["port"], "password": PASSWORD}
