"""What servers are asked and told when a master hands over to one of its replicas.

Called by `tasks.switchover`, which says in which order and why.
"""

import msgspec

from cacheyard.domain.nodes import Address, NodeSettings, Role
from cacheyard.engine.redis import Link, listen, parse_info, server_version
from cacheyard.engine.redis_conf import live

_RARELY = 3600  # seconds; pings move the offset that two servers are compared by


class Standing(msgspec.Struct, frozen=True):
    """What a server says of its part in replication."""

    role: Role
    master: Address | None  # whom it follows
    link_up: bool  # a replica's link to its master
    offset: int  # how much of the stream of writes it has made, or taken over


async def standing(link: Link) -> Standing:
    """Ask the server."""
    info = parse_info(await link.call("INFO", "replication"))
    if info["role"] == "master":
        return Standing(Role.MASTER, None, True, int(info["master_repl_offset"]))
    return Standing(
        Role.REPLICA,
        Address(info["master_host"], int(info["master_port"])),
        info["master_link_status"] == "up",
        int(info["slave_repl_offset"]),
    )


async def is_fed(replica: Link, master: Link) -> bool:
    """Whether the replica has its first copy, and is sent what has been written since.

    A master holds that back until it hears from the replica, also when it already shows it as online (7.0 and
    later). The replica speaks when it has its copy, but a moment too early for a master that does not know
    yet that the copy was sent, and then a second later; so it is asked to speak again.
    """
    info = parse_info(await master.call("INFO", "replication"))
    online = any(
        value.startswith(f"ip={replica.address.ip},") and ",state=online," in value
        for name, value in info.items()
        if name.startswith("slave")
    )
    if online:
        await replica.tell("REPLCONF", "GETACK", "*")
    return online


async def pause_writes(link: Link, milliseconds: int) -> None:
    """Let all writes wait: until `resume_writes`, or for so long, whatever becomes of us. From the answer on,
    nothing is added to what replicas have to take over."""
    await link.calls(
        (
            ("CONFIG", "SET", "repl-ping-replica-period", _RARELY),
            ("CLIENT", "PAUSE", milliseconds, "WRITE"),
        )
    )


async def resume_writes(link: Link, settings: NodeSettings) -> None:
    """Let them go on, on a server with these settings."""
    name = "repl-ping-replica-period"
    wanted = live(settings, await server_version(link))[name]
    await link.calls((("CLIENT", "UNPAUSE"), ("CONFIG", "SET", name, wanted)))


async def demote(link: Link, own_ip: str, master: Address) -> None:
    """From the answer on the server takes no write, and no new connection but at its own address."""
    await _listen(link, (own_ip,))
    await link.call("REPLICAOF", master.ip, master.port)


async def promote(link: Link, bind: tuple[str, ...]) -> None:
    """From the answer on the server is a master, and listens at these addresses."""
    await link.call("REPLICAOF", "NO", "ONE")
    await _listen(link, bind)


async def _listen(link: Link, addresses: tuple[str, ...]) -> None:
    """The server listens at these addresses alone. It opens its sockets anew only if it must: that resets
    connections which are being made."""
    _, now = await link.call("CONFIG", "GET", "bind")
    if now != " ".join(addresses):
        await listen(link, addresses)


class Epochs(msgspec.Struct, frozen=True):
    """How new a cluster node's knowledge is, and its claim to its slots (a replica: its master's)."""

    current: int
    mine: int


async def epochs(link: Link) -> Epochs:
    """Ask the server."""
    return epochs_in(str(await link.call("CLUSTER", "INFO")))


def epochs_in(info: str) -> Epochs:
    """Out of what CLUSTER INFO answers."""
    said = dict(line.split(":", 1) for line in info.split() if ":" in line)
    return Epochs(int(said["cluster_current_epoch"]), int(said["cluster_my_epoch"]))


async def tell_epoch(link: Link, other: Address) -> None:
    """Have a cluster node tell another one now what they would come to talk of within some seconds."""
    await link.call("CLUSTER", "MEET", other.ip, other.port)


async def take_over(link: Link) -> None:
    """Have the replica of a cluster take its master's slots. The master hears of it at once, and follows, if
    the replica's claim is newer: if its current epoch was not below the master's own.

    The other masters are not asked, as they are by CLUSTER FAILOVER alone: for ten seconds they would vote
    for no second switchover of a shard.
    """
    await link.call("CLUSTER", "FAILOVER", "TAKEOVER")


async def give_up_address(link: Link, bind: tuple[str, ...]) -> None:
    """Of these addresses the server listens at its own alone from the answer on; who is connected stays."""
    own, *others = bind
    if others:
        await _listen(link, (own,))


async def end_in_other_databases(link: Link) -> None:
    """Close the connections of those who have chosen another database than 0."""
    for line in str(await link.call("CLIENT", "LIST")).splitlines():
        said = dict(word.split("=", 1) for word in line.split(" ") if "=" in word)
        if said["db"] != "0":
            await link.call("CLIENT", "KILL", "ID", said["id"])


async def send_away(link: Link, address: Address) -> None:
    """Close all connections that came in at an address which is another server's now."""
    await link.call("CLIENT", "KILL", "LADDR", f"{address.ip}:{address.port}")
