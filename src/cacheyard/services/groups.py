"""Chapters 5.3.3 to 5.3.6 and 5.1.8: shards of instances and their nodes, as the rows have them.

The API calls a shard a group, and the place of a node in it a replication. Proxies are nodes of no shard.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    BatchShowNodesInformationResponse,
    InstanceGroupListInfo,
    InstanceNodesInfoResp,
    InstanceReplicationDimensionsInfo,
    InstanceReplicationListInfo,
    ListGroupReplicationInfoResponse,
    NodesInfoResp,
    ReplicationInfo,
    ShowNodesInformationResponse,
    ValidateDeletableReplicaResponse,
)
from cacheyard.domain import flavors
from cacheyard.domain.instances import Instance, clustered, proxied
from cacheyard.domain.network import zones as zones_of
from cacheyard.domain.nodes import Node, NodeState, Role, Shard
from cacheyard.domain.proxies import Proxy
from cacheyard.domain.shape import (
    by_shard,
    dimension,
    label,
    proxy_label,
    removable,
    shown_proxy_state,
    shown_state,
)
from cacheyard.domain.statuses import Status
from cacheyard.services.call import Call
from cacheyard.store import instances, nodes, proxies, shards

PAGE = 10  # instances a page has when no limit is given
INSTANCE_DIMENSION = "dcs_instance_id"
NODE_DIMENSION = "dcs_cluster_redis_node"
PROXY_DIMENSION = "dcs_cluster_proxy2_node"
PROXY = "proxy"  # the role of a node that is one
ROLES = {Role.MASTER: "master", Role.REPLICA: "slave"}


class Group(msgspec.Struct, frozen=True):
    """A shard with its nodes, the master first."""

    shard: Shard
    nodes: list[Node]


def groups_of(tx: Connection, found: Sequence[Instance]) -> dict[str, list[Group]]:
    """The shards of instances in their order, by instance id."""
    ids = [instance.id for instance in found]
    there = {shard[0].shard_id: shard for shard in by_shard(nodes.of_instances(tx, ids))}
    groups: dict[str, list[Group]] = {instance_id: [] for instance_id in ids}
    for shard in shards.of_instances(tx, ids):
        groups[shard.instance_id].append(Group(shard, there.get(shard.id, [])))
    return groups


def proxies_of(tx: Connection, found: Sequence[Instance]) -> dict[str, list[Proxy]]:
    """The proxies of instances, by instance id."""
    before: dict[str, list[Proxy]] = {instance.id: [] for instance in found}
    if behind := [instance.id for instance in found if proxied(instance)]:
        for proxy in proxies.of_instances(tx, behind):
            before[proxy.instance_id].append(proxy)
    return before


def group_of(tx: Connection, call: Call[Any], instance: Instance) -> Group:
    """The shard that the path names."""
    group_id = str(call.parameters["group_id"])
    for group in groups_of(tx, [instance])[instance.id]:
        if group.shard.id == group_id:
            return group
    raise errors.NoSuchShard(group_id=group_id)


def node_of(tx: Connection, call: Call[Any], group: Group) -> Node:
    """The node that the path names, which must be of that shard."""
    node_id = str(call.parameters["node_id"])
    for node in group.nodes:
        if node.id == node_id:
            return node
    refuse_proxies(tx, group.shard.instance_id, [node_id], parameter="node_id")
    raise errors.BadNode(parameter="node_id", why=f"{group.shard.name} has no node {node_id}")


def refuse_proxies(tx: Connection, instance_id: str, node_ids: Collection[str], *, parameter: str) -> None:
    """Refuse what can be done to servers alone."""
    for proxy in proxies.of_instance(tx, instance_id):
        if proxy.id in node_ids:
            raise errors.NotOnThisNode(parameter=parameter, why=f"{proxy.id} is a proxy")


# --- what is there ---------------------------------------------------------------------------------


def list_group_replication_info(call: Call[None]) -> ListGroupReplicationInfoResponse:
    """5.3.3: the shards, and who is in them."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        groups = groups_of(tx, [instance])[instance.id]
    return ListGroupReplicationInfoResponse(
        group_list=[
            InstanceGroupListInfo(
                group_id=group.shard.id,
                group_name=group.shard.name,
                replication_list=[_replication(node) for node in group.nodes],
            )
            for group in groups
        ],
        group_count=len(groups),
    )


def show_replication_states(call: Call[None]) -> list[InstanceReplicationListInfo]:
    """5.3.6: who is in one shard."""
    with call.house.store.read() as tx:
        group = group_of(tx, call, call.instance(tx))
    return [_replication(node) for node in group.nodes]


def batch_show_nodes_information(call: Call[None]) -> BatchShowNodesInformationResponse:
    """5.3.4: the nodes of all the project's instances, newest instance first, a page of instances."""
    given = call.parameters
    wanted = instances.Wanted(without=(Status.CREATEFAILED,))
    with call.house.store.read() as tx:
        total = instances.count(tx, call.project_id, wanted)
        page = instances.find(
            tx, call.project_id, wanted, offset=given.get("offset") or 0, limit=given.get("limit") or PAGE
        )
        groups, before = groups_of(tx, page), proxies_of(tx, page)
    return BatchShowNodesInformationResponse(
        count=total,
        instances=[
            InstanceNodesInfoResp(instance_id=instance.id, node_count=len(shown), nodes=shown)
            for instance in page
            for shown in [_nodes(instance, groups[instance.id], before[instance.id])]
        ],
    )


def show_nodes_information(call: Call[None]) -> ShowNodesInformationResponse:
    """5.3.5: the nodes of one instance."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        groups = groups_of(tx, [instance])[instance.id]
        before = proxies_of(tx, [instance])[instance.id]
    shown = _nodes(instance, groups, before)
    return ShowNodesInformationResponse(instance_id=instance.id, total=len(shown), nodes=shown)


def validate_deletable_replica(call: Call[None]) -> ValidateDeletableReplicaResponse:
    """5.1.8: the replicas of a Redis Cluster that may go, one of each shard, and the zones they are in."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        groups = groups_of(tx, [instance])[instance.id]
    if not clustered(instance) or proxied(instance):
        raise errors.OnlyRedisCluster(cache_mode=instance.cache_mode)
    may_go = removable([group.nodes for group in groups], instance.ip) if _can_shrink(instance) else []
    names = {group.shard.id: group.shard.name for group in groups}
    zones = {zone.code: zone.id for zone in zones_of(call.house.region)}
    return ValidateDeletableReplicaResponse(
        check_result=bool(may_go),
        available_zone=",".join(dict.fromkeys(zones[node.az_code] for node in may_go)) or None,
        replication_list=[
            ReplicationInfo(
                replication_id=node.replication_id,
                node_id=node.id,
                replication_ip=f"{node.ip}:{node.port}",
                group_id=node.shard_id,
                group_name=names[node.shard_id],
                available_zone=zones[node.az_code],
            )
            for node in may_go
        ],
    )


def _can_shrink(instance: Instance) -> bool:
    """Whether there is a flavor like the instance's with a node a shard less."""
    now = flavors.find(instance.spec_code)
    if now is None or now.nodes_per_shard == 1:
        return False
    return flavors.alike(now, nodes_per_shard=now.nodes_per_shard - 1) is not None


# --- nodes as the API shows them -------------------------------------------------------------------


def state_of(instance: Instance, group: Group, node: Node) -> str:
    """A node's state as clients know it."""
    return shown_state(node, group.nodes, growing=instance.status is Status.EXTENDING)


def dimensions_of(node: Node | Proxy) -> list[InstanceReplicationDimensionsInfo]:
    """What metrics know the node by."""
    name = NODE_DIMENSION if isinstance(node, Node) else PROXY_DIMENSION
    return [
        InstanceReplicationDimensionsInfo(name=INSTANCE_DIMENSION, value=node.instance_id),
        InstanceReplicationDimensionsInfo(name=name, value=dimension(node)),
    ]


def _replication(node: Node) -> InstanceReplicationListInfo:
    active = node.seen_state is NodeState.ACTIVE
    return InstanceReplicationListInfo(
        replication_role=ROLES[node.role],
        replication_ip=node.ip,
        is_replication=node.added,
        replication_id=node.replication_id,
        node_id=node.id,
        status=NodeState.ACTIVE if active else NodeState.INACTIVE,
        az_code=node.az_code,
        dimensions=dimensions_of(node),
    )


def _nodes(instance: Instance, groups: Iterable[Group], before: Iterable[Proxy]) -> list[NodesInfoResp]:
    """None while the instance is being created: clients would use them."""
    if instance.status is Status.CREATING:
        return []
    servers = [_node(instance, group, node) for group in groups for node in group.nodes]
    return servers + [_proxy(instance, proxy) for proxy in before]


def _node(instance: Instance, group: Group, node: Node) -> NodesInfoResp:
    return NodesInfoResp(
        logical_node_id=dimension(node),
        name=label(node),
        status=state_of(instance, group, node),
        az_code=node.az_code,
        node_role="redis-server",
        node_type=ROLES[node.role],
        node_ip=node.ip,
        node_port=str(node.port),
        node_id=node.id,
        priority_weight=node.priority,
        is_access=not proxied(instance),
        group_id=group.shard.id,
        group_name=group.shard.name,
        is_remove_ip=not node.in_dns,
        replication_id=node.replication_id,
        dimensions=dimensions_of(node),
    )


def _proxy(instance: Instance, proxy: Proxy) -> NodesInfoResp:
    """It is in no shard, and nobody promotes it."""
    return NodesInfoResp(
        logical_node_id=dimension(proxy),
        name=proxy_label(proxy, instance.ip),
        status=shown_proxy_state(proxy),
        az_code=proxy.az_code,
        node_role="redis-proxy",
        node_type=PROXY,
        node_ip=instance.ip,
        node_port=str(instance.port),
        node_id=proxy.id,
        is_access=True,
        dimensions=dimensions_of(proxy),
    )
