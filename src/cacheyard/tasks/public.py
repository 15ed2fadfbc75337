"""An instance gets a public address, gives it up, or has another one instead: the row says which since the
request. The whitelist, if there is one, holds at the address before anybody listens there."""

import asyncio
import socket
from typing import Any

from cacheyard.domain.instances import proxied
from cacheyard.domain.nodes import Address, Run
from cacheyard.engine.replication import send_away
from cacheyard.tasks import reconfigure
from cacheyard.tasks.engine import Kind, Work
from cacheyard.tasks.reach import reach
from cacheyard.tasks.reconfigure import configure_nodes
from cacheyard.tasks.steps import open_for_clients, proxies_settled
from cacheyard.tasks.tools import look
from cacheyard.tasks.whitelist import close_addresses

SECONDS = 5.0  # for what has been done already to be seen from outside


async def settle_proxies(work: Work) -> None:
    """The proxies, if the instance has any, listen where the row says."""
    instance, _ = await work.tools.read(look, work.task.instance_id)
    if proxied(instance):
        await proxies_settled(work)


async def verify_public_access(work: Work) -> None:
    """Somebody answers at the address that is wanted, and nobody at one that is not any more, where all who
    were connected are cut off."""
    instance, there = await work.tools.read(look, work.task.instance_id)
    now, before = instance.public_access, _before(work)
    if before is not None and (now is None or now.address != before):
        old = Address(before, instance.port)
        for node in there:
            if node.run is Run.UP and node.seen_pid is not None and not proxied(instance):
                async with work.tools.link(instance, Address(node.ip, node.port)) as link:
                    await send_away(link, old)

        async def given_up() -> bool:
            return not await _answers(old)

        await reach(given_up, SECONDS, f"{old.ip}:{old.port} to be given up")
    if now is not None:
        new = Address(now.address, instance.port)

        async def taken() -> bool:
            return await _answers(new)

        await reach(taken, SECONDS, f"{new.ip}:{new.port}, which this machine must have, to answer")


async def undo(work: Work) -> None:
    """The instance answers where it did before."""
    await reconfigure.undo(work)


def _before(work: Work) -> str | None:
    was: dict[str, Any] | None = work.task.arguments["undo"]["public_access"]
    return was["address"] if was is not None else None


async def _answers(address: Address) -> bool:
    """Whether somebody does on this machine: who answers there may be another one, if it is not ours."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address.ip, 0))
        _, writer = await asyncio.open_connection(address.ip, address.port)
    except OSError:
        return False
    writer.close()
    return True


PUBLIC = Kind(
    steps=(close_addresses, configure_nodes, settle_proxies, verify_public_access, open_for_clients),
    undo=undo,
)
