"""Proxies are replaced one after another: each new one serves before the old one goes.

A step of tasks whose request said which (`services.proxies`). Clients of a proxy that goes come back to its
siblings, who have the same address.
"""

from sqlalchemy import Connection

from cacheyard.domain.placement import Spot
from cacheyard.domain.proxies import successor
from cacheyard.domain.tasks import Task
from cacheyard.store import proxies
from cacheyard.tasks.engine import Work
from cacheyard.tasks.steps import proxies_settled


async def replaced(work: Work) -> None:
    """In the place of each proxy that the request named there is the new one, and the old one is to end."""
    for old_id in work.task.arguments["proxies"]:
        if await work.tools.write(_put_beside, work.task, old_id):
            await proxies_settled(work)
            await work.tools.write(proxies.remove, [old_id])
    await proxies_settled(work)


async def withdraw(work: Work) -> None:
    """New proxies beside which the old one still is go. The others stay: one is as good as the other."""
    await work.tools.write(_withdraw, work.task)


def _put_beside(tx: Connection, task: Task, old_id: str) -> bool:
    """Have the new proxy beside the old one, whose place it has; False: that one has gone already."""
    there = {proxy.id: proxy for proxy in proxies.of_instance(tx, task.instance_id)}
    new = task.arguments["proxies"][old_id]
    if old_id not in there:
        return False
    if new["id"] not in there:
        spot = Spot(az_code=new["az_code"], host_id=new["host_id"])
        proxies.add(tx, [successor(there[old_id], new["id"], spot)])
    return True


def _withdraw(tx: Connection, task: Task) -> None:
    there = {proxy.id for proxy in proxies.of_instance(tx, task.instance_id)}
    proxies.remove(tx, [new["id"] for old_id, new in task.arguments["proxies"].items() if old_id in there])
