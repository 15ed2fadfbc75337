"""Background work as the API shows it: a task and its steps."""

from enum import StrEnum
from typing import Any

import msgspec


class Change(StrEnum):
    """The kinds of background work on an instance; `cacheyard.tasks` has a module for each."""

    CREATE = "create"
    DELETE = "delete"
    RESIZE = "resize"
    RESTART = "restart"
    FLUSH = "flush"
    STOP = "stop"
    START = "start"
    RECONFIGURE = "reconfigure"  # new settings for all nodes: password, port, renamed commands
    PRIORITIZE = "prioritize"  # a replica gets another priority
    REMOVE_ADDRESS = "remove_address"  # a replica leaves the read-only name
    WHITELIST = "whitelist"
    PUBLIC = "public"
    ADD_REPLICAS = "add_replicas"
    REMOVE_REPLICAS = "remove_replicas"
    REPLACE = "replace"  # a new replica takes the place of one that does not come back
    ADD_SHARDS = "add_shards"
    REMOVE_SHARDS = "remove_shards"
    TO_PROXY = "to_proxy"  # the type is changed, see `cacheyard.tasks.retype`
    FROM_PROXY = "from_proxy"
    MIGRATE = "migrate"  # nodes move to other zones
    UPGRADE = "upgrade"  # a newer patch of the version
    SWITCHOVER = "switchover"  # masters hand over to replicas
    STOP_NODES = "stop_nodes"  # some of the instance's
    START_NODES = "start_nodes"
    SET_BANDWIDTH = "set_bandwidth"  # for good, for a time, or back
    SET_PARAMETERS = "set_parameters"
    CHECK_RESIZE = "check_resize"  # says whether a resize would be accepted; holds nothing


# The steps of each kind, in order: the names of functions in the kind's module, and what the API shows.
RUNBOOKS: dict[Change, tuple[str, ...]] = {
    Change.CREATE: ("start_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
    Change.DELETE: ("remove_nodes", "forget"),
    Change.RESIZE: ("check_fit", "configure_nodes", "verify_from_outside", "open_for_clients"),
    Change.RESTART: (
        "restart_replicas",
        "restart_masters",
        "form_topology",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.FLUSH: ("flush_masters", "open_for_clients"),
    Change.STOP: ("stop_replicas", "stop_masters", "close"),
    Change.START: ("start_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
    Change.RECONFIGURE: ("configure_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
    Change.PRIORITIZE: ("tell_server", "tell_sentinels", "open_for_clients"),
    Change.REMOVE_ADDRESS: ("outlive_caches", "open_for_clients"),
    Change.WHITELIST: ("close_addresses", "open_for_clients"),
    Change.PUBLIC: (
        "close_addresses",
        "configure_nodes",
        "settle_proxies",
        "verify_public_access",
        "open_for_clients",
    ),
    Change.ADD_REPLICAS: ("start_replicas", "join_shards", "verify_from_outside", "open_for_clients"),
    Change.REMOVE_REPLICAS: ("retire_replicas", "remove_nodes", "forget", "open_for_clients"),
    Change.REPLACE: (
        "start_replica",
        "join_shard",
        "remove_old_node",
        "forget_old_node",
        "open_for_clients",
    ),
    Change.ADD_SHARDS: (
        "check_fit",
        "start_shards",
        "join_shards",
        "raise_limits",
        "move_slots",
        "configure_nodes",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.REMOVE_SHARDS: (
        "check_fit",
        "raise_limits",
        "move_slots",
        "forget_shards",
        "remove_shards",
        "configure_nodes",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.TO_PROXY: (
        "check_fit",
        "keep_to_one_database",
        "copy_data",
        "change_type",
        "remove_old_nodes",
        "start_nodes",
        "join_shards",
        "move_slots",
        "configure_nodes",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.FROM_PROXY: (
        "check_fit",
        "gather_slots",
        "copy_data",
        "change_type",
        "remove_old_nodes",
        "start_nodes",
        "form_topology",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.MIGRATE: (
        "start_replicas",
        "join_shards",
        "take_places",
        "remove_old_nodes",
        "forget_old_nodes",
        "move_proxies",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.UPGRADE: (
        "upgrade_proxies",
        "upgrade_replicas",
        "hand_over_masters",
        "upgrade_others",
        "form_topology",
        "verify_from_outside",
        "open_for_clients",
    ),
    Change.SWITCHOVER: ("hand_over_masters", "verify_from_outside", "open_for_clients"),
    Change.STOP_NODES: ("hand_over_masters", "stop_nodes", "verify_from_outside", "open_for_clients"),
    Change.START_NODES: ("start_nodes", "form_topology", "verify_from_outside", "open_for_clients"),
    Change.SET_BANDWIDTH: ("set_caps", "open_for_clients"),
    Change.SET_PARAMETERS: ("check_keys", "configure_nodes", "configure_proxies", "open_for_clients"),
    Change.CHECK_RESIZE: ("check_request", "check_fit"),
}


def shown_step(name: str) -> str:
    """`start_nodes` as the API shows it: `Start nodes.`"""
    return name.replace("_", " ").capitalize() + "."


class TaskStatus(StrEnum):
    """Of a task, as listed."""

    WAITING = "WAITING"  # for the maintenance window; it holds nothing yet
    EXECUTING = "EXECUTING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class StepStatus(StrEnum):
    """Of a step, as its progress answer spells it."""

    WAITING = "WAITING"
    EXECUTING = "EXECUTING"
    FINISH = "FINISH"
    FAILED = "FAILED"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `tasks`."""

    id: str
    project_id: str
    instance_id: str
    kind: str
    name: str
    status: TaskStatus
    arguments: dict[str, Any]
    details: dict[str, Any]
    user_id: str
    user_name: str
    error: str | None
    created_at: int
    updated_at: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `task_steps`."""

    task_id: str
    number: int
    name: str
    status: StepStatus
    begin_at: int | None
    end_at: int | None
    error: str | None
