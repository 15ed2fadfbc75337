"""The real service on a directory of its own: started, killed, asked, and looked at from outside."""

import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.waiting import until

from cacheyard.domain import flavors
from cacheyard.domain.instances import PROXIED_MODES
from cacheyard.domain.proxies import FEWEST

PASSWORD = "Cache-yard-1"
START_SECONDS = 20.0  # from exec to ready; 1.5 s on an idle machine
REST_SECONDS = 20.0  # until all that was under way has ended
AT_REST = ("RUNNING", "CLOSED", "CREATEFAILED", "ERROR")
NO_RETRY = Retry(NoBackoff(), 0)
REDIS = shutil.which("redis-server") or "/usr/bin/redis-server"


class Service:
    """`python -m cacheyard up` on `home`/data, its API and its rows. `close` leaves nothing behind."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.data = home / "data"
        self.environment = environment
        self.log_file = home / "service.log"
        self.port = free_port()
        self.first: dict[str, Any] = {}
        self.running: subprocess.Popen[bytes] | None = None
        self._client: httpx.Client | None = None

    # --- The process -----------------------------------------------------------------------------

    def command(self, what: str = "up") -> list[str]:
        """The command line of `cacheyard up` or `cacheyard agent`."""
        listen = ["--json", "--port", str(self.port)] if what == "up" else []
        return [sys.executable, "-m", "cacheyard", what, "--data", str(self.data), *listen]

    def begin(self) -> None:
        """Start the process; it is not ready yet."""
        assert self.running is None
        with self.log_file.open("ab") as log:
            self.running = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def ready(self, seconds: float = START_SECONDS) -> Self:
        """Wait until it says that it serves."""
        assert self.running is not None
        assert self.running.stdout is not None
        there, _, _ = select.select([self.running.stdout], [], [], seconds)
        line = self.running.stdout.readline() if there else b""
        assert line, f"not ready in {seconds:g} s\n{self.log()}"
        self.first = json.loads(line)
        if self._client is None:
            self._client = self._new_client()
        return self

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        self.begin()
        return self.ready()

    def mend(self) -> None:
        """Whatever a failed test has left: a service that serves, on a new directory if it must be."""
        if self.running is None:
            self.start()
        elif self.running.poll() is not None:
            self.close()
            self.start()

    def kill(self) -> None:
        """`kill -9`; returns when it is dead."""
        if self.running is not None:
            self.running.kill()
            self.running.wait()
            assert self.running.stdout is not None
            self.running.stdout.close()
            self.running = None

    def log(self) -> str:
        """The end of what it logged, requests left out."""
        if not self.log_file.exists():
            return ""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if '"event": "request"' not in line][-30:])

    def close(self) -> None:
        """End the service and all servers of its directory, whatever state they are in."""
        self.kill()
        if self._client is not None:
            self._client.close()
            self._client = None

        def ended() -> bool:
            left = processes(self.data)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        until(ended, seconds=10, what="every process of the directory to end")
        shutil.rmtree(self.data, ignore_errors=True)

    # --- The API ---------------------------------------------------------------------------------

    @property
    def client(self) -> httpx.Client:
        """For requests below the project, from any thread; its token outlives the service."""
        assert self._client is not None
        return self._client

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the answer, or the refusal as an error."""
        return answer(self.client.request(method, path, json=body))

    def create(self, name: str, spec_code: str, **more: Any) -> str:
        """Ask for an instance; its id."""
        made = self.call("POST", "/instances", self.body(name, spec_code, **more))
        return str(made["instances"][0]["instance_id"])

    def body(self, name: str, spec_code: str, **more: Any) -> dict[str, Any]:
        """What a request for an instance says."""
        flavor = flavors.find(spec_code)
        assert flavor is not None, spec_code
        return {
            "name": name,
            "engine": "Redis",
            "engine_version": max(flavor.engine_versions),
            "capacity": size_of(spec_code) / 1024,
            "spec_code": spec_code,
            "az_codes": self.first["az_codes"][:1],
            "vpc_id": self.first["vpc_id"],
            "subnet_id": self.first["subnet_id"],
            "password": PASSWORD,
        } | more

    def show(self, instance_id: str) -> dict[str, Any] | None:
        """The instance; None when it is not there."""
        response = self.client.get(f"/instances/{instance_id}")
        return None if response.status_code == 404 else answer(response)

    def at_rest(self, instance_id: str, seconds: float = REST_SECONDS) -> dict[str, Any] | None:
        """Wait until no task has the instance; then the instance, or None when it is gone."""

        def check() -> tuple[dict[str, Any] | None] | None:
            shown = self.show(instance_id)
            if shown is not None and (shown["task"] or shown["status"] not in AT_REST):
                return None
            return (shown,)

        try:
            return until(check, seconds=seconds, what=f"{instance_id} to be at rest", pause=0.02)[0]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story(instance_id)}\n{self.log()}") from None

    def running_instance(self, name: str, spec_code: str, **more: Any) -> dict[str, Any]:
        """An instance that is RUNNING."""
        return self.now_running(self.create(name, spec_code, **more))

    def running_instances(self, count: int, spec_code: str) -> list[dict[str, Any]]:
        """Several that are RUNNING, asked for in one request."""
        made = self.call("POST", "/instances", self.body("cache", spec_code, instance_num=count))
        return [self.now_running(one["instance_id"]) for one in made["instances"]]

    def now_running(self, instance_id: str, seconds: float = REST_SECONDS) -> dict[str, Any]:
        """The instance, which must be RUNNING once no task has it."""
        shown = self.at_rest(instance_id, seconds)
        assert shown is not None
        assert shown["status"] == "RUNNING", self.story(instance_id)
        return shown

    def act(self, action: str, *instance_ids: str) -> None:
        """Restart, flush, stop or start instances."""
        self.call("PUT", "/instances/status", {"action": action, "instances": list(instance_ids)})

    def delete(self, instance_id: str) -> None:
        """Ask for its deletion."""
        response = self.client.delete(f"/instances/{instance_id}")
        assert response.is_success, response.text

    def resize(self, instance_id: str, spec_code: str, change_type: str | None = None) -> None:
        """Ask for another size, or another number of replicas or shards."""
        body = {"spec_code": spec_code, "new_capacity": size_of(spec_code) / 1024}
        if change_type is not None:
            body |= {"change_type": change_type}
        self.call("POST", f"/instances/{instance_id}/resize", body)

    # --- Rows and files --------------------------------------------------------------------------

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What the database says, asked beside the service."""
        with closing(sqlite3.connect(self.data / "cacheyard.sqlite", timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(query, values).fetchall()

    def nodes(self, instance_id: str) -> list[sqlite3.Row]:
        """Rows of an instance's nodes, the master first."""
        return self.rows("SELECT * FROM nodes WHERE instance_id = ? ORDER BY role, number", instance_id)

    def node(self, node_id: str) -> sqlite3.Row:
        """One row."""
        return self.rows("SELECT * FROM nodes WHERE id = ?", node_id)[0]

    def directory(self, node: sqlite3.Row) -> Path:
        """A node's directory."""
        return self.data / "nodes" / str(node["id"])

    def pid(self, node: sqlite3.Row) -> int | None:
        """The process that runs in a node's directory, whatever rows and files say of it."""
        found = [pid for pid, at in processes(self.data).items() if at == self.directory(node)]
        servers = [pid for pid in found if _parent(pid) not in found]  # not those that write a snapshot
        assert len(servers) <= 1, f"{len(servers)} servers in {self.directory(node)}"
        return servers[0] if servers else None

    def proxies(self, instance_id: str) -> list[sqlite3.Row]:
        """Rows of an instance's proxies, by number."""
        return self.rows("SELECT * FROM proxies WHERE instance_id = ? ORDER BY number", instance_id)

    def story(self, instance_id: str) -> str:
        """All that the rows tell of an instance, for messages of failed tests."""
        told = []
        for table in ("instances", "nodes", "proxies", "tasks"):
            column = "id" if table == "instances" else "instance_id"
            for row in self.rows(f"SELECT * FROM {table} WHERE {column} = ?", instance_id):  # noqa: S608
                shown = {key: row[key] for key in row.keys() if key not in ("settings", "internal_secret")}  # noqa: SIM118
                told.append(f"{table}: {shown}")
        return "\n".join(told)

    def unfinished(self) -> list[str]:
        """Tasks that have not ended."""
        found = self.rows("SELECT * FROM tasks WHERE status = 'EXECUTING'")
        return [f"{row['kind']} of {row['instance_id']}" for row in found]

    def leftovers(self) -> list[str]:
        """What is there and belongs to nobody; the service runs and nothing is under way."""
        return [*self._left_rows(), *self._left_files(), *self._left_processes()]

    def _left_rows(self) -> Iterator[str]:
        instances = {row["id"]: row for row in self.rows("SELECT * FROM instances")}
        for table in ("addresses", "shards", "tags", "nodes", "proxies"):
            for row in self.rows(f"SELECT * FROM {table}"):  # noqa: S608
                if row["instance_id"] not in instances:
                    yield f"row of {table} without an instance: {tuple(row)}"
        yield from (f"broken reference: {tuple(row)}" for row in self.rows("PRAGMA foreign_key_check"))
        yield from (f"unfinished: {task}" for task in self.unfinished())
        for instance_id, row in instances.items():
            if row["task_id"] is not None or row["status"] not in AT_REST:
                yield f"{row['name']} is {row['status']}, held by {row['task_id']}"
            counts = [
                self.rows(f"SELECT count(*) FROM {table} WHERE instance_id = ?", instance_id)[0][0]  # noqa: S608
                for table in ("nodes", "addresses", "shards")
            ]
            flavor = flavors.find(row["spec_code"])
            assert flavor is not None
            beside = 1 if row["cache_mode"] in ("ha", *PROXIED_MODES) else 0
            if counts != [flavor.nodes, flavor.nodes + beside, flavor.shards]:
                yield f"{row['name']} has {counts} nodes, addresses and shards"
            if (len(self.proxies(instance_id)) >= FEWEST) != (row["cache_mode"] in PROXIED_MODES):
                yield f"{row['name']} has {len(self.proxies(instance_id))} proxies"

    def _left_files(self) -> Iterator[str]:
        wanted = {self.directory(row) for row in self.rows("SELECT id FROM nodes WHERE run != 'gone'")}
        wanted |= {*self._proxies_up()}
        root, fronts = self.data / "nodes", self.data / "proxies"
        found = {entry for entry in root.iterdir() if entry.name != ".agent"}
        found |= {*fronts.iterdir()} if fronts.exists() else set()
        yield from (f"directory of nobody: {place}" for place in found - wanted)
        yield from (f"no directory: {place}" for place in wanted - found)
        for entry in (self.data / "run").iterdir():
            if entry.name not in ("up.json", "control.lock"):
                yield f"file in run: {entry.name}"

    def _left_processes(self) -> Iterator[str]:
        wanted = {self.directory(row): row for row in self.rows("SELECT * FROM nodes WHERE run = 'up'")}
        wanted |= self._proxies_up()
        here = processes(self.data)
        service = self.running.pid if self.running is not None else 0
        seen: dict[Path, int] = {}
        followed = self.rows("SELECT 1 FROM instances WHERE cache_mode IN ('ha', 'ha_rw_split') LIMIT 1")
        sentinels = [self.data / "sentinels" / str(number) for number in range(3)] if followed else []
        yield from (f"no Sentinel in {place}" for place in sentinels if place not in here.values())
        for pid, place in here.items():
            parent = _parent(pid)
            if place in sentinels:
                if place in seen:
                    yield f"Sentinels {pid} and {seen[place]} both run in {place}"
                seen[place] = pid
                continue
            if pid == service or (parent == service and place not in wanted) or here.get(parent) == place:
                continue  # itself, what it asks for its version, and a server's child that writes a snapshot
            if place not in wanted:
                yield f"process {pid} in {place} belongs to nobody"
            elif place in seen:
                yield f"processes {pid} and {seen[place]} both run in {place}"
            elif wanted[place]["seen_pid"] != pid:
                yield f"process {pid} in {place} is not the one that was seen, {wanted[place]['seen_pid']}"
            seen[place] = pid
        for place, row in wanted.items():
            if place not in seen:
                yield f"nothing runs in {place}: {row['seen_state']}"

    def _proxies_up(self) -> dict[Path, sqlite3.Row]:
        """Those that are to run, as a node of their instance is; by directory."""
        query = "SELECT * FROM proxies WHERE instance_id IN (SELECT instance_id FROM nodes WHERE run = 'up')"
        return {self.data / "proxies" / str(row["id"]): row for row in self.rows(query)}

    def _new_client(self) -> httpx.Client:
        first = self.first
        user = {"name": first["user_name"], "password": first["password"]}
        user["domain"] = {"name": first["domain_name"]}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"id": first["project_id"]}},
            }
        }
        endpoint = f"http://127.0.0.1:{self.port}"
        response = httpx.post(f"{endpoint}/v3/auth/tokens", json=body, timeout=30)
        assert response.is_success, response.text
        return httpx.Client(
            base_url=f"{endpoint}/v2/{first['project_id']}",
            headers={"X-Auth-Token": response.headers["X-Subject-Token"]},
            timeout=30,
        )


@contextmanager
def service_in(home: Path, **environment: str) -> Iterator[Service]:
    """A service that serves, and its end."""
    service = Service(home, **environment)
    try:
        yield service.start()
    finally:
        service.close()


class Refused(AssertionError):  # noqa: N818 - read as what happened
    """The API refused; `status` says how."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(
            f"{response.request.method} {response.url.path}: {response.status_code} {response.text}"
        )
        self.status = response.status_code


def answer(response: httpx.Response) -> Any:
    """The body of an answer that is no refusal."""
    if not response.is_success:
        raise Refused(response)
    return response.json() if response.content else None


def nothing_left(find: Callable[[], list[str]], *, seconds: float, what: str) -> None:
    """Wait until `find` finds nothing; the error says what it found last."""
    left: list[str] = []

    def check() -> bool:
        left[:] = find()
        return not left

    try:
        until(check, seconds=seconds, what=what, pause=0.02)
    except AssertionError as error:
        raise AssertionError(f"{error}: {left}") from None


def delete_all(service: Service) -> None:
    """Delete all instances; then nothing is there."""

    def serves(pid: int) -> bool:
        return service.running is not None and pid == service.running.pid

    nothing_left(service.unfinished, seconds=REST_SECONDS, what="all tasks to end")
    ids = [row["id"] for row in service.rows("SELECT id FROM instances")]
    if ids:
        told = service.call("DELETE", "/instances", {"instances": ids})
        assert {one["result"] for one in told["results"]} == {"success"}
    nothing_left(service.unfinished, seconds=REST_SECONDS, what="all to be deleted")
    tables = ("instances", "nodes", "proxies", "shards", "addresses", "tags", "node_figures", "proxy_figures")
    for table in tables:
        assert service.rows(f"SELECT * FROM {table}") == [], table  # noqa: S608
    nothing_left(
        lambda: [
            *service.leftovers(),
            *(f"{pid} in {place}" for pid, place in processes(service.data).items() if not serves(pid)),
        ],
        seconds=5,
        what="all but the service to be gone",
    )


def spec(mode: str, size: int, nodes: int = 2) -> str:
    """A spec code for this machine: the type, MB, and how many nodes a shard."""
    cpu = "xu1" if flavors.local_cpu() == "x86_64" else "au1"
    replicas = {"single": "", "proxy": "", "ha_rw_split": f"p{nodes}."}.get(mode, f"r{nodes}.")
    kind, number = ("tiny", size) if size < 1024 else ("large", size // 1024)
    return f"redis.{'ha' if mode == 'ha_rw_split' else mode}.{cpu}.{kind}.{replicas}{number}"


def size_of(spec_code: str) -> int:
    """MB, as its last part says: `redis.ha.xu1.tiny.r2.128`."""
    size = int(spec_code.rpartition(".")[2])
    return size if ".tiny." in spec_code else size * 1024


def connect(ip: str, port: int = 6379, password: str | None = PASSWORD, seconds: float = 5) -> redis.Redis:
    """A tenant's connection."""
    return redis.Redis(
        host=ip, port=port, password=password, socket_timeout=seconds, decode_responses=True, retry=NO_RETRY
    )


def get(shown: dict[str, Any], key: str) -> str | None:
    """What a tenant reads at an instance's address; `OSError` when there is nobody."""
    try:
        with connect(shown["ip"], shown["port"]) as client:
            value = client.get(key)
    except redis.RedisError as error:
        raise OSError(str(error)) from error
    assert value is None or isinstance(value, str)
    return value


def put(shown: dict[str, Any], key: str, value: str) -> None:
    """Have a tenant write; returns when no kill of the server can undo it, if it keeps a file at all.

    A server that syncs its file every second answers before it writes while a sync is under way.
    """
    with connect(shown["ip"], shown["port"]) as client:
        client.set(key, value)
        until(
            lambda: int(client.info("persistence").get("aof_buffer_length", 0)) == 0,
            seconds=5,
            what="the write to be in the file",
        )


def processes(data: Path) -> dict[int, Path]:
    """All processes but this that work in the directory or have a file in it open, and where; by /proc."""
    found: dict[int, Path] = {}
    root = f"{data}/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it has just gone, or is another user's
            place = (entry / "cwd").readlink()
            if str(place).startswith(root):
                found[int(entry.name)] = place
                continue
            for descriptor in (entry / "fd").iterdir():
                with suppress(FileNotFoundError):
                    if str(descriptor.readlink()).startswith(root):
                        found[int(entry.name)] = data
                        break
    return found


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
