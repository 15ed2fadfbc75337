"""Whether there is room for more: the project's quota and the machines' memory."""

from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.domain import flavors, placement
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.tasks import Change
from cacheyard.services.call import Call
from cacheyard.store import hosts, instances, tasks


def check_room(tx: Connection, call: Call[Any], old: Flavor, new: Flavor, *, beside: bool = False) -> None:
    """Refuse a change of an instance's flavor that needs more than is left. `beside`: for a time there are
    the servers of both flavors."""
    settings = call.house.settings
    if new.capacity_mb > old.capacity_mb:
        used = sum(mb for _, mb in instances.sizes(tx, call.project_id))
        if used + new.capacity_mb - old.capacity_mb > settings.memory_quota * 1024:
            raise errors.MemoryQuotaUsedUp(
                why=f"{used / 1024:g} of {settings.memory_quota} GB are used already"
            )
    more = new.memory_mb if beside else new.memory_mb - old.memory_mb
    if more > 0:
        check_memory(tx, call, more)


def check_memory(tx: Connection, call: Call[Any], more_mb: int) -> None:
    """Refuse what needs more memory than the machines have left to promise."""
    fault = placement.memory_fault(hosts.every(tx), promised(tx), more_mb, call.house.settings.overcommit)
    if fault is not None:
        raise errors.ZoneSoldOut(why=fault)


def promised(tx: Connection) -> int:
    """MB that all instances may use: by their flavors, of both while the type of one is being changed."""
    found = sum(flavors.memory_of(code) for code, _ in instances.sizes(tx, None))
    for change in (Change.TO_PROXY, Change.FROM_PROXY):
        for task in tasks.under_way(tx, change):
            instance = instances.get(tx, task.instance_id)
            both = {task.arguments["spec_code"], task.arguments["old_spec_code"]}
            found += sum(map(flavors.memory_of, both - {instance.spec_code if instance else ""}))
    return found
