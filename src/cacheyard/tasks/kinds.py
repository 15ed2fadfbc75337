"""All kinds of task, by the change that a request asks for."""

from cacheyard.domain.tasks import Change
from cacheyard.tasks.bandwidth import SET_BANDWIDTH
from cacheyard.tasks.create import CREATE
from cacheyard.tasks.delete import DELETE
from cacheyard.tasks.engine import Kind
from cacheyard.tasks.names import REMOVE_ADDRESS
from cacheyard.tasks.nodes import START_NODES, STOP_NODES
from cacheyard.tasks.parameters import SET_PARAMETERS
from cacheyard.tasks.power import FLUSH, RESTART, START, STOP
from cacheyard.tasks.priority import PRIORITIZE
from cacheyard.tasks.public import PUBLIC
from cacheyard.tasks.reconfigure import RECONFIGURE
from cacheyard.tasks.replace import REPLACE
from cacheyard.tasks.replicas import ADD_REPLICAS, REMOVE_REPLICAS
from cacheyard.tasks.resize import CHECK_RESIZE, RESIZE
from cacheyard.tasks.retype import FROM_PROXY, TO_PROXY
from cacheyard.tasks.shards import ADD_SHARDS, REMOVE_SHARDS
from cacheyard.tasks.switchover import SWITCHOVER
from cacheyard.tasks.upgrade import UPGRADE
from cacheyard.tasks.whitelist import WHITELIST
from cacheyard.tasks.zones import MIGRATE

KINDS: dict[str, Kind] = {
    Change.CREATE: CREATE,
    Change.DELETE: DELETE,
    Change.RESIZE: RESIZE,
    Change.RESTART: RESTART,
    Change.FLUSH: FLUSH,
    Change.STOP: STOP,
    Change.START: START,
    Change.RECONFIGURE: RECONFIGURE,
    Change.PRIORITIZE: PRIORITIZE,
    Change.REMOVE_ADDRESS: REMOVE_ADDRESS,
    Change.WHITELIST: WHITELIST,
    Change.PUBLIC: PUBLIC,
    Change.ADD_REPLICAS: ADD_REPLICAS,
    Change.REMOVE_REPLICAS: REMOVE_REPLICAS,
    Change.REPLACE: REPLACE,
    Change.ADD_SHARDS: ADD_SHARDS,
    Change.REMOVE_SHARDS: REMOVE_SHARDS,
    Change.TO_PROXY: TO_PROXY,
    Change.FROM_PROXY: FROM_PROXY,
    Change.MIGRATE: MIGRATE,
    Change.UPGRADE: UPGRADE,
    Change.SWITCHOVER: SWITCHOVER,
    Change.STOP_NODES: STOP_NODES,
    Change.START_NODES: START_NODES,
    Change.SET_BANDWIDTH: SET_BANDWIDTH,
    Change.SET_PARAMETERS: SET_PARAMETERS,
    Change.CHECK_RESIZE: CHECK_RESIZE,
}
