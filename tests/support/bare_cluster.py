"""A Redis Cluster of servers that the test starts itself, without rows or agent."""

import asyncio
import contextlib
import random
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from support import rows
from support.waiting import until
from support.yard import SECRET, client

from cacheyard.domain import slots
from cacheyard.domain.nodes import AclUser, Address, Node, Role
from cacheyard.engine import cluster
from cacheyard.engine.redis import Link
from cacheyard.engine.redis_conf import acl_lines

PORT = 6379
OPEN = AclUser(name="default", password_sha256=None, rules=("~*", "&*", "+@all"))


class BareCluster:
    """`shards` with all slots, `empty` ones beside them; each a master and its replicas."""

    def __init__(
        self, directory: Path, binary: str, *, shards: int, empty: int = 0, replicas: int = 0
    ) -> None:
        self._directory = directory
        self._binary = binary
        self._net = f"127.{random.randint(192, 220)}.{random.randint(0, 255)}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, redis.Redis] = {}
        self.nodes = [
            self._node(shard, number) for shard in range(shards + empty) for number in range(1 + replicas)
        ]
        self.names = [f"shard-{shard}" for shard in range(shards + empty)]
        self.old, self.new = self.names[:shards], self.names[shards:]

    @property
    def shards(self) -> dict[str, list[Node]]:
        """The nodes of each shard, for a mover."""
        return {name: [node for node in self.nodes if node.shard_id == name] for name in self.names}

    def link(self, address: Address) -> Link:
        """As the internal user."""
        return Link(address, SECRET)

    def redis(self, node: Node) -> Any:
        """A tenant's client of one node."""
        if node.ip not in self._clients:
            self._clients[node.ip] = client(node.ip, PORT)
        return self._clients[node.ip]

    def master(self, name: str) -> Any:
        """A client of the first node of a shard."""
        return self.redis(self.shards[name][0])

    def everywhere(self) -> Any:
        """A tenant's client of them all."""
        return redis.RedisCluster(host=self.nodes[0].ip, port=PORT, decode_responses=False)

    def start(self) -> None:
        """Start all and have them know each other."""
        born = [node for node in self.nodes if node.shard_id in self.old]
        for node in self.nodes:
            directory = self._directory / node.id
            directory.mkdir()
            known = born if node in born else self.nodes
            ranges = slots.balanced(len(self.old)) if node in born else None
            (directory / "nodes.conf").write_text(cluster.first_nodes_conf(node, known, ranges))
            self.start_node(node)
        asyncio.run(self._join(born))
        until(self._whole, seconds=20, what="the cluster to be whole")

    def start_node(self, node: Node) -> None:
        """Start one, again or for the first time."""
        directory = self._directory / node.id
        (directory / "users.acl").write_text("\n".join(acl_lines((OPEN,), SECRET)) + "\n")
        options = {
            "bind": node.ip,
            "bind-source-addr": node.ip,
            "port": PORT,
            "protected-mode": "no",
            "dir": directory,
            "logfile": directory / "log",
            "aclfile": directory / "users.acl",
            "save": "",
            "appendonly": "yes",
            "masteruser": "cacheyard",
            "masterauth": SECRET,
            "repl-diskless-sync-delay": 0,
            "repl-ping-replica-period": 1,
            "cluster-enabled": "yes",
            "cluster-announce-ip": node.ip,
            "cluster-allow-replica-migration": "no",
            "cluster-require-full-coverage": "no",
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._running[node.ip] = subprocess.Popen([self._binary, *words], stdin=subprocess.DEVNULL)
        until(lambda: self._answers(node), seconds=10, what=f"{node.ip} to answer")

    def kill_node(self, node: Node) -> None:
        """`kill -9`."""
        self._running[node.ip].kill()
        self._running[node.ip].wait()

    def stop(self) -> None:
        """Nothing is left."""
        for one in self._clients.values():
            one.close()
        for process in self._running.values():
            process.kill()
            process.wait()

    def pid(self, node: Node) -> int:
        """Of the node's process."""
        return self._running[node.ip].pid

    def seen(self) -> list[list[cluster.Member]]:
        """What each living node sees."""

        async def ask() -> list[list[cluster.Member]]:
            found = []
            for node in self.nodes:
                with contextlib.suppress(OSError, redis.RedisError):
                    async with self.link(Address(node.ip, PORT)) as link:
                        found.append(await cluster.members(link))
            return found

        return asyncio.run(ask())

    def _node(self, shard: int, number: int) -> Node:
        ip = f"{self._net}.{10 * shard + number + 2}"
        chosen = rows.settings(bind=(ip,), maxmemory=0, maxclients=1000, users=(OPEN,), clustered=True)
        return rows.node(
            number,
            id=f"node-{shard}-{number}",
            shard_id=f"shard-{shard}",
            engine_id=secrets.token_hex(20),
            ip=ip,
            binary=self._binary,
            settings=chosen,
        )

    def _answers(self, node: Node) -> bool:
        try:
            return bool(self.redis(node).ping())
        except redis.ConnectionError:
            return False

    async def _join(self, born: list[Node]) -> None:
        for node in self.nodes:
            async with self.link(Address(node.ip, PORT)) as link:
                if node in born:
                    await cluster.be_born(link)
                    await cluster.meet(link, (Address(other.ip, PORT) for other in self.nodes))

    def _whole(self) -> bool:
        async def ask(node: Node) -> str | None:
            async with self.link(Address(node.ip, PORT)) as link:
                return await cluster.fault(link, self.nodes)

        if any(asyncio.run(ask(node)) for node in self.nodes):
            return False
        return all(
            self.redis(node).info("replication")["master_link_status"] == "up"
            for node in self.nodes
            if node.role is Role.REPLICA
        )


@contextmanager
def bare_cluster(
    directory: Path, binary: str, *, shards: int, empty: int = 0, replicas: int = 0
) -> Iterator[BareCluster]:
    """A running one, gone afterwards."""
    made = BareCluster(directory, binary, shards=shards, empty=empty, replicas=replicas)
    try:
        made.start()
        yield made
    finally:
        made.stop()
