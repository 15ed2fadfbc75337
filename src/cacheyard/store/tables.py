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
    Column("role", String(64), primary_key=True),  # a system role of domain.permissions, or a policy's name
)

enterprise_projects = Table(  # beside the default one, which is always there
    "enterprise_projects",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Integer, nullable=False),
)

policies = Table(  # custom ones; a name is never a system role's
    "policies",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("description", Text, nullable=False, default=""),
    Column("document", JSON, nullable=False),  # domain.permissions.Policy
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False),
)

user_groups = Table(
    "user_groups",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("description", Text, nullable=False, default=""),
    Column("created_at", Integer, nullable=False),
)

user_group_members = Table(
    "user_group_members",
    metadata,
    Column("user_id", String(64), ForeignKey("users.id"), primary_key=True),
    Column("group_id", String(64), ForeignKey("user_groups.id"), primary_key=True),
)

user_group_grants = Table(
    "user_group_grants",
    metadata,
    Column("group_id", String(64), ForeignKey("user_groups.id"), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("role", String(64), primary_key=True),  # as in role_assignments
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
    Column("cores", Integer, nullable=False),
    Column("engines", JSON, nullable=False),  # list of domain.engines.Engine
    Column("proxy", Text),  # the native proxy's program; NULL: there is none
    Column("proxy_version", String(32)),
    Column("caps", Boolean, nullable=False),  # whether its agent holds clients to their bandwidth
    Column("filter_fault", Text),  # why it cannot filter connections; NULL: it can
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
    # What its servers, proxies and addresses are configured with follows from these alone.
    Column("parameters", JSON, nullable=False),  # by name, what was chosen
    Column("accounts", JSON, nullable=False),  # list of domain.accounts.Account
    Column("ssl", Boolean, nullable=False),
    Column("whitelist", JSON(none_as_null=True)),  # domain.whitelist.Whitelist
    Column("client_ip", Boolean, nullable=False),  # whether it is told from where clients come
    Column("bandwidth", JSON(none_as_null=True)),  # domain.bandwidth.Bandwidth
    Column("public_access", JSON(none_as_null=True)),  # domain.public.PublicAccess
    Column("protected", Boolean, nullable=False),  # from deletion
)

# What users made of the service's templates. Instances have copies: a template may change, or go.
templates = Table(
    "templates",
    metadata,
    _id(),
    _ref("project_id", "projects"),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False),
    Column("engine_version", String(8), nullable=False),
    Column("cache_mode", String(16), nullable=False),
    Column("params", JSON, nullable=False),  # by name, what was chosen
    Column("created_at", Integer, nullable=False),
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
    # Whether Sentinel or the cluster may put another master in its place. Raised by one each
    # time the watch begins anew: Sentinels then forget what they knew of the shard.
    Column("watched", Boolean, nullable=False, default=False),
    Column("watch", Integer, nullable=False, default=0),
    Column("seen_watch", Integer, nullable=False, default=0),  # which watch is on, 0: none; the agent's
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
    # The place in the shard; a node that replaces another has its place, and both ids.
    Column("logical_id", String(64), nullable=False, index=True),
    Column("replication_id", String(64), nullable=False),
    Column("engine_id", String(40)),  # what Redis Cluster calls the node; NULL elsewhere
    Column("kind", String(16), nullable=False),  # redis; later memcached
    Column("role", String(8), nullable=False),  # wanted: master or replica; a restart keeps it
    Column("priority", Integer, nullable=False),  # smaller is promoted first, 0 never
    Column("in_dns", Boolean, nullable=False),  # whether the read-only name has it while it is a replica
    Column("added", Boolean, nullable=False),  # not there when the instance was made
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
    Column("seen_expires", Integer),  # until when the certificate is valid that it shows; NULL: it has none
    Column("seen_refused", Integer, nullable=False),  # the generation that the server refused last; 0: none
)

# Parameters that servers have other than they should, and that could not be put right. Apart from `nodes` so
# that writing it never wakes anybody.
node_drift = Table(
    "node_drift",
    metadata,
    Column("node_id", String(64), ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("seen_at", Integer, nullable=False),
    Column("differs", JSON, nullable=False),  # by name: what it has, and what it should have
    Column("error", Text),  # why it has not
)

# The changes of instances' parameters.
config_histories = Table(
    "config_histories",
    metadata,
    _id(),
    Column(
        "instance_id",
        String(64),
        ForeignKey("instances.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("task_id", String(64), nullable=False, index=True),
    Column("status", String(16), nullable=False),  # domain.histories.ConfigStatus
    Column("created_at", Integer, nullable=False),
    Column("ended_at", Integer),
    Column("changes", JSON, nullable=False),  # list of domain.histories.Changed
)

# The processes that clients of a proxied instance talk to, all at its one address. What each is configured
# with follows from the instance and its nodes (domain.proxies.wanted): nothing of it is wanted here.
proxies = Table(
    "proxies",
    metadata,
    _id(),
    _ref("instance_id", "instances"),
    _ref("host_id", "hosts"),
    Column("number", Integer, nullable=False),
    Column("logical_id", String(64), nullable=False, index=True),  # what metrics know it by
    Column("az_code", String(32), nullable=False),
    Column(
        "seen_state", String(16), nullable=False
    ),  # domain.nodes.NodeState; all that follows is the agent's
    Column("seen_since", Integer, nullable=False),
    Column("seen_digest", String(64), nullable=False),  # of the settings in force; empty: none
    Column("seen_version", String(32), nullable=False),  # of the program that runs; empty: not known
    Column("seen_pid", Integer),
    Column("seen_error", Text),
    Column("seen_expires", Integer),  # as of nodes
)

# What agents made of whitelists; what is wanted follows from the instances and their nodes (store.fences).
fences = Table(
    "fences",
    metadata,
    Column("host_id", String(64), ForeignKey("hosts.id"), primary_key=True),
    Column("instance_id", String(64), ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), nullable=False),  # of what was tried last; empty: nothing is to be in force
    Column("error", Text),  # why that is not in force; NULL: it is
    Column("boot", String(64), nullable=False),  # of the machine when one came in force; empty: never
)

# What proxies said of themselves, apart from `proxies` so that writing it never wakes anybody.
proxy_figures = Table(
    "proxy_figures",
    metadata,
    Column("proxy_id", String(64), ForeignKey("proxies.id", ondelete="CASCADE"), primary_key=True),
    Column("seen_at", Integer, nullable=False),
    Column("clients", Integer, nullable=False),
    Column("commands", Integer, nullable=False),  # since the process began
    Column("commands_per_second", Integer, nullable=False),
    Column("input_bytes", Integer, nullable=False),  # from clients, since the process began
    Column("output_bytes", Integer, nullable=False),
    Column("input_kbps", Float, nullable=False),
    Column("output_kbps", Float, nullable=False),
    Column("cpu_seconds", Float, nullable=False),  # user and system, since the process began
    Column("memory", Integer, nullable=False),  # bytes
)

# Figures from INFO, apart from `nodes` so that writing them never wakes anybody.
node_figures = Table(
    "node_figures",
    metadata,
    Column("node_id", String(64), ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("seen_at", Integer, nullable=False),
    Column("role", String(8), nullable=False),  # in fact, whatever `nodes` wants
    Column("used_memory", Integer, nullable=False),  # bytes
    Column("max_memory", Integer, nullable=False),  # bytes
    Column("keys", Integer, nullable=False),
    Column("databases", Text, nullable=False),  # those that have keys: `0,5`
    Column("expires", Integer, nullable=False),  # keys with a time to live
    Column("avg_ttl", Integer, nullable=False),  # milliseconds
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

# Which caps (domain.caps) are in force, as the agent saw. What is wanted follows from instances and nodes.
seen_caps = Table(
    "seen_caps",
    metadata,
    Column("host_id", String(64), ForeignKey("hosts.id"), primary_key=True),
    Column("instance_id", String(64), ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), nullable=False),  # empty: not known
    Column("error", Text),  # why they are not as wanted, for people
)

# What shards that have a bandwidth policy were used for in each of the last minutes: kbit/s, in the busier
# direction, as a sum of looks.
traffic = Table(
    "traffic",
    metadata,
    Column("shard_id", String(64), ForeignKey("shards.id", ondelete="CASCADE"), primary_key=True),
    Column("minute", Integer, primary_key=True),  # since the epoch
    Column("total", Integer, nullable=False),
    Column("looks", Integer, nullable=False),
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

# --- Audit ----------------------------------------------------------------------------------------

# Who did what. No foreign keys: it outlives users, projects and instances. Never a secret in it.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Integer, nullable=False, index=True),
    Column("request_id", String(64), nullable=False),
    Column("user_id", String(64)),  # NULL here and below: nobody knows
    Column("user_name", String(64)),
    Column("project_id", String(64)),
    Column("operation", String(64), nullable=False),
    Column("action", String(64)),  # the permission that it takes
    Column("resources", JSON, nullable=False),  # ids that the request was about
    Column("status", Integer, nullable=False),
    Column("error_code", String(32)),
    Column("source", String(64), nullable=False),  # the address that it came from
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
Index("templates_by_name", templates.c.project_id, templates.c.name, unique=True)
Index("nodes_by_host", nodes.c.host_id, nodes.c.run)
