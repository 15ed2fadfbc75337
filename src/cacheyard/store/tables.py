"""The tables. Times are epoch milliseconds; JSON columns hold what no query looks into.

`migrations/` is what makes them on disk; a test holds the two together.
"""

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()


def _id(name: str = "id") -> Column[str]:
    return Column(name, String(64), primary_key=True)


def _ref(name: str, target: str, *, null: bool = False) -> Column[str]:
    return Column(name, String(64), ForeignKey(f"{target}.id"), nullable=null, index=True)


# --- Identity -----------------------------------------------------------------------------------

domains = Table("domains", metadata, _id(), Column("name", String(64), nullable=False, unique=True))

projects = Table(
    "projects",
    metadata,
    _id(),
    _ref("domain_id", "domains"),
    Column("name", String(64), nullable=False, unique=True),
    Column("description", Text, nullable=False, default=""),
    Column("enabled", Boolean, nullable=False, default=True),
)

users = Table(
    "users",
    metadata,
    _id(),
    _ref("domain_id", "domains"),
    Column("name", String(64), nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, default=True),
    Column("created_at", Integer, nullable=False),
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("access", String(64), primary_key=True),
    _ref("user_id", "users"),
    Column("secret_sealed", Text, nullable=False),  # sealed, not hashed: HMAC needs it
    Column("enabled", Boolean, nullable=False, default=True),
    Column("created_at", Integer, nullable=False),
)

role_assignments = Table(
    "role_assignments",
    metadata,
    Column("user_id", String(64), ForeignKey("users.id"), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("role", String(64), primary_key=True),  # a system role of domain.permissions
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the token; the token itself is kept nowhere
    _ref("user_id", "users"),
    _ref("project_id", "projects", null=True),
    Column("issued_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False, index=True),
)

seen_signatures = Table(
    "seen_signatures",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("seen_at", Integer, nullable=False, index=True),
)

# --- Network ------------------------------------------------------------------------------------

vpcs = Table(
    "vpcs",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False, default=""),
    Column("cidr", String(32), nullable=False),
    Column("created_at", Integer, nullable=False),
)

subnets = Table(
    "subnets",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    _ref("vpc_id", "vpcs"),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False, default=""),
    Column("cidr", String(32), nullable=False),
    Column("gateway_ip", String(40), nullable=False),
    Column("pool", String(32), nullable=False, unique=True),  # its real addresses: docs/network.md
    Column("shown", JSON, nullable=False),  # what clients set and means nothing here, e.g. DNS
    Column("created_at", Integer, nullable=False),
)

security_groups = Table(
    "security_groups",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False, default=""),
    Column("created_at", Integer, nullable=False),
)

# Kept and shown; they filter nothing.
security_group_rules = Table(
    "security_group_rules",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column(
        "security_group_id",
        String(64),
        ForeignKey("security_groups.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("direction", String(8), nullable=False),  # ingress or egress
    Column("ethertype", String(4), nullable=False),  # IPv4 or IPv6
    Column("protocol", String(16)),  # NULL here and below: any
    Column("ports", Text),  # 22,80-90
    Column("remote_ip_prefix", String(64)),
    # A group that goes takes the rules that name it along.
    Column("remote_group_id", String(64), ForeignKey("security_groups.id", ondelete="CASCADE"), index=True),
    Column("description", Text, nullable=False, default=""),
    Column("action", String(8), nullable=False),  # allow or deny
    Column("priority", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
)

addresses = Table(
    "addresses",
    metadata,
    Column("ip", String(40), primary_key=True),  # a primary key: nobody gets an address twice
    Column("number", Integer, nullable=False),  # the address as a number: to find the lowest free one
    _ref("subnet_id", "subnets"),
    # Checked at the end of the transaction: an instance's row is written once it has its addresses.
    Column(
        "instance_id",
        String(64),
        ForeignKey("instances.id", deferrable=True, initially="DEFERRED"),
        nullable=False,
        index=True,
    ),
)

# --- Hosts, instances, shards, nodes --------------------------------------------------------------

hosts = Table(
    "hosts",
    metadata,
    _id(),
    Column("az_codes", JSON, nullable=False),  # the zones this host serves; all of them on a single machine
    Column("memory_mb", Integer, nullable=False),
    Column("engines", JSON, nullable=False),  # list of domain.engines.Engine
    Column("seen_at", Integer, nullable=False),
)

instances = Table(
    "instances",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column("name", String(64), nullable=False, index=True),
    Column("description", Text, nullable=False, default=""),
    Column("status", String(16), nullable=False, index=True),  # domain.statuses
    Column("task_id", String(64)),  # the task that holds the instance; NULL: free for the next change
    Column("engine", String(16), nullable=False),
    Column("engine_version", String(8), nullable=False),  # as asked for
    Column("internal_version", String(16), nullable=False),  # the server that really runs
    Column("cache_mode", String(16), nullable=False),
    Column("spec_code", String(64), nullable=False),
    Column("capacity_mb", Integer, nullable=False),
    Column("ip", String(40), nullable=False),  # the address clients use
    Column("port", Integer, nullable=False),
    _ref("vpc_id", "vpcs"),
    _ref("subnet_id", "subnets"),
    Column("security_group_id", String(64)),
    Column("az_codes", JSON, nullable=False),
    Column("maintain_begin", String(8), nullable=False),
    Column("maintain_end", String(8), nullable=False),
    Column("backup_policy", JSON),
    Column("rename_commands", JSON, nullable=False),
    Column("template_id", String(64)),
    Column("enterprise_project_id", String(64), nullable=False, default="0"),
    Column("no_password", Boolean, nullable=False),
    Column("password_hash", Text),  # argon2, for checking
    Column("password_sha256", String(64)),  # what Redis ACL files want
    Column("wrong_passwords", Integer, nullable=False, default=0),
    Column("locked_until", Integer),
    Column("internal_secret", Text, nullable=False),  # sealed; replication's and cacheyard's own ACL user
    Column("user_id", String(64), nullable=False),
    Column("user_name", String(64), nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("launched_at", Integer),
    Column("updated_at", Integer, nullable=False),
)

tags = Table(
    "tags",
    metadata,
    Column("instance_id", String(64), ForeignKey("instances.id"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(255), nullable=False),
    Column("position", Integer, nullable=False),  # tags come back in the order they were given
)

shards = Table(
    "shards",
    metadata,
    _id(),
    _ref("instance_id", "instances"),
    Column("number", Integer, nullable=False),
    Column("name", String(64), nullable=False),
)

# A process: what is wanted (written by services and tasks) and what was seen (written by the agent).
nodes = Table(
    "nodes",
    metadata,
    _id(),
    _ref("instance_id", "instances"),
    _ref("shard_id", "shards"),
    _ref("host_id", "hosts"),
    Column("number", Integer, nullable=False),
    Column("kind", String(16), nullable=False),  # redis; later sentinel, proxy, memcached
    Column("role", String(8), nullable=False),  # wanted: master or replica; a restart keeps it
    Column("az_code", String(32), nullable=False),
    Column("ip", String(40), nullable=False),
    Column("port", Integer, nullable=False),
    Column("binary", Text, nullable=False),
    Column("run", String(8), nullable=False),  # wanted: up, down (process gone), gone (directory too)
    Column("incarnation", Integer, nullable=False),  # wanted: raised by one for each restart
    Column("keep_data", Boolean, nullable=False),  # wanted: whether the next restart keeps memory-only data
    Column("generation", Integer, nullable=False),  # wanted: raised by one with each new settings
    Column("settings", JSON, nullable=False),  # wanted: domain.nodes.NodeSettings
    Column("seen_state", String(16), nullable=False),  # domain.nodes.NodeState
    Column("seen_since", Integer, nullable=False),
    Column("seen_incarnation", Integer, nullable=False),
    Column("seen_generation", Integer, nullable=False),
    Column("seen_pid", Integer),
    Column("seen_error", Text),  # why the wanted state is not reached, for people
)

# Figures from INFO, apart from `nodes` so that writing them never wakes anybody.
node_figures = Table(
    "node_figures",
    metadata,
    Column("node_id", String(64), ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("seen_at", Integer, nullable=False),
    Column("used_memory", Integer, nullable=False),  # bytes
    Column("max_memory", Integer, nullable=False),  # bytes
    Column("keys", Integer, nullable=False),
    Column("clients", Integer, nullable=False),
    Column("hits", Integer, nullable=False),
    Column("misses", Integer, nullable=False),
    Column("gets", Integer, nullable=False),
    Column("sets", Integer, nullable=False),
    Column("commands_per_second", Integer, nullable=False),
    Column("input_kbps", Float, nullable=False),
    Column("output_kbps", Float, nullable=False),
    Column("cpu_seconds", Float, nullable=False),  # user and system, since the process began
    Column("link_up", Boolean, nullable=False),  # a replica's link to its master; True on a master
    Column("offset", Integer, nullable=False),  # replication offset
)

# --- Tasks ----------------------------------------------------------------------------------------

# What the API shows of background work. No foreign key to instances: records outlive the instance.
tasks = Table(
    "tasks",
    metadata,
    _id(),
    Column("project_id", String(64), nullable=False, index=True),
    Column("instance_id", String(64), nullable=False, index=True),
    Column("kind", String(32), nullable=False),  # which module of cacheyard.tasks
    Column("name", String(64), nullable=False),  # as the API spells it
    Column("status", String(16), nullable=False, index=True),  # EXECUTING, SUCCESS, FAILED
    Column("arguments", JSON, nullable=False),  # what the steps need to know
    Column("details", JSON, nullable=False),  # what the API shows
    Column("user_id", String(64), nullable=False),
    Column("user_name", String(64), nullable=False),
    Column("error", Text),
    Column("created_at", Integer, nullable=False, index=True),
    Column("updated_at", Integer, nullable=False),
)

task_steps = Table(
    "task_steps",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("status", String(16), nullable=False),  # WAITING, EXECUTING, FINISH, FAILED
    Column("begin_at", Integer),
    Column("end_at", Integer),
    Column("error", Text),
)

# --- Odds and ends ----------------------------------------------------------------------------------

facts = Table(  # the few things of which there is one: the region's slice, the first credentials
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", JSON, nullable=False),
)

Index("tasks_by_instance", tasks.c.instance_id, tasks.c.created_at)
Index("addresses_by_number", addresses.c.subnet_id, addresses.c.number)
Index("nodes_by_host", nodes.c.host_id, nodes.c.run)
