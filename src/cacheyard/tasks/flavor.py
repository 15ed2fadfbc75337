"""An instance gets another flavor: its row says so, and it has as many proxies as that flavor."""

from sqlalchemy import Connection

from cacheyard.domain import flavors
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.instances import Instance, in_force, proxied
from cacheyard.domain.placement import Spot
from cacheyard.domain.proxies import Proxy, new_proxies
from cacheyard.domain.tasks import Task
from cacheyard.store import hosts, instances, nodes, proxies


def flavor_of(task: Task, which: str) -> Flavor:
    """The flavor that stands in the task's arguments under that name."""
    flavor = flavors.find(task.arguments[which])
    assert flavor is not None  # noqa: S101 - checked by the request
    return flavor


def is_held(tx: Connection, task: Task) -> bool:
    """Whether the task still has the instance: a last step that runs twice must not disturb the next task."""
    instance = instances.get(tx, task.instance_id)
    return instance is not None and instance.task_id == task.id


def set_flavor(tx: Connection, task: Task, flavor: Flavor) -> bool:
    """Whether the task still has the instance, which then has that flavor."""
    if not is_held(tx, task):
        return False
    instances.change(tx, task.instance_id, spec_code=flavor.spec_code, capacity_mb=flavor.capacity_mb)
    fit_proxies(tx, task.instance_id)
    return True


def fit_proxies(tx: Connection, instance_id: str) -> None:
    """As many proxies as the instance's flavor has: those that are there stay, if they are not too many."""
    instance = instances.get(tx, instance_id)
    assert instance is not None  # noqa: S101 - a task holds it
    there = proxies.of_instance(tx, instance_id)
    wanted = {proxy.number: proxy for proxy in proxies_for(tx, instance)}
    proxies.remove(tx, [proxy.id for proxy in there if proxy.number not in wanted])
    known = {proxy.number for proxy in there}
    proxies.add(tx, [proxy for number, proxy in wanted.items() if number not in known])


def proxies_for(tx: Connection, instance: Instance) -> list[Proxy]:
    """New proxies for the instance, as many as its flavor has; none, if it is of another type."""
    if not proxied(instance):
        return []
    flavor = flavors.find(instance.spec_code)
    assert flavor is not None  # noqa: S101 - it was when the instance got it
    there = [node for node in nodes.of_instance(tx, instance.id) if in_force(instance, node)]
    spots = [Spot(az_code=node.az_code, host_id=node.host_id) for node in there]
    return new_proxies(instance, flavor, hosts.every(tx), spots)
