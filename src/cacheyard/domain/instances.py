"""An instance and the rules for what it may be called and when it may be disturbed. No I/O."""

import re
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from cacheyard.domain import parameters
from cacheyard.domain.accounts import DEFAULT, Account, AccountRole
from cacheyard.domain.bandwidth import Bandwidth
from cacheyard.domain.commands import NAMES, denied_rules, reading_rules
from cacheyard.domain.engines import version_of
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.names import has_readonly_name, host_of, readonly_host_of
from cacheyard.domain.nodes import AclUser, Address, Node, NodeSettings, Role, Run
from cacheyard.domain.placement import Spot
from cacheyard.domain.public import PublicAccess
from cacheyard.domain.statuses import Status
from cacheyard.domain.whitelist import Whitelist
from cacheyard.ids import new_id

PORT = 6379
BUS = 10_000  # the nodes of a Redis Cluster talk to each other at their port and so much
CLUSTERED_MODES = ("cluster", "proxy")
PROXIED_MODES = ("proxy", "ha_rw_split")
GUARDED_MODES = ("ha", *PROXIED_MODES, "cluster")
MAINTENANCE = ("02:00:00", "06:00:00")  # what clients expect when they give none
BATCH = 50  # instance ids a request may name
BATCH_NAME = 56  # characters of a name that gets -000, -001 … behind it
TAGS = 20  # tags an instance may have
FILLED = 0.7  # how full a new size may be from the start
RENAMEABLE = frozenset(
    (
        "command",
        "keys",
        "flushdb",
        "flushall",
        "hgetall",
        "scan",
        "hscan",
        "sscan",
        "zscan",
        "dbsize",
        "dbstats",
    )
)
_NEW_COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9_-]{3,63}")
_HOUR = re.compile(r"([01]\d|2[0-3]):00(:00)?")


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `instances`; see store.tables for what the columns mean."""

    id: str
    project_id: str
    name: str
    description: str
    status: Status
    task_id: str | None
    engine: str
    engine_version: str
    internal_version: str
    cache_mode: str
    spec_code: str
    capacity_mb: int
    ip: str
    port: int
    vpc_id: str
    subnet_id: str
    security_group_id: str | None
    az_codes: list[str]
    maintain_begin: str
    maintain_end: str
    backup_policy: dict[str, Any] | None
    rename_commands: dict[str, str]
    template_id: str | None
    enterprise_project_id: str
    no_password: bool
    password_hash: str | None
    password_sha256: str | None
    wrong_passwords: int
    locked_until: int | None
    internal_secret: str
    user_id: str
    user_name: str
    created_at: int
    launched_at: int | None
    updated_at: int
    parameters: dict[str, str] = {}
    accounts: list[Account] = []
    ssl: bool = False
    whitelist: Whitelist | None = None
    client_ip: bool = True
    bandwidth: Bandwidth | None = None  # None: what the flavor has
    public_access: PublicAccess | None = None
    protected: bool = False


class Tag(msgspec.Struct, frozen=True):
    """A label of an instance."""

    key: str
    value: str


def maintenance_fault(begin: str, end: str) -> str | None:
    """Why a window cannot be had; None: it can. It is an hour long (the newer form) or four (the older)."""
    if not _HOUR.fullmatch(begin) or not _HOUR.fullmatch(end):
        return "the window must begin and end on the hour, HH:00:00"
    length = (int(end[:2]) - int(begin[:2])) % 24
    if length == 1 or (length == 4 and int(begin[:2]) % 4 == 2):
        return None
    return "the window must be one hour long, or one of the four-hour windows from 02, 06, 10, 14, 18 and 22"


def in_maintenance(begin: str, end: str, at: int) -> bool:
    """Whether that moment (epoch milliseconds) is in the window, which is UTC and may go over midnight."""
    first, last = (int(text[:2]) * 3600 for text in (begin, end))
    return (at // 1000 - first) % 86_400 < (last - first) % 86_400


def port_fault(cache_mode: str, port: int) -> str | None:
    """Why servers of that type cannot listen there; None: they can."""
    if cache_mode in CLUSTERED_MODES and port + BUS > 65_535:
        return f"a Redis Cluster uses the port {BUS} above it too, so it may be {65_535 - BUS} at most"
    return None


def rename_fault(commands: dict[str, str]) -> str | None:
    """Why commands cannot be renamed so; None: they can."""
    for command, new in commands.items():
        if command not in RENAMEABLE:
            return f"{command} cannot be renamed"
        if not _NEW_COMMAND.fullmatch(new):
            return f"the new name of {command} must have 4-64 letters, digits, _ or -, a letter first"
        if new.lower() in NAMES - {command}:
            return f"{command} cannot be called {new}: that is another command"
    taken = [new.lower() for new in commands.values()]
    if len(set(taken)) < len(taken):
        return "two commands cannot have the same new name"
    return None


def new_names(commands: dict[str, str]) -> dict[str, str]:
    """Those that really get another name: clients undo a renaming by naming a command as it was."""
    return {command: new for command, new in commands.items() if new.lower() != command}


def renamed(instance: Instance) -> dict[str, str]:
    """The renamed commands that there are. (DBSTATS may be renamed, but is the cloud's own.)"""
    return {old: new.lower() for old, new in instance.rename_commands.items() if old in NAMES}


def tenants(instance: Instance) -> tuple[AclUser, ...]:
    """The tenant's users: `default`, who may do all that the service does not forbid, and the accounts. Where
    no password is asked for, `default` is the only one, as documented."""
    sold = (instance.cache_mode, instance.engine_version, version_of(instance.internal_version))
    last = parameters.tenant_rules(instance.parameters, instance.engine_version, instance.cache_mode)
    rules = {
        AccountRole.READ: ("~*", "&*", *reading_rules(*sold), *last),
        AccountRole.WRITE: ("~*", "&*", "+@all", *denied_rules(*sold), *last),
    }
    default = AclUser(name=DEFAULT, password_sha256=instance.password_sha256, rules=rules[AccountRole.WRITE])
    accounts = (
        AclUser(name=account.name, password_sha256=account.password_sha256, rules=rules[account.role])
        for account in ([] if instance.no_password else instance.accounts)
    )
    return (default, *accounts)


def floats(instance: Instance) -> bool:
    """Whether clients use an address that the master binds beside its own."""
    return instance.cache_mode == "ha"


def beside(instance: Instance) -> tuple[str, ...]:
    """What the master binds beside its own address: the one that floats and the public one, if there are any.
    With `-` before it, a server starts even if the machine has lost the address."""
    if clustered(instance) or proxied(instance):
        return ()
    public = (f"-{instance.public_access.address}",) if instance.public_access is not None else ()
    return ((instance.ip,) if floats(instance) else ()) + public


def clustered(instance: Instance) -> bool:
    """Whether its nodes are a Redis Cluster."""
    return instance.cache_mode in CLUSTERED_MODES


def proxied(instance: Instance) -> bool:
    """Whether clients talk to proxies, which have the instance's address to themselves."""
    return instance.cache_mode in PROXIED_MODES


def guarded(instance: Instance) -> bool:
    """Whether another node may become master without a task: Sentinel's affair, or the cluster's."""
    return instance.cache_mode in GUARDED_MODES


def encrypted_servers(instance: Instance) -> bool:
    """Whether servers themselves speak TLS. Where there are proxies, those do, with clients."""
    return instance.ssl and not proxied(instance)


def certified(instance: Instance, *addresses: str) -> tuple[str, ...]:
    """What certificates of an instance's servers or proxies are for: their own addresses, and where clients
    find the instance. Names are without the region's zone."""
    places = [*addresses, instance.ip]
    if instance.public_access is not None:
        places.append(instance.public_access.address)
    names = [host_of(instance.id)]
    if has_readonly_name(instance.cache_mode):
        names.append(readonly_host_of(instance.id))
    return tuple(dict.fromkeys((*places, *names)))


def in_force(instance: Instance, node: Node) -> bool:
    """Whether the node is of the instance's type: while that is being changed, it has nodes of both."""
    return node.settings.clustered is clustered(instance)


def node_settings(
    instance: Instance, flavor: Flavor, *, role: Role, ip: str, master_ip: str, priority: int = 100
) -> NodeSettings:
    """What a node is configured with.

    In a master/standby instance the master alone binds the address that clients use; a single node's own
    address is that address, and a cluster's clients use the nodes' own.
    """
    follows = role is Role.REPLICA and not clustered(instance)
    chosen = (instance.parameters, instance.engine_version, flavor)
    return NodeSettings(
        bind=(ip, *(beside(instance) if role is Role.MASTER else ())),
        port=instance.port,
        maxmemory=parameters.server_memory(*chosen),
        maxclients=parameters.server_clients(*chosen),
        databases=flavor.databases,
        persistent=flavor.cache_mode != "single",
        parameters=parameters.for_servers(*chosen),
        rename_commands=renamed(instance),
        replica_of=Address(master_ip, instance.port) if follows else None,
        users=tenants(instance),
        internal_secret=instance.internal_secret,
        clustered=clustered(instance),
        priority=priority,
        kills_scripts=parameters.kills_scripts(
            instance.parameters, instance.engine_version, instance.cache_mode
        ),
        tls=certified(instance, ip) if encrypted_servers(instance) else (),
    )


def new_node(
    instance: Instance,
    flavor: Flavor,
    *,
    shard_id: str,
    number: int,
    role: Role,
    ip: str,
    master_ip: str,
    spot: Spot,
    binary: str,
    added: bool = False,
) -> Node:
    """A node that is to be, in a place of its own. `added`: the instance is older than it."""
    return Node(
        id=new_id(),
        instance_id=instance.id,
        shard_id=shard_id,
        host_id=spot.host_id,
        number=number,
        logical_id=new_id(),
        replication_id=new_id(),
        engine_id=secrets.token_hex(20) if clustered(instance) else None,
        kind="redis",
        role=role,
        added=added,
        az_code=spot.az_code,
        ip=ip,
        port=instance.port,
        binary=binary,
        run=Run.UP,
        incarnation=1,
        keep_data=False,
        generation=1,
        settings=node_settings(instance, flavor, role=role, ip=ip, master_ip=master_ip),
    )


def with_master(
    instance: Instance, shard: Sequence[Node], master_id: str
) -> list[tuple[Node, Role, NodeSettings]]:
    """What the nodes of a shard are and are configured with when that one is its master; all else stays."""
    master = next(node for node in shard if node.id == master_id)
    decide = clustered(instance)  # the members of a cluster settle that among themselves
    found = []
    for node in shard:
        is_master = node.id == master_id
        floating = beside(instance) if is_master else ()
        alone = is_master or (decide and node.settings.clustered)
        follows = None if alone else Address(master.ip, master.port)
        settings = msgspec.structs.replace(node.settings, bind=(node.ip, *floating), replica_of=follows)
        found.append((node, Role.MASTER if is_master else Role.REPLICA, settings))
    return found
