"""A replica that does not come back: a new one takes its place. No request asks for it, the clock does.

A crashed server is started again by its agent within a moment. What is replaced is a node that stays away
although it should run: its data cannot be read, its address is taken, its program is gone.
"""

import time

import structlog
from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain import flavors
from cacheyard.domain.identity import Principal
from cacheyard.domain.nodes import Node, NodeState, Role
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, TaskStatus
from cacheyard.errors import Busy, Refused
from cacheyard.services import work
from cacheyard.services.call import House
from cacheyard.services.successor import successor
from cacheyard.store import instances, nodes, shards, tasks

log = structlog.get_logger()

LOOK_SECONDS = 5.0  # how often to look, if `replace_seconds` is not short
AGAIN_SECONDS = 300.0  # after a replacement that failed, or that did not last, until the next one
SILENT_SECONDS = 10.0  # an agent that was not heard of for so long does not say how its nodes are

SYSTEM = Principal(user_id="", user_name="system", domain_id="", domain_name="")


class Caretaker:
    """`look` every `seconds`. It remembers how long each replica has been away while it looked: so nobody is
    late because the service was not there, or the agent, or because there is much to load."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._patience = house.settings.replace_seconds
        self._silent = max(SILENT_SECONDS, 5 * house.settings.observe_seconds)
        self._looked = time.monotonic()
        self._away: dict[tuple[str, int], float] = {}  # node and since when it is as it is, to seconds
        self._refused: dict[str, float] = {}  # instances that cannot have a new node, and since when

    @property
    def seconds(self) -> float:
        """How often to look."""
        return min(LOOK_SECONDS, self._patience / 4)

    def look(self, at: float | None = None) -> None:
        """Begin to replace the replicas that have been away for too long, by time.monotonic() or `at`."""
        now = time.monotonic() if at is None else at
        with self._house.store.read() as tx:
            away = nodes.replicas_away(tx, heard_after=now_ms() - round(self._silent * 1000))
        passed, self._looked = min(now - self._looked, 2 * self.seconds), now
        before, self._away = self._away, {}
        self._refused = {one: at for one, at in self._refused.items() if now - at < AGAIN_SECONDS}
        for one in away:
            key = (one.node_id, one.since)
            more = 0.0 if one.loading else passed
            self._away[key] = before[key] + more if key in before else 0.0
            is_due = self._away[key] >= self._patience and not one.loading
            if is_due and one.instance_id not in self._refused:
                self._replace(one, now)

    def _replace(self, away: nodes.Away, now: float) -> None:
        try:
            with self._house.store.write() as tx:
                task_id = begin(tx, away.node_id)
        except Busy:
            return
        except Refused as refused:
            self._refused[away.instance_id] = now
            log.warning("replica cannot be replaced", node=away.node_id, why=str(refused))
            return
        if task_id is not None:
            log.warning("replica is replaced", node=away.node_id, task=task_id)
            self._house.start_task(task_id)


def begin(tx: Connection, node_id: str) -> str | None:
    """Write the new node and the task that puts it in the place of the one that is away; its id. None when
    that is not due. Raises `Refused` when it cannot be."""
    found = nodes.by_ids(tx, [node_id])
    instance = instances.get(tx, found[0].instance_id) if found else None
    if instance is None or found[0].role is not Role.REPLICA or _lately(tx, found[0]):
        return None
    old = found[0]
    shard = nodes.of_shard(tx, old.shard_id)
    master = next(node for node in shard if node.role is Role.MASTER)
    if old.seen_state is NodeState.ACTIVE or master.seen_state is not NodeState.ACTIVE:
        return None  # there would be nobody to copy from
    flavor = flavors.find(instance.spec_code)
    if flavor is None:
        return None
    number = 1 + max(node.number for node in shard)
    new = successor(tx, instance, flavor, old, master, zone=old.az_code, number=number, binary=master.binary)
    if new is None:
        return None
    name = next(one.name for one in shards.of_instance(tx, instance.id) if one.id == old.shard_id)
    task_id = work.begin(
        tx,
        SYSTEM,
        instance,
        Change.REPLACE,
        name="ReplaceReplica",
        status=Status.RUNNING,
        arguments={
            "node_ids": [new.id],
            "old_id": old.id,
            "place": old.replication_id,
            "spec_code": instance.spec_code,
            "priority": old.priority,
            "in_dns": old.in_dns,
            "undo": {},
        },
        details={"source_ip": old.ip, "target_ip": new.ip, "replica_az": new.az_code, "group_name": name},
    )
    nodes.add(tx, [new])
    return task_id


def _lately(tx: Connection, node: Node) -> bool:
    """Whether a replacement in this instance failed a short while ago, or one in this place did not last."""
    last = tasks.latest(tx, node.instance_id, Change.REPLACE)
    if last is None or now_ms() - last.updated_at > AGAIN_SECONDS * 1000:
        return False
    return last.status is not TaskStatus.SUCCESS or last.arguments["place"] == node.replication_id
