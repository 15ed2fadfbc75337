"""Chapters 5.11.4 and 5.11.5: from where an instance may be reached. It is in force before the answer."""

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    ModifyIpWhitelistBody,
    ShowIpWhitelistResponse,
    UpdateIpWhitelistAsyncResponse,
    WhitelistShowIpWhitelist,
)
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.domain.whitelist import Group, Whitelist, fault, fence
from cacheyard.services import work
from cacheyard.services.call import Begun, Call
from cacheyard.store import hosts, instances, nodes, proxies


def show_ip_whitelist(call: Call[None]) -> ShowIpWhitelistResponse:
    """5.11.5: the groups, and whether they are in force."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
    whitelist = instance.whitelist or Whitelist(enabled=False, groups=())
    return ShowIpWhitelistResponse(
        instance_id=instance.id,
        enable_whitelist=whitelist.enabled,
        whitelist=[
            WhitelistShowIpWhitelist(group_name=group.name, ip_list=list(group.ips))
            for group in whitelist.groups
        ],
    )


def update_ip_whitelist(call: Call[ModifyIpWhitelistBody]) -> Begun[None]:
    """5.11.4: replace the whole list, or switch it. Without `whitelist` the groups stay."""
    return Begun(None, _begin(call), wait=True)


def update_ip_whitelist_async(call: Call[ModifyIpWhitelistBody]) -> Begun[UpdateIpWhitelistAsyncResponse]:
    """The same as a job."""
    task_id = _begin(call)
    return Begun(UpdateIpWhitelistAsyncResponse(job_id=task_id), task_id)


def _begin(call: Call[ModifyIpWhitelistBody]) -> str:
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        now = instance.whitelist
        wanted = Whitelist(enabled=bool(call.body.enable_whitelist), groups=_groups(call.body, now))
        if fence(instance.id, wanted, ()) is not None:
            check_filter(tx, instance)
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.WHITELIST,
            name="AddWhitelist",
            status=Status.RUNNING,
            arguments={"undo": {"whitelist": msgspec.to_builtins(now)}},
        )
        instances.change(tx, instance.id, whitelist=msgspec.to_builtins(wanted))
    call.house.start_task(task_id)
    return task_id


def check_filter(tx: Connection, instance: Instance) -> None:
    """Refuse what the instance's machines cannot hold to."""
    mine = {node.host_id for node in nodes.of_instance(tx, instance.id)}
    mine |= {proxy.host_id for proxy in proxies.of_instance(tx, instance.id)}
    for host in hosts.every(tx):
        if host.id in mine and host.filter_fault is not None:
            raise errors.CannotFilter(why=host.filter_fault)


def _groups(body: ModifyIpWhitelistBody, now: Whitelist | None) -> tuple[Group, ...]:
    if body.whitelist is None:
        return now.groups if now is not None else ()
    groups = tuple(Group(str(one.group_name), tuple(one.ip_list or ())) for one in body.whitelist)
    if (found := fault(groups)) is not None:
        parameter, why = found
        raise errors.Invalid(parameter=parameter, why=why)
    return groups
