"""Chapters 5.15.4 and 5.15.5: what can be monitored, by dimension: instances, nodes of clusters, and proxies
with the nodes behind them."""

from cacheyard.contract.types import (
    ClusterRedisNodeMonitoredObject,
    DimChild,
    InstancesMonitoredObject,
    ListMonitoredObjectsOfInstanceResponse,
    ListMonitoredObjectsResponse,
    Proxy2NodeMonitoredObject,
)
from cacheyard.domain.instances import Instance, clustered, proxied
from cacheyard.domain.nodes import Node, NodeState, Run
from cacheyard.domain.proxies import Proxy
from cacheyard.domain.shape import dimension, label, proxy_label
from cacheyard.domain.statuses import Status
from cacheyard.services.call import Call
from cacheyard.services.groups import (
    INSTANCE_DIMENSION,
    NODE_DIMENSION,
    PROXY_DIMENSION,
    groups_of,
    proxies_of,
)
from cacheyard.services.views import PAGE, statuses_of
from cacheyard.store import instances

ENGINES = {INSTANCE_DIMENSION: "Redis", "dcs_memcached_instance_id": "Memcached"}
_NODES = DimChild(dim_name=NODE_DIMENSION, dim_route=f"{INSTANCE_DIMENSION},{NODE_DIMENSION}")
_PROXIES = DimChild(dim_name=PROXY_DIMENSION, dim_route=f"{INSTANCE_DIMENSION},{PROXY_DIMENSION}")
_STATUSES = {
    NodeState.CREATING: Status.CREATING,
    NodeState.ACTIVE: Status.RUNNING,
    NodeState.INACTIVE: Status.ERROR,
    NodeState.STOPPED: Status.CLOSED,
}


def list_monitored_objects(call: Call[None]) -> ListMonitoredObjectsResponse:
    """5.15.5: the instances of the dimension's engine, newest first, a page of them."""
    given = call.parameters
    name = str(given["dim_name"])
    wanted = instances.Wanted(engine=ENGINES[name], without=(Status.CREATEFAILED,))
    with call.house.store.read() as tx:
        total = instances.count(tx, call.project_id, wanted)
        page = instances.find(
            tx, call.project_id, wanted, offset=given.get("offset") or 0, limit=given.get("limit") or PAGE
        )
        statuses = statuses_of(tx, page)
    return ListMonitoredObjectsResponse(
        router=[name],
        children=[_NODES, _PROXIES] if name == INSTANCE_DIMENSION else [],
        instances=[_instance(instance, statuses[instance.id]) for instance in page],
        total=total,
    )


def list_monitored_objects_of_instance(call: Call[None]) -> ListMonitoredObjectsOfInstanceResponse:
    """5.15.4: one instance, its nodes if it is a cluster or behind proxies, and these."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        with_nodes = clustered(instance) or proxied(instance)
        groups = groups_of(tx, [instance])[instance.id] if with_nodes else []
        before = proxies_of(tx, [instance])[instance.id]
        status = statuses_of(tx, [instance])[instance.id]
    return ListMonitoredObjectsOfInstanceResponse(
        router=[INSTANCE_DIMENSION],
        children=[*([_NODES] if with_nodes else []), *([_PROXIES] if proxied(instance) else [])],
        instances=[_instance(instance, status)],
        dcs_cluster_redis_node=[_node(node) for group in groups for node in group.nodes],
        dcs_cluster_proxy2_node=[_proxy(instance, proxy) for proxy in before],
        total=1,
    )


def _instance(instance: Instance, status: Status) -> InstancesMonitoredObject:
    return InstancesMonitoredObject(dcs_instance_id=instance.id, name=instance.name, status=status)


def _node(node: Node) -> ClusterRedisNodeMonitoredObject:
    """Nodes have the statuses of instances here."""
    status = Status.DELETING if node.run is Run.GONE else _STATUSES.get(node.seen_state, Status.DELETING)
    return ClusterRedisNodeMonitoredObject(
        dcs_instance_id=node.instance_id,
        name=label(node),
        dcs_cluster_redis_node=dimension(node),
        status=status,
    )


def _proxy(instance: Instance, proxy: Proxy) -> Proxy2NodeMonitoredObject:
    return Proxy2NodeMonitoredObject(
        dcs_instance_id=instance.id,
        name=proxy_label(proxy, instance.ip),
        dcs_cluster_proxy2_node=dimension(proxy),
        status=_STATUSES.get(proxy.seen_state, Status.DELETING),
    )
