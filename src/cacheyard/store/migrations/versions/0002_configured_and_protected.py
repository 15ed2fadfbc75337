"""what instances are configured with and protected by"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OF_INSTANCES: tuple[sa.Column[Any], ...] = (
    sa.Column("parameters", sa.JSON(), nullable=False, server_default="{}"),
    sa.Column("accounts", sa.JSON(), nullable=False, server_default="[]"),
    sa.Column("ssl", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("whitelist", sa.JSON(), nullable=True),
    sa.Column("client_ip", sa.Boolean(), nullable=False, server_default=sa.true()),
    sa.Column("bandwidth", sa.JSON(), nullable=True),
    sa.Column("public_access", sa.JSON(), nullable=True),
    sa.Column("protected", sa.Boolean(), nullable=False, server_default=sa.false()),
)


def upgrade() -> None:
    for column in _OF_INSTANCES:
        op.add_column("instances", column)
    for name in ("nodes", "proxies"):
        op.add_column(name, sa.Column("seen_expires", sa.Integer(), nullable=True))
    _make_permissions()
    _make_parameters()
    _make_templates()


def _make_permissions() -> None:
    op.create_table(
        "enterprise_projects",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Integer(), nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Integer(), nullable=False),
    )
    op.create_table(
        "user_groups",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
    )
    op.create_table(
        "user_group_members",
        sa.Column("user_id", sa.String(64), sa.ForeignKey("users.id"), primary_key=True),
        sa.Column("group_id", sa.String(64), sa.ForeignKey("user_groups.id"), primary_key=True),
    )
    op.create_table(
        "user_group_grants",
        sa.Column("group_id", sa.String(64), sa.ForeignKey("user_groups.id"), primary_key=True),
        sa.Column("project_id", sa.String(64), sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("role", sa.String(64), primary_key=True),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("at", sa.Integer(), nullable=False, index=True),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64)),
        sa.Column("user_name", sa.String(64)),
        sa.Column("project_id", sa.String(64)),
        sa.Column("operation", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64)),
        sa.Column("resources", sa.JSON(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.String(32)),
        sa.Column("source", sa.String(64), nullable=False),
    )
    op.add_column("hosts", sa.Column("caps", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "seen_caps",
        sa.Column("host_id", sa.String(64), sa.ForeignKey("hosts.id"), primary_key=True),
        sa.Column(
            "instance_id",
            sa.String(64),
            sa.ForeignKey("instances.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
    )
    op.create_table(
        "traffic",
        sa.Column(
            "shard_id", sa.String(64), sa.ForeignKey("shards.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("minute", sa.Integer(), primary_key=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("looks", sa.Integer(), nullable=False),
    )
    op.add_column("hosts", sa.Column("filter_fault", sa.Text(), nullable=True))
    op.create_table(
        "fences",
        sa.Column("host_id", sa.String(64), sa.ForeignKey("hosts.id"), primary_key=True),
        sa.Column(
            "instance_id",
            sa.String(64),
            sa.ForeignKey("instances.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("boot", sa.String(64), nullable=False),
    )


def _make_parameters() -> None:
    op.add_column("nodes", sa.Column("seen_refused", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "node_drift",
        sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("seen_at", sa.Integer(), nullable=False),
        sa.Column("differs", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
    )
    op.create_table(
        "config_histories",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column(
            "instance_id",
            sa.String(64),
            sa.ForeignKey("instances.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("task_id", sa.String(64), nullable=False, index=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.Integer(), nullable=True),
        sa.Column("changes", sa.JSON(), nullable=False),
    )


def _make_templates() -> None:
    op.create_table(
        "templates",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project_id", sa.String(64), sa.ForeignKey("projects.id"), nullable=False, index=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("engine_version", sa.String(8), nullable=False),
        sa.Column("cache_mode", sa.String(16), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Integer(), nullable=False),
    )
    op.create_index("templates_by_name", "templates", ["project_id", "name"], unique=True)


def downgrade() -> None:
    op.drop_table("templates")
    for name in ("proxies", "nodes"):
        op.drop_column(name, "seen_expires")
    for name in ("config_histories", "node_drift"):
        op.drop_table(name)
    op.drop_column("nodes", "seen_refused")
    op.drop_table("traffic")
    op.drop_table("seen_caps")
    op.drop_column("hosts", "caps")
    op.drop_table("fences")
    op.drop_column("hosts", "filter_fault")
    groups = ("user_group_grants", "user_group_members", "user_groups")
    for name in ("audit", *groups, "policies", "enterprise_projects"):
        op.drop_table(name)
    for column in reversed(_OF_INSTANCES):
        op.drop_column("instances", column.name)
