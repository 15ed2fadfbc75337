"""Redis Cluster: how its nodes come to know each other, and what they say of themselves.

A new cluster is not put together by MEET, whose gossip takes seconds: each node's nodes.conf is
written before its first start. A master starts as the replica of a *phantom*, a master that is
nowhere and has the slots, and takes over from it at once; for a node that starts as a master may
serve nothing for two seconds (Redis' own rule, so that a master that comes back hears first whether
it was replaced). A 3x2 cluster is whole 0.16 s after its processes were started.
"""

import re
import secrets
from collections.abc import Iterable, Sequence

import msgspec

from cacheyard.domain import slots
from cacheyard.domain.instances import BUS
from cacheyard.domain.nodes import Address, Node, Role, Run
from cacheyard.domain.slots import SLOTS, Range
from cacheyard.engine.redis import Link, ResponseError, parse_info

_EPOCHS_APART = 10  # masters that take over at once each have an epoch of their own
_MOVING = re.compile(r"\[(\d+)-([<>])-([0-9a-f]{40})\]")
_WRITTEN = re.compile(
    r"[0-9a-f]{40} \S*:\d+@\d+\S* [a-z?,]+ (-|[0-9a-f]{40})( \d+){3} (dis)?connected"
    r"( \d+(-\d+)?| \[\d+-[<>]-[0-9a-f]{40}\])*"
)
_LAST = re.compile(r"vars currentEpoch \d+ lastVoteEpoch \d+")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A node as a node of the cluster sees it."""

    engine_id: str
    address: Address | None  # None: nobody knows where it is
    flags: frozenset[str]  # e.g. myself, master, slave, fail, fail?, handshake, noaddr
    master_id: str | None
    epoch: int
    connected: bool
    slots: tuple[Range, ...]
    importing: dict[int, str]  # slot to the engine id it comes from; only `myself` says so
    migrating: dict[int, str]  # slot to the engine id it goes to

    @property
    def role(self) -> Role:
        """Master or replica."""
        return Role.MASTER if "master" in self.flags else Role.REPLICA


def first_nodes_conf(
    me: Node,
    everyone: Sequence[Node],
    born_with: Sequence[Range] | None,
    *,
    told: "Iterable[Member]" = (),
    again: bool = False,
) -> str:
    """nodes.conf for a node that has none, of `everyone` by shard and number.

    `born_with`: the slots of each shard, if the whole cluster is new; `again`: it was there before, and all
    its nodes have lost what they knew. None: the others are there, and `told` is what one of them says.
    """
    known = {member.engine_id: member for member in told}
    masters = {node.shard_id: node for node in everyone if node.role is Role.MASTER}
    order = list(dict.fromkeys(node.shard_id for node in everyone))
    lines = []
    for node in everyone:
        number = order.index(node.shard_id)
        flags = "myself," if node.id == me.id else ""
        held: Sequence[Range] = ()
        epoch = 0
        if born_with is not None:
            held, epoch = [born_with[number]], number + 1
        if (member := known.get(node.engine_id or "")) is not None:
            held, epoch = member.slots, member.epoch
        ranges = "".join(f" {first}-{last}" for first, last in held)
        if node.role is Role.REPLICA:
            master_id = masters[node.shard_id].engine_id
            lines.append(_line(node, flags + "slave", master_id, 0))
        elif node.id == me.id and born_with is not None and not again:
            phantom = secrets.token_hex(20)
            lines.append(f"{phantom} :0@0 master,noaddr - 0 0 0 disconnected{ranges}")
            lines.append(_line(node, flags + "slave", phantom, 0))
        else:
            lines.append(_line(node, flags + "master", None, epoch) + ranges)
    newest = max((member.epoch for member in known.values()), default=0)
    if born_with is not None:
        newest = _EPOCHS_APART * (1 + order.index(me.shard_id))
    return "\n".join([*lines, f"vars currentEpoch {newest} lastVoteEpoch 0"]) + "\n"


def adopting_nodes_conf(me: Node, server: Address) -> str:
    """nodes.conf for a node that takes a server which is in no cluster for its master, and for the master of
    all slots. It copies the server by plain replication, and can take its place (`replace`)."""
    stranger = secrets.token_hex(20)
    at = f"{server.ip}:{server.port}@{server.port + BUS}"
    lines = (
        f"{stranger} {at} master - 0 0 0 connected 0-{SLOTS - 1}",
        _line(me, "myself,slave", stranger, 0),
        "vars currentEpoch 0 lastVoteEpoch 0",
    )
    return "\n".join(lines) + "\n"


async def replace(link: Link) -> None:
    """A node that began with `adopting_nodes_conf` takes the place of the server that it follows: from the
    answer on it is a cluster of one, with all slots."""
    seen = await members(link)
    me = myself(seen)
    if me.role is Role.REPLICA:
        await link.call("CLUSTER", "FAILOVER", "TAKEOVER")
    for member in seen:
        if member is not me:
            await forget(link, member.engine_id)


def _line(node: Node, flags: str, master_id: str | None, epoch: int) -> str:
    at = f"{node.ip}:{node.port}@{node.port + BUS}"
    return f"{node.engine_id} {at} {flags} {master_id or '-'} 0 0 {epoch} connected"


async def members(link: Link) -> list[Member]:
    """All nodes, as the one at the other end sees them."""
    return parse_members(str(await link.call("CLUSTER", "NODES")))


def parse_members(answer: str) -> list[Member]:
    """What CLUSTER NODES answers."""
    return [_member(line.split(" ")) for line in answer.splitlines()]


def _member(words: list[str]) -> Member:
    engine_id, at, flags, master_id, _, _, epoch, state, *held = words
    ip, port = at.split("@")[0].rsplit(":", 1)
    moving = [match.groups() for word in held if (match := _MOVING.fullmatch(word))]
    return Member(
        engine_id=engine_id,
        address=Address(ip, int(port)) if ip else None,
        flags=frozenset(flags.split(",")),
        master_id=None if master_id == "-" else master_id,
        epoch=int(epoch),
        connected=state == "connected" or "myself" in flags,
        slots=tuple(_range(word) for word in held if not word.startswith("[")),
        importing={int(slot): other for slot, way, other in moving if way == "<"},
        migrating={int(slot): other for slot, way, other in moving if way == ">"},
    )


def _range(word: str) -> Range:
    first, _, last = word.partition("-")
    return int(first), int(last or first)


def owners(seen: Iterable[Member]) -> dict[int, str]:
    """The engine id of who has each slot, of those that somebody has."""
    return {slot: member.engine_id for member in seen for slot in slots.of(member.slots)}


def myself(seen: Iterable[Member]) -> Member:
    """The node that was asked."""
    return next(member for member in seen if "myself" in member.flags)


async def be_born(link: Link, after: int = 0) -> int | None:
    """A master that is still a phantom's replica takes its slots, once it has heard of the config epoch
    `after`; its own is a newer one then. Answers its epoch; None: it has not heard. Done twice, it changes
    nothing.

    Masters must not share an epoch: one that died, and whose replica was promoted, would settle that with a
    newer one when it is back, and so take its slots back.
    """
    seen = {member.engine_id: member for member in await members(link)}
    me = myself(seen.values())
    phantom = seen.get(me.master_id or "")
    if phantom is not None and phantom.address is None:
        if int((await _info(link))["cluster_current_epoch"]) < after:
            return None
        await link.call("CLUSTER", "FAILOVER", "TAKEOVER")
    for member in seen.values():
        if member.address is None and "master" in member.flags:
            await link.call("CLUSTER", "FORGET", member.engine_id)
    return myself(await members(link)).epoch


async def follow_at_once(link: Link) -> None:
    """A replica that did not find its master ready tries again a second later: have it try now."""
    info = parse_info(await link.call("INFO", "replication"))
    if info.get("master_link_status") != "down" or info["master_sync_in_progress"] == "1":
        return
    if (master_id := myself(await members(link)).master_id) is not None:
        await link.call("CLUSTER", "REPLICATE", master_id)


async def fault(link: Link, nodes: Sequence[Node]) -> str | None:
    """Why the cluster of exactly these nodes is not whole, as the one at the other end sees it; None: it is.
    Whole: all know each other and reach those that are to run, a living master serves each slot, and no two
    masters share an epoch."""
    wanted = {node.engine_id for node in nodes}
    away = {node.engine_id for node in nodes if node.run is not Run.UP}
    said = await _info(link)
    if said["cluster_state"] != "ok" or said["cluster_slots_ok"] != str(SLOTS):
        return f"its state is {said['cluster_state']}, {said['cluster_slots_ok']} slots are served"
    if said["cluster_known_nodes"] != str(len(wanted)):  # to ask for all of a large cluster costs more
        return f"it knows {said['cluster_known_nodes']} nodes instead of {len(wanted)}"
    seen = await members(link)
    if (known := {member.engine_id for member in seen}) != wanted:
        return f"it knows {len(known & wanted)} of {len(wanted)} nodes and {len(known - wanted)} others"
    for member in seen:
        where = member.address.ip if member.address else member.engine_id
        ill = not member.connected or member.flags & {"fail", "fail?", "handshake", "noaddr"}
        if ill and member.engine_id not in away:
            return (
                f"{where} is {','.join(sorted(member.flags))}, {'' if member.connected else 'not '}connected"
            )
    epochs = [member.epoch for member in seen if member.slots]
    if len(set(epochs)) < len(epochs):
        return f"masters share an epoch: {sorted(epochs)}"
    return None


async def _info(link: Link) -> dict[str, str]:
    return dict(line.split(":", 1) for line in str(await link.call("CLUSTER", "INFO")).split())


async def meet(link: Link, others: Iterable[Address]) -> None:
    """Make the node reach out to those of the others that it is not connected to."""
    there = {member.address for member in await members(link) if member.connected}
    if lost := [other for other in others if other not in there]:
        await link.calls(("CLUSTER", "MEET", other.ip, other.port) for other in lost)


async def forget(link: Link, engine_id: str) -> None:
    """Have the node know another no more, which must be no master of its. Unknown already: as well."""
    try:
        await link.call("CLUSTER", "FORGET", engine_id)
    except ResponseError as error:
        if "Unknown node" not in str(error):
            raise


def legible(nodes_conf: str) -> str | None:
    """What a server has written into its nodes.conf; None if that cannot be told any more.

    7.0 writes it over the old one: who is killed in the middle of that leaves pages of the new one and then
    of the old. One that is shorter ends in empty lines, so what follows its last line is of no account.
    """
    lines = nodes_conf.splitlines()
    last = next((number for number, line in enumerate(lines) if _LAST.fullmatch(line)), 0)
    if not last or not all(map(_WRITTEN.fullmatch, lines[:last])):
        return None
    seen = parse_members("\n".join(lines[:last]))
    held = [slot for member in seen for slot in slots.of(member.slots)]
    ids = {member.engine_id for member in seen}
    myselves = sum("myself" in member.flags for member in seen)
    if myselves != 1 or len(ids) < len(seen) or len(set(held)) < len(held):
        return None
    return "\n".join(lines[: last + 1]) + "\n"


def brought_up_to_date(nodes_conf: str, everyone: Iterable[Node], master_of_me: str | None) -> str:
    """nodes.conf for the next start of a node that was away.

    Without those that are not among `everyone` any more: a node that was down while the others were told to
    forget one would tell them of it again. And if another is master in its place now, `master_of_me` by its
    engine id, as that one's replica: else it would claim its slots until it has heard of it.
    """
    known = {node.engine_id for node in everyone}
    kept = []
    for line in nodes_conf.splitlines():
        words = line.split(" ")
        if words[0] not in known and words[0] != "vars" and "noaddr" not in words[2]:
            continue
        if master_of_me is not None and "myself" in words[2] and "master" in words[2]:
            words = [words[0], words[1], "myself,slave", master_of_me, "0", "0", "0", "connected"]
        kept.append(" ".join(words))
    return "\n".join(kept) + "\n"
