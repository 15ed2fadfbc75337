"""A data directory with rows and an agent of its own, for tests that need real servers and no API."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import delete
from support import rows
from support.waiting import until

from cacheyard.agent import process
from cacheyard.domain.nodes import AclUser, Address, Node, Role
from cacheyard.settings import Settings
from cacheyard.store import nodes, tables
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

SECRET = "internal-secret"
OPEN = AclUser(name="default", password_sha256=None, rules=("~*", "&*", "+@all"))

AGENT = """
import asyncio, sys
from pathlib import Path
from cacheyard.agent.agent import Agent
from cacheyard.settings import load
from cacheyard.store.db import Store
settings = load(Path(sys.argv[1]), {}, observe_seconds=float(sys.argv[2]))
asyncio.run(Agent(settings, Store(settings.database), az_codes=("az1",)).run())
"""


def client(ip: str, port: int = 6379, **how: Any) -> redis.Redis:
    """A client that does not hide failures behind retries."""
    retry = Retry(NoBackoff(), 0)
    return redis.Redis(
        host=ip, port=port, protocol=2, decode_responses=True, driver_info=None, retry=retry, **how
    )


class Yard:
    """Rows, an agent in a process of its own, and the end of all of it in `close`."""

    def __init__(self, data: Path, binary: str = "/usr/bin/redis-server") -> None:
        self.binary = binary
        self.settings = Settings(data=data)
        migrate(self.settings.database)
        self.store = Store(self.settings.database)
        self.sealer = Sealer.of(self.settings.secret_key)
        self._clients: dict[tuple[Any, ...], redis.Redis] = {}
        self.agent: subprocess.Popen[bytes] | None = None
        # so that runs side by side do not meet
        self._net = f"127.{random.randint(128, 191)}.{random.randint(0, 255)}"
        self._next = random.randint(2, 100)
        with closing(self.store._writer.raw_connection()) as connection:
            # the instances and shards that rows of nodes belong to are other tests' affair
            connection.execute("PRAGMA foreign_keys=OFF")

    def new_ip(self) -> str:
        """An address that no other server here has."""
        self._next += 1
        return f"{self._net}.{self._next}"

    def node(self, *, replica_of: Node | None = None, port: int = 6379, **changes: Any) -> Node:
        """A node that is not in the store yet. `changes` are of its settings."""
        ip = self.new_ip()
        chosen: dict[str, Any] = {
            "bind": (ip,),
            "port": port,
            "maxmemory": 64 * 1024 * 1024,
            "maxclients": 1000,
            "databases": 16,
            "persistent": False,
            "replica_of": Address(ip=replica_of.ip, port=replica_of.port) if replica_of else None,
            "users": (OPEN,),
            "internal_secret": self.sealer.seal(SECRET),
        }
        return rows.node(
            id=f"n{self._next}-{random.randbytes(3).hex()}",
            role=Role.REPLICA if replica_of else Role.MASTER,
            ip=ip,
            port=port,
            binary=self.binary,
            settings=rows.settings(**(chosen | changes)),
        )

    def add(self, *new: Node) -> None:
        """Insert rows."""
        with self.store.write() as tx:
            nodes.add(tx, new)

    def forget(self, *these: Node) -> None:
        """Delete rows, as if the database had lost them."""
        with self.store.write() as tx:
            tx.execute(delete(tables.nodes).where(tables.nodes.c.id.in_([node.id for node in these])))

    def row(self, node: Node) -> Node:
        """The node's row as it is now."""
        with self.store.read() as tx:
            return nodes.by_ids(tx, [node.id])[0]

    def want(self, node: Node, **wanted: Any) -> Node:
        """Change what is wanted; `settings` is a dict of changes."""
        with self.store.write() as tx:
            now = nodes.by_ids(tx, [node.id])[0]
            if "settings" in wanted:
                wanted["settings"] = msgspec.structs.replace(now.settings, **wanted["settings"])
            nodes.want(tx, now, **wanted)
        return self.row(node)

    def settled(self, *these: Node, seconds: float = 20.0) -> list[Node]:
        """Wait until all that is wanted of these nodes was seen."""

        def check() -> list[Node] | None:
            with self.store.read() as tx:
                rows = nodes.by_ids(tx, [node.id for node in these])
            return rows if all(row.settled for row in rows) else None

        try:
            return until(check, seconds=seconds, what="nodes to be as wanted")
        except AssertionError as error:
            raise AssertionError(f"{error}: {[self.row(node) for node in these][:3]}\n{self.log()}") from None

    def directory(self, node: Node) -> Path:
        """The node's directory."""
        return self.settings.nodes / node.id

    def start_agent(self, observe_seconds: float = 60.0) -> subprocess.Popen[bytes]:
        """An agent in a process of its own."""
        with (self.settings.data / "agent.log").open("ab") as out:
            self.agent = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(self.settings.data), str(observe_seconds)],
                stdout=out,
                stderr=out,
            )
        return self.agent

    def kill_agent(self) -> None:
        """`kill -9`."""
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    def log(self) -> str:
        """What the agent logged."""
        file = self.settings.data / "agent.log"
        return file.read_text() if file.exists() else ""

    def redis(self, node: Node, **how: Any) -> "redis.Redis":
        """A client of the node's server, the same for the same question; closed with the yard."""
        key = (node.id, *sorted(how.items()))
        if key not in self._clients:
            self._clients[key] = client(node.ip, node.port, **how)
        return self._clients[key]

    def close(self) -> None:
        """End everything, whatever state it is in."""
        self.kill_agent()
        for client in self._clients.values():
            client.close()
        deadline = time.monotonic() + 10
        if self.settings.nodes.is_dir():
            for directory in self.settings.nodes.iterdir():
                while directory.is_dir() and (left := process.holders(directory)):
                    for pid in left:
                        os.kill(pid, signal.SIGKILL)
                    if time.monotonic() > deadline:
                        raise AssertionError(f"{left} do not end")
        self.store.close()
        shutil.rmtree(self.settings.data, ignore_errors=True)
