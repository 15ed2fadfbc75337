"""Chapter 5.2.9, and the bandwidth of shards and its policy: how much clients may send and get.

What is written here takes effect where clients are held to their bandwidth (`settings.bandwidth_caps`);
elsewhere it is what instances are shown with.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import iso, now_ms
from cacheyard.contract.types import (
    BandwidthInfo,
    EmptyAnswer,
    GroupBandwidthInfo,
    ShowBandwidthsResponse,
    ShowInstanceBandwidthAutoScalingPolicyResponse,
    UpdateBandwidthInfoRequest,
    UpdateBandwidthResponse,
    UpdateInstanceBandwidthAutoScalingPolicyRequestBody,
    UpdateInstanceBandwidthAutoScalingPolicyResponse,
)
from cacheyard.domain import bandwidth, flavors
from cacheyard.domain.bandwidth import RAISES, UNCHANGED, Bandwidth, Policy
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.identity import Principal
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import AT_REST, Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, House, busy
from cacheyard.store import instances, shards, tasks

_HOUR = 3_600_000  # ms


def update_instance_bandwidth(call: Call[None]) -> Begun[EmptyAnswer]:
    """5.2.9: twice the bandwidth for a week."""
    now, settings = now_ms(), call.house.settings
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        flavor, chosen = _flavor(instance), instance.bandwidth or UNCHANGED
        ids = _shard_ids(tx, instance)
        if instance.status is not Status.RUNNING or instance.task_id is not None:
            raise busy(instance)
        pause = round(settings.increase_pause_hours * _HOUR)
        if (why := bandwidth.raise_fault(chosen, flavor, ids, now=now, pause=pause)) is not None:
            raise errors.CannotWiden(why=why)
        lasts = round(settings.increase_hours * _HOUR)
        task_id = begin(
            tx,
            call.who,
            instance,
            bandwidth.raised(chosen, now=now, lasts=lasts),
            name="UpdateBandwidth",
        )
    call.house.start_task(task_id)
    return Begun(EmptyAnswer(), task_id, wait=True)


def show_bandwidths(call: Call[None]) -> ShowBandwidthsResponse:
    """[newer] The bandwidth of each shard."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        there = shards.of_instance(tx, instance.id)
    flavor, chosen = _flavor(instance), instance.bandwidth or UNCHANGED
    return ShowBandwidthsResponse(
        bandwidth=bandwidth.of_instance(chosen, flavor, [shard.id for shard in there]),
        max_bandwidth=bandwidth.ceiling(flavor),
        allow_modify=instance.status is Status.RUNNING and instance.task_id is None,
        group_bandwidths=[
            GroupBandwidthInfo(
                group_id=shard.id,
                updated_at=iso(_changed_at(instance, shard.id)),
                bandwidth=bandwidth.of_shard(chosen, flavor, shard.id),
                max_bandwidth=bandwidth.most(flavor),
                assured_bandwidth=bandwidth.assured(flavor),
            )
            for shard in there
        ],
    )


def update_bandwidth(call: Call[UpdateBandwidthInfoRequest]) -> Begun[UpdateBandwidthResponse]:
    """[newer] Give shards that bandwidth, for good."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        flavor = _flavor(instance)
        targets = _targets(call.body, flavor, _shard_ids(tx, instance))
        chosen = bandwidth.choose(instance.bandwidth or UNCHANGED, targets, now_ms())
        task_id = begin(tx, call.who, instance, chosen, name="UpdateShardBandwidth")
    call.house.start_task(task_id)
    return Begun(UpdateBandwidthResponse(job_id=task_id), task_id, wait=True)


def show_instance_bandwidth_auto_scaling_policy(
    call: Call[None],
) -> ShowInstanceBandwidthAutoScalingPolicyResponse:
    """[newer] The policy; an empty object when there is none."""
    with call.house.store.read() as tx:
        policy = (call.instance(tx).bandwidth or UNCHANGED).policy
    return ShowInstanceBandwidthAutoScalingPolicyResponse(**(_shown(policy) if policy is not None else {}))


def update_instance_bandwidth_auto_scaling_policy(
    call: Call[UpdateInstanceBandwidthAutoScalingPolicyRequestBody],
) -> UpdateInstanceBandwidthAutoScalingPolicyResponse:
    """[newer] Have shards grow by themselves; what is left out of the policy is as if it was never set."""
    body = call.body
    assert body.window_size is not None  # noqa: S101 - the contract requires these three
    assert body.bandwidth_usage_upper_threshold is not None  # noqa: S101
    assert body.scale_out_cooldown is not None  # noqa: S101
    policy = Policy(
        window_minutes=body.window_size,
        upper_percent=body.bandwidth_usage_upper_threshold,
        grow_pause=body.scale_out_cooldown,
        scale_in_enabled=bool(body.scale_in_enabled),
        lower_percent=body.bandwidth_usage_lower_threshold,
        shrink_pause=300 if body.scale_in_cooldown is None else body.scale_in_cooldown,
        since=now_ms(),
    )
    _set_policy(call, policy)
    return UpdateInstanceBandwidthAutoScalingPolicyResponse(**_shown(policy))


def delete_instance_bandwidth_auto_scaling_policy(call: Call[None]) -> None:
    """[newer] Shards keep what they have."""
    _set_policy(call, None)


def begin(
    tx: Connection,
    who: Principal,
    instance: Instance,
    new: Bandwidth,
    *,
    name: str,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Have the instance's bandwidth be that; the task's id. Raises `errors.Busy`."""
    task_id = work.begin(
        tx,
        who,
        instance,
        Change.SET_BANDWIDTH,
        name=name,
        status=Status.RUNNING,
        arguments={"undo": msgspec.to_builtins(instance.bandwidth or UNCHANGED)},
        details=details,
    )
    instances.change(tx, instance.id, bandwidth=msgspec.to_builtins(new))
    return task_id


def info(tx: Connection, house: House, instance: Instance, flavor: Flavor) -> BandwidthInfo:
    """What an instance is shown with. Times are epoch milliseconds, 0 for never."""
    now, chosen = now_ms(), instance.bandwidth or UNCHANGED
    last, pause = chosen.raised, round(house.settings.increase_pause_hours * _HOUR)
    again_at = last.end_at + pause if last is not None and last.count < RAISES else 0
    task = tasks.get(tx, instance.task_id) if instance.task_id is not None else None
    return BandwidthInfo(
        bandwidth=bandwidth.of_instance(chosen, flavor, _shard_ids(tx, instance)),
        assured_bandwidth=flavor.bandwidth,
        max_bandwidth_for_node=bandwidth.most(flavor),
        begin_time=last.begin_at if last is not None else 0,
        end_time=last.end_at if last is not None else 0,
        current_time=now,
        next_expand_time=again_at,
        expand_count=last.count if last is not None else 0,
        expand_effect_time=pause,
        expand_interval_time=max(0, again_at - now),
        max_expand_count=RAISES,
        task_running=task is not None and task.kind == Change.SET_BANDWIDTH,
    )


def _set_policy(call: Call[Any], policy: Policy | None) -> None:
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.status not in AT_REST:
            raise busy(instance)
        new = msgspec.structs.replace(instance.bandwidth or UNCHANGED, policy=policy)
        instances.change(tx, instance.id, bandwidth=msgspec.to_builtins(new))


def _targets(body: UpdateBandwidthInfoRequest, flavor: Flavor, ids: list[str]) -> dict[str, int]:
    """Mbit/s by shard."""
    found: dict[str, int] = {}
    for one in body.group_bandwidths or []:
        assert one.group_id is not None  # noqa: S101 - the contract requires both
        assert one.target_bandwidth is not None  # noqa: S101
        if one.group_id not in ids:
            raise errors.Invalid(parameter="group_id", why=f"the instance has no shard {one.group_id}")
        if one.group_id in found:
            raise errors.Invalid(parameter="group_id", why=f"{one.group_id} is named twice")
        if (why := bandwidth.target_fault(flavor, one.target_bandwidth)) is not None:
            raise errors.Invalid(parameter="target_bandwidth", why=why)
        found[one.group_id] = one.target_bandwidth
    if not found:
        raise errors.Invalid(parameter="group_bandwidths", why="it names no shard")
    return found


def _shown(policy: Policy) -> dict[str, Any]:
    return {
        "window_size": policy.window_minutes,
        "bandwidth_usage_upper_threshold": policy.upper_percent,
        "scale_out_cooldown": policy.grow_pause,
        "scale_in_enabled": policy.scale_in_enabled,
        "bandwidth_usage_lower_threshold": policy.lower_percent,
        "scale_in_cooldown": policy.shrink_pause,
    }


def _changed_at(instance: Instance, shard_id: str) -> int:
    """When the shard's bandwidth was changed last."""
    now = instance.bandwidth or UNCHANGED
    chosen = now.shards.get(shard_id)
    times = [instance.created_at, chosen.at if chosen is not None else 0]
    if now.raised is not None:
        times.append(now.raised.end_at if now.raised.over else now.raised.begin_at)
    return max(times)


def _shard_ids(tx: Connection, instance: Instance) -> list[str]:
    return [shard.id for shard in shards.of_instance(tx, instance.id)]


def _flavor(instance: Instance) -> Flavor:
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance got it
    return flavor
