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
    replica_of: Address | None
    users: tuple[AclUser, ...]
    internal_secret: str  # sealed; the password of the internal ACL user


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `nodes`."""

    id: str
    instance_id: str
    shard_id: str
    host_id: str
    number: int
    kind: str
    role: Role
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


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `node_figures`: what INFO said. Memory in bytes, rates per second."""

    node_id: str
    seen_at: int
    used_memory: int
    max_memory: int
    keys: int
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
