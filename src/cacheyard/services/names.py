"""Chapter 5.3.2, and the names of instances in the region's DNS zone.

While no name server runs, instances are shown without names: a name that leads nowhere would be a lie.
"""

from collections.abc import Mapping
from typing import Any

from cacheyard import errors
from cacheyard.contract.types import DeleteIpFromDomainNameResponse, DomainNameInfo
from cacheyard.domain.instances import Instance
from cacheyard.domain.names import TTL, has_readonly_name, host_of, readonly_host_of, zone_name
from cacheyard.domain.nodes import Role
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, House
from cacheyard.services.groups import group_of, node_of
from cacheyard.store import nodes


def names_of(house: House, instance: Instance) -> Mapping[str, str | None]:
    """The properties of an instance that are its names, in both spellings."""
    if not house.settings.dns_port:
        return {}
    zone = zone_name(house.settings.dns_zone, house.region)
    name = f"{host_of(instance.id)}.{zone}"
    readonly = f"{readonly_host_of(instance.id)}.{zone}" if has_readonly_name(instance.cache_mode) else None
    return {
        "domain_name": name,
        "domainName": name,
        "readonly_domain_name": readonly,
        "readonlyDomainName": readonly,
    }


def about_names(house: House) -> DomainNameInfo | None:
    """What there is to know about the names of all instances: there is one zone, and it never changed."""
    if not house.settings.dns_port:
        return None
    return DomainNameInfo(
        support_public_resolve=False,
        is_latest_rules=True,
        zone_name=zone_name(house.settings.dns_zone, house.region),
        history_domain_names=None,
    )


def delete_ip_from_domain_name(call: Call[Any]) -> Begun[DeleteIpFromDomainNameResponse]:
    """5.3.2: the read-only name has a replica no more. The task ends when resolvers have forgotten it too.

    It is remembered without a name server as well, so that one that comes later knows it.
    """
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if not has_readonly_name(instance.cache_mode):
            raise errors.NoReadOnlyName(cache_mode=instance.cache_mode)
        group = group_of(tx, call, instance)
        node = node_of(tx, call, group)
        if node.role is Role.MASTER:
            raise errors.NotOnThisNode(
                parameter="node_id", why="it is the master, the read-only name has replicas alone"
            )
        if not node.in_dns:
            raise errors.NotOnThisNode(parameter="node_id", why="the read-only name has it no more")
        others = [one for one in group.nodes if one.role is Role.REPLICA and one.id != node.id]
        if not any(one.in_dns for one in others):
            raise errors.LastAddress(parameter="node_id")
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.REMOVE_ADDRESS,
            name="RemoveIpFromDns",
            status=Status.RUNNING,
            arguments={"seconds": TTL if call.house.settings.dns_port else 0},
            details={"replica_ip": node.ip, "replica_az": node.az_code, "group_name": group.shard.name},
        )
        nodes.want(tx, node, in_dns=False)
    call.house.start_task(task_id)
    return Begun(DeleteIpFromDomainNameResponse(job_id=task_id, jobId=task_id), task_id)
