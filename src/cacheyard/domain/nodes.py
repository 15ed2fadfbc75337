"""A node: one server process, as it is wanted and as it was seen.

Services and tasks write the wanted half, the agent of the node's host the seen half. The agent makes
them equal; see docs/architecture.md, "Desired and observed".
"""

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """What a redis node is in its shard. A restart keeps it: only a task or a failover changes it."""

    MASTER = "master"
    REPLICA = "replica"


class Run(StrEnum):
    """Whether the process should be there."""

    UP = "up"
    DOWN = "down"  # no process; data directory kept
    GONE = "gone"  # no process, no data directory


class NodeState(StrEnum):
    """What the agent last saw. The first four are how the API spells node statuses."""

    CREATING = "Creating"  # never seen up yet
    ACTIVE = "Active"  # the process runs and answers PING
    INACTIVE = "Inactive"  # should run and does not answer
    DELETING = "Deleting"  # being stopped for good
    STOPPED = "Stopped"  # no process, as wanted
    GONE = "Gone"  # no process and no directory, as wanted


LOADING = "it is reading its data"  # `seen_error` of a node that will answer once it has done so
PRIORITY = 100  # of a node for which nobody chose another


class Address(msgspec.Struct, frozen=True):
    """Where a server listens."""

    ip: str
    port: int


class AclUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user of the servers, as Redis ACLs know it. Passwords are SHA-256 digests in hex, never clear."""

    name: str
    password_sha256: str | None  # None: no password is asked for
    rules: tuple[str, ...]  # ACL rules after the password, e.g. ("~*", "&*", "+@all", "-debug")


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a server is configured with. `databases`, `rename_commands` and `port` need a restart
    (a new incarnation) to take effect; the rest is changed in the running server."""

    bind: tuple[str, ...]  # the node's own address, then the instance's floating one if it is the master's
    port: int
    maxmemory: int  # bytes
    maxclients: int
    databases: int
    persistent: bool  # append-only file, fsync every second
    parameters: dict[str, str]  # further CONFIG names and values
    rename_commands: dict[str, str]  # command to new name, both lower case
    # Of a member of a Redis Cluster: a server that is in none, whose place it will take (`tasks.retype`).
    replica_of: Address | None
    users: tuple[AclUser, ...]
    internal_secret: str  # sealed; the password of the internal ACL user
    clustered: bool = False  # a member of a Redis Cluster, which settles who is master
    priority: int = PRIORITY  # see Node
    kills_scripts: bool = False  # whether the agent ends those that run too long
    # What its certificate is for, its own address first: addresses, and names without the region's zone. It
    # speaks TLS at its port, and nothing else there; empty: it speaks without.
    tls: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `nodes`."""

    id: str
    instance_id: str
    shard_id: str
    host_id: str
    number: int
    logical_id: str
    replication_id: str
    engine_id: str | None = None
    kind: str
    role: Role
    priority: int = PRIORITY  # smaller is promoted first, 0 never
    in_dns: bool = True
    added: bool = False
    az_code: str
    ip: str
    port: int
    binary: str
    run: Run
    incarnation: int
    keep_data: bool
    generation: int
    settings: NodeSettings
    seen_state: NodeState = NodeState.CREATING
    seen_since: int = 0
    seen_incarnation: int = 0
    seen_generation: int = 0
    seen_pid: int | None = None
    seen_error: str | None = None
    seen_expires: int | None = None
    seen_refused: int = 0

    @property
    def answers(self) -> bool:
        """Whether it is to run, and did when it was last seen."""
        return self.run is Run.UP and self.seen_state is NodeState.ACTIVE

    @property
    def settled(self) -> bool:
        """Whether what was seen is all that is wanted."""
        if self.run is Run.UP:
            return (
                self.seen_state is NodeState.ACTIVE
                and self.seen_incarnation == self.incarnation
                and self.seen_generation == self.generation
            )
        return self.seen_state is (NodeState.STOPPED if self.run is Run.DOWN else NodeState.GONE)


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `shards`: a master and its replicas. The API calls it a group."""

    id: str
    instance_id: str
    number: int
    name: str
    watched: bool = False
    watch: int = 0
    seen_watch: int = 0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `node_figures`: what INFO said. Memory in bytes, rates per second."""

    node_id: str
    seen_at: int
    role: Role  # in fact
    used_memory: int
    max_memory: int
    keys: int
    databases: str  # those that have keys, with commas between: `0,5`
    expires: int  # keys that have a time to live
    avg_ttl: int  # milliseconds; their average, as the server guesses it
    clients: int
    hits: int
    misses: int
    gets: int  # GET commands, since the process began
    sets: int
    commands_per_second: int
    input_kbps: float
    output_kbps: float
    cpu_seconds: float
    link_up: bool
    offset: int
