"""What becomes of bandwidth without a request: increases end, and policies give shards more.

Chores of the clock. What they go by is in rows: a service that was away does late what was due.
"""

from collections.abc import Callable

import structlog
from sqlalchemy import Connection

from cacheyard.clock import now_ms
from cacheyard.domain import bandwidth, flavors
from cacheyard.domain.bandwidth import MINUTE, Bandwidth
from cacheyard.domain.identity import Principal
from cacheyard.domain.instances import Instance, proxied
from cacheyard.domain.nodes import Figures, Node, Role
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change, TaskStatus
from cacheyard.errors import Busy
from cacheyard.services.bandwidth import begin
from cacheyard.services.call import House
from cacheyard.store import caps, instances, nodes, proxies, shards, tasks

log = structlog.get_logger()

LOOK_SECONDS = 5.0  # how often policies look at traffic
OLD_MS = 15_000  # figures that are older say nothing of now
AGAIN_MS = 300_000  # after a change that could not take effect, until the next
KEEP_MINUTES = 31  # the longest window and the minute that is under way
_Change = Callable[[Connection, Instance, Bandwidth], Bandwidth | None]

SYSTEM = Principal(user_id="", user_name="system", domain_id="", domain_name="")


def end_increases(house: House, now: int | None = None) -> None:
    """End the temporary increases that have lasted as long as they may (at `now`, epoch milliseconds). An
    instance that is busy, or does not run, is looked at again."""
    at = now_ms() if now is None else now
    with house.store.read() as tx:
        due = [one.id for one, chosen in _free(tx) if bandwidth.is_due(chosen, at)]
    for instance_id in due:
        _begin(house, instance_id, "RestoreBandwidth", lambda _tx, _one, chosen: _lowered(chosen, at))


def follow_policies(house: House, now: int | None = None) -> None:
    """Note what shards are used for, and give those more that were used for too much in their window."""
    at = now_ms() if now is None else now
    with house.store.read() as tx:
        watched = [one for one, chosen in _free(tx) if chosen.policy is not None]
        looks = {shard: mbit for one in watched for shard, mbit in _traffic(tx, one, at).items()}
    if not watched:
        return
    with house.store.note() as tx:
        caps.add_traffic(tx, at // MINUTE, looks, KEEP_MINUTES)
    with house.store.read() as tx:
        due = [one.id for one in watched if _grown(tx, one, at) is not None]
    for instance_id in due:
        _begin(house, instance_id, "AutoScaleBandwidth", lambda tx, one, _chosen: _grown(tx, one, at))


def _free(tx: Connection) -> list[tuple[Instance, Bandwidth]]:
    """Instances whose bandwidth was ever changed, or has a policy, and which are free for a task."""
    return [
        (one, one.bandwidth)
        for one in instances.with_bandwidth(tx)
        if one.bandwidth is not None and one.status is Status.RUNNING and one.task_id is None
    ]


def _begin(house: House, instance_id: str, name: str, change: _Change) -> None:
    """Begin what is due, if it still is."""
    try:
        with house.store.write() as tx:
            instance = instances.get(tx, instance_id)
            if instance is None or instance.bandwidth is None or _failed_lately(tx, instance_id):
                return
            new = change(tx, instance, instance.bandwidth)
            if new is None:
                return
            task_id = begin(tx, SYSTEM, instance, new, name=name)
    except Busy:
        return
    log.info("bandwidth changes", instance=instance_id, why=name, task=task_id)
    house.start_task(task_id)


def _failed_lately(tx: Connection, instance_id: str) -> bool:
    last = tasks.latest(tx, instance_id, Change.SET_BANDWIDTH)
    return last is not None and last.status is TaskStatus.FAILED and now_ms() - last.updated_at < AGAIN_MS


def _lowered(chosen: Bandwidth, at: int) -> Bandwidth | None:
    return bandwidth.lowered(chosen) if bandwidth.is_due(chosen, at) else None


def _grown(tx: Connection, instance: Instance, at: int) -> Bandwidth | None:
    """What the policy makes of the traffic in its window; None: all stays as it is."""
    chosen, flavor = instance.bandwidth, flavors.find(instance.spec_code)
    if chosen is None or chosen.policy is None or flavor is None:
        return None
    span = bandwidth.window(chosen.policy, at)
    if span is None:
        return None
    ids = [shard.id for shard in shards.of_instance(tx, instance.id)]
    higher = bandwidth.growth(chosen, flavor, caps.traffic_of(tx, ids, *span), now=at)
    return bandwidth.choose(chosen, higher, at) if higher else None


def _traffic(tx: Connection, instance: Instance, at: int) -> dict[str, float]:
    """Mbit/s that each shard's clients send, or get, whichever is more. All shards behind proxies are used
    for the same part of what they have, as only together they have a limit."""
    there = nodes.of_instance(tx, instance.id)
    if proxied(instance):
        flavor = flavors.find(instance.spec_code)
        said = [one for one in proxies.figures_of(tx, instance.id).values() if at - one.seen_at < OLD_MS]
        if flavor is None or not said:
            return {}
        chosen, ids = instance.bandwidth or bandwidth.UNCHANGED, sorted({node.shard_id for node in there})
        total = max(sum(one.input_kbps for one in said), sum(one.output_kbps for one in said))
        part = _mbit(total) / bandwidth.of_instance(chosen, flavor, ids)
        return {shard_id: part * bandwidth.of_shard(chosen, flavor, shard_id) for shard_id in ids}
    figures = nodes.figures_of(tx, instance.id)
    found = {}
    for shard_id in {node.shard_id for node in there}:
        of_shard = [node for node in there if node.shard_id == shard_id]
        if (busier := _busier(of_shard, figures, at)) is not None:
            found[shard_id] = _mbit(busier)
    return found


def _busier(shard: list[Node], figures: dict[str, Figures], at: int) -> float | None:
    """KB/s of the shard's clients. What a replica is sent by its master is none of theirs."""
    said = [figures[node.id] for node in shard if node.id in figures]
    said = [one for one in said if at - one.seen_at < OLD_MS]
    if not said:
        return None
    sent = sum(one.input_kbps for one in said if one.role is Role.MASTER)
    copied = sum(one.input_kbps for one in said if one.role is Role.REPLICA)
    return max(sent, sum(one.output_kbps for one in said) - copied)


def _mbit(kilobytes: float) -> float:
    """Of what servers and proxies say, which is in KB."""
    return kilobytes * 1024 * 8 / 1e6
