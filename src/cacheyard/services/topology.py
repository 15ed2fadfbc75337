"""The topology of an instance: its nodes with what their servers and proxies last said."""

from cacheyard.contract.types import BandWidth, DimsInfo, KeySpace, ShowInstanceTopologyResponse, TopologyInfo
from cacheyard.domain.instances import Instance
from cacheyard.domain.nodes import Figures, Node, Role
from cacheyard.domain.proxies import Proxy, ProxyFigures
from cacheyard.domain.shape import dimension, label, proxy_label, shown_proxy_state
from cacheyard.services.call import Call
from cacheyard.services.groups import (
    INSTANCE_DIMENSION,
    NODE_DIMENSION,
    PROXY,
    PROXY_DIMENSION,
    ROLES,
    Group,
    groups_of,
    state_of,
)
from cacheyard.store import nodes, proxies


def show_instance_topology(call: Call[None]) -> ShowInstanceTopologyResponse:
    """Each node and proxy with its figures. What only Redis 3.0 had is not there, nor are balancers."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        groups = groups_of(tx, [instance])[instance.id]
        said = nodes.figures_of(tx, instance.id)
        before = proxies.of_instance(tx, instance.id)
        told = proxies.figures_of(tx, instance.id)
    return ShowInstanceTopologyResponse(
        redis_server=[
            _node(instance, group, node, said.get(node.id)) for group in groups for node in group.nodes
        ],
        cluster_proxy=[_proxy(instance, proxy, told.get(proxy.id)) for proxy in before],
        cluster_lvs=[],
        cluster_admin=[],
        master=[],
        vpcendpoint=[],
        elb=[],
    )


def _node(instance: Instance, group: Group, node: Node, said: Figures | None) -> TopologyInfo:
    """Numbers are text here. What the server has not said yet is left out."""
    first = group.nodes[0]
    master = first if node.role is Role.REPLICA and first.role is Role.MASTER else None
    return TopologyInfo(
        node_id=node.id,
        node_name=label(node),
        ip=node.ip,
        port=str(node.port),
        node_type=ROLES[node.role],
        max_memory=str(node.settings.maxmemory >> 20),
        used_memory=str(said.used_memory >> 20) if said else None,
        qps=str(said.commands_per_second) if said else None,
        bandwidth=_bandwidth(said) if said else BandWidth(),
        db_num=str(node.settings.databases),
        dbs=_keys(said) if said else KeySpace(),
        relation_ip=master.ip if master else None,
        relation_port=str(master.port) if master else None,
        group_id=group.shard.id,
        status=state_of(instance, group, node),
        dims=DimsInfo(dim_k=f"{INSTANCE_DIMENSION},{NODE_DIMENSION}", dim_v=dimension(node)),
    )


def _proxy(instance: Instance, proxy: Proxy, said: ProxyFigures | None) -> TopologyInfo:
    """It holds no data: what databases and shards have is left out."""
    return TopologyInfo(
        node_id=proxy.id,
        node_name=proxy_label(proxy, instance.ip),
        ip=instance.ip,
        port=str(instance.port),
        node_type=PROXY,
        used_memory=str(said.memory >> 20) if said else None,
        qps=str(said.commands_per_second) if said else None,
        bandwidth=_bandwidth(said) if said else BandWidth(),
        status=shown_proxy_state(proxy),
        dims=DimsInfo(dim_k=f"{INSTANCE_DIMENSION},{PROXY_DIMENSION}", dim_v=dimension(proxy)),
    )


def _bandwidth(said: Figures | ProxyFigures) -> BandWidth:
    """In kilobits a second; what they say is in kilobytes."""
    return BandWidth(input=f"{said.input_kbps * 8:.2f}", output=f"{said.output_kbps * 8:.2f}")


def _keys(said: Figures) -> KeySpace:
    """Of all databases together: there is one entry for a node."""
    return KeySpace(
        db_idx=said.databases or "0",
        keys=str(said.keys),
        expires=str(said.expires),
        avg_ttl=str(said.avg_ttl),
    )
