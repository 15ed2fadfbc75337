"""Which whitelists are to be in force, as follows from the rows of instances and their nodes, and which are:
rows of `fences`, the agents' alone."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, delete, insert, null, select

from cacheyard.domain.nodes import Address
from cacheyard.domain.whitelist import Fence, Whitelist, digest, fence
from cacheyard.store import rows
from cacheyard.store.tables import fences, instances, nodes, proxies


class FenceReport(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `fences`: what the agent of a host made of an instance's whitelist."""

    host_id: str
    instance_id: str
    digest: str  # of what it last tried to put in force, and has if there is no error; empty: nothing
    error: str | None
    boot: str  # of the machine when a whitelist came in force there; the kernel forgets it with the next


def every(tx: Connection) -> list[Fence]:
    """All that is to be in force, by instance."""
    return _wanted(tx, None)


def of_instance(tx: Connection, instance_id: str) -> Fence | None:
    """What is to be in force for an instance; None: nothing."""
    return next(iter(_wanted(tx, instance_id)), None)


def _wanted(tx: Connection, instance_id: str | None) -> list[Fence]:
    c = instances.c
    query = (
        select(c.id, c.ip, c.port, c.whitelist, c.public_access)
        .where(c.whitelist.is_not(null()))
        .order_by(c.id)
    )
    if instance_id is not None:
        query = query.where(c.id == instance_id)
    there = {row.id: row for row in tx.execute(query)}
    if not there:
        return []
    addresses: dict[str, set[str]] = defaultdict(set)
    own = select(nodes.c.instance_id, nodes.c.ip).where(nodes.c.instance_id.in_(list(there)))
    for row in tx.execute(own):
        addresses[row.instance_id].add(row.ip)
    wanted = (
        fence(
            found,
            msgspec.convert(row.whitelist, Whitelist),
            {row.ip, *addresses[found]},
            [Address(row.public_access["address"], row.port)] if row.public_access else (),
        )
        for found, row in there.items()
    )
    return [one for one in wanted if one is not None]


def processes_of(tx: Connection, instance_id: str) -> list[int]:
    """The pids of the instance's servers and proxies as agents last saw them."""
    return [
        pid
        for table in (nodes, proxies)
        for pid in tx.scalars(
            select(table.c.seen_pid).where(table.c.instance_id == instance_id, table.c.seen_pid.is_not(None))
        )
    ]


def reports_of_host(tx: Connection, host_id: str) -> list[FenceReport]:
    """What that agent said, at any time."""
    return rows.all_of(FenceReport, tx.execute(select(fences).where(fences.c.host_id == host_id)))


def report_all(tx: Connection, host_id: str, reports: Iterable[FenceReport]) -> None:
    """Write what that agent says by now, of all instances it has something to say of."""
    there = set(tx.scalars(select(instances.c.id)))
    tx.execute(delete(fences).where(fences.c.host_id == host_id))
    values = [msgspec.to_builtins(report) for report in reports if report.instance_id in there]
    if values:
        tx.execute(insert(fences), values)


class Standing(msgspec.Struct, frozen=True):
    """How an instance's whitelist stands."""

    in_force: bool
    error: str | None  # why what is wanted by now is not in force, where an agent has tried


def standing(tx: Connection, instance_id: str) -> Standing:
    """Whether the hosts of an instance have in force what its row says."""
    wanted = digest(of_instance(tx, instance_id))
    hosts = {
        host_id
        for table in (nodes, proxies)
        for host_id in tx.scalars(select(table.c.host_id).where(table.c.instance_id == instance_id))
    }
    said = {
        report.host_id: report
        for report in rows.all_of(
            FenceReport, tx.execute(select(fences).where(fences.c.instance_id == instance_id))
        )
    }
    if not wanted:
        error = next((report.error for report in said.values() if report.error and not report.digest), None)
        return Standing(not said, error)
    mine = [said.get(host_id) for host_id in hosts]
    tried = [report for report in mine if report is not None and report.digest == wanted]
    error = next((report.error for report in tried if report.error), None)
    return Standing(len(tried) == len(hosts) and error is None, error)
