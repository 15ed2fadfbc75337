"""Has the kernel of this host let only those in whom the instances' whitelists name.

Level-triggered: which fences are wanted follows from the rows of instances and their nodes
(`store.fences`), and the whole table is rendered from them whenever that changes, when somebody has
changed the table, and when an agent starts. A server or proxy starts only when the fence of its
instance is in force (`settled`): an address is closed before anybody serves at it. What could not be
put in force is reported, and tried again.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from cacheyard.agent.loops import forever
from cacheyard.agent.process import boot_id
from cacheyard.domain.whitelist import Fence, digest
from cacheyard.engine import nft, ours, sockets
from cacheyard.store import fences
from cacheyard.store.db import Store
from cacheyard.store.fences import FenceReport
from cacheyard.waiting import happens

log = structlog.get_logger()

POLL_SECONDS = 0.1  # how often to ask whether another process has written
SHARE = 4  # after a look at the rows, rest so many times as long
VERIFY_SECONDS = 1.0  # how often to look whether somebody has changed the table
AGAIN_SECONDS = 2.0  # after a failure


class NotClosed(OSError):  # noqa: N818 - read as "it is not closed"
    """The whitelist of an instance cannot be put in force."""


class Firewall:
    """`run` until it is cancelled; what is in force stays so."""

    def __init__(self, store: Store, host_id: str, data: Path, fault: str | None) -> None:
        """`data`: the yard's directory. `fault`: why this host cannot filter."""
        self._store = store
        self._host_id = host_id
        self._data = data
        self._table = nft.table_of(data)
        self._fault = fault
        self._applied: dict[str, Fence] | None = None  # in force; None: not known
        self._text = ""  # that was taken over
        self._listing = ""  # how the kernel lists it
        self._reported: list[FenceReport] = []
        self._faults: dict[str, str] = {}  # of instances whose whitelist is not in force
        self._looking = asyncio.Lock()
        self._looks = 0
        self._version = -1
        self._verified = 0.0
        self._failed = 0.0
        self.ready = asyncio.Event()  # what the rows say has been put in force, or that it cannot be

    async def run(self) -> None:
        """The loop."""
        if self._fault is None:
            await asyncio.to_thread(_remove_orphans)
        with self._store.changes() as self._happened:
            await forever(self._turn, "firewall")

    async def settled(self, instance_id: str) -> None:
        """Return when what the rows say by now is in force for an instance. Raises `NotClosed`."""
        before = self._looks
        async with self._looking:
            if self._looks == before:  # else somebody has looked since it was asked
                await self._look()
        if (why := self._faults.get(instance_id)) is not None:
            raise NotClosed(why)

    async def _turn(self) -> None:
        began, version = time.monotonic(), self._store.data_version()
        again = self._fault is None and bool(self._faults) and began - self._failed > AGAIN_SECONDS
        if self._happened.is_set() or version != self._version or again or not self.ready.is_set():
            self._happened.clear()
            self._version = version
            async with self._looking:
                await self._look()
            self.ready.set()
        if self._applied and began - self._verified > VERIFY_SECONDS:
            await self.verify()
        await asyncio.sleep(SHARE * (time.monotonic() - began))
        await happens(self._happened, POLL_SECONDS)

    async def _look(self) -> None:
        self._looks += 1
        rows = await self._store.run(self._read)
        if self._applied is None:
            self._reported = await self._store.run(self._read_reports)
        if self._fault is not None:
            await self._report([self._unable(one) for one in rows.values()] + self._lasting(rows))
            return
        wanted, strange = dict(rows), await self._strange(rows)
        for instance_id in strange:
            del wanted[instance_id]
        why = await self._put_in_force(wanted) if wanted != self._applied else None
        said = {one.instance_id: why or strange.get(one.instance_id) for one in rows.values()}
        reports = [self._said(one.instance_id, digest(one), said[one.instance_id]) for one in rows.values()]
        if why is not None:  # what is to end goes on too
            reports += [self._said(lasting, "", why) for lasting in self._others(rows)]
        await self._report(reports)

    async def verify(self) -> None:
        """Make the table again what was taken over, if somebody has changed it."""
        async with self._looking:
            self._verified = time.monotonic()
            there = await asyncio.to_thread(nft.listing, self._table)
            if there and there == self._listing:
                return
            log.warning("whitelists were changed by somebody else", table=self._table)
            self._applied = None
            if not self._listing:  # it was gone before it could be looked at
                self._text = ""
            await self._look()

    async def _put_in_force(self, wanted: dict[str, Fence]) -> str | None:
        """Have the table be that; why it is not."""
        began, known = time.monotonic(), self._applied is not None
        try:
            there = await asyncio.to_thread(nft.listing, self._table) if not known else ""
            if wanted or known or there:
                await self._take_over(nft.render(self._table, list(wanted.values()), self._data))
            cut = await asyncio.to_thread(sockets.cut, wanted.values())
        except OSError as error:
            self._applied, self._failed = None, time.monotonic()
            log.warning("whitelists not in force", why=str(error))
            return str(error)
        self._applied, self._verified = wanted, time.monotonic()
        if wanted or known:
            took = round((time.monotonic() - began) * 1000, 1)
            log.info("whitelists in force", instances=len(wanted), cut=cut, took_ms=took)
        return None

    async def _take_over(self, text: str) -> None:
        """Have the kernel take the table over. How it lists the same table is asked once: at any later time
        somebody may have changed it."""
        await asyncio.to_thread(nft.apply, text)
        if text != self._text:
            self._listing = await asyncio.to_thread(nft.listing, self._table)
            self._text = text

    async def _strange(self, rows: Mapping[str, Fence]) -> dict[str, str]:
        """Which fences would shut out our own: those of servers that are not known as such."""
        fresh = [one for one in rows if self._applied is None or one not in self._applied]
        in_force = {report.instance_id for report in self._reported if not report.error}
        found = {}
        for instance_id in set(fresh) - in_force:
            pids = await self._store.run(self._read_processes, instance_id)
            if not all(ours.is_ours(pid) for pid in pids):
                found[instance_id] = (
                    "its servers were started by a cacheyard that could not keep whitelists: restart it first"
                )
                self._failed = time.monotonic()
        return found

    # --- Reports ---------------------------------------------------------------------------------

    def _said(self, instance_id: str, wanted: str, error: str | None) -> FenceReport:
        boot = boot_id()
        if error is not None:
            boot = next((one.boot for one in self._reported if one.instance_id == instance_id), "")
        return FenceReport(
            host_id=self._host_id, instance_id=instance_id, digest=wanted, error=error, boot=boot
        )

    def _unable(self, one: Fence) -> FenceReport:
        return self._said(one.instance_id, digest(one), self._fault)

    def _others(self, rows: Mapping[str, Fence]) -> list[str]:
        """Instances whose whitelist may be in force and is not to be any more."""
        return [
            report.instance_id
            for report in self._reported
            if report.instance_id not in rows and report.boot == boot_id()
        ]

    def _lasting(self, rows: Mapping[str, Fence]) -> list[FenceReport]:
        return [self._said(instance_id, "", self._fault) for instance_id in self._others(rows)]

    async def _report(self, reports: list[FenceReport]) -> None:
        self._faults = {report.instance_id: report.error for report in reports if report.error}
        if reports != self._reported:
            await self._store.run(self._write, reports)
            self._reported = reports

    # --- Rows: in a thread -----------------------------------------------------------------------

    def _read(self) -> dict[str, Fence]:
        with self._store.read() as tx:
            return {one.instance_id: one for one in fences.every(tx)}

    def _read_reports(self) -> list[FenceReport]:
        with self._store.read() as tx:
            return fences.reports_of_host(tx, self._host_id)

    def _read_processes(self, instance_id: str) -> list[int]:
        with self._store.read() as tx:
            return fences.processes_of(tx, instance_id)

    def _write(self, reports: list[FenceReport]) -> None:
        with self._store.write() as tx:
            fences.report_all(tx, self._host_id, reports)


def _remove_orphans() -> None:
    """What is left of yards that somebody removed by their directory: their addresses may be ours by now."""
    try:
        for table in nft.orphans():
            nft.remove(table)
            log.info("orphan removed", table=table)
    except nft.NftError as error:
        log.warning("orphans not removed", why=str(error))
