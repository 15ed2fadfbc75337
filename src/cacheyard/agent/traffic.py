"""Has the kernel of this host hold clients to the bandwidth of their instances, where the settings want that.

Level-triggered: which caps are wanted follows from the rows (`store.caps`). They are compared with what the
kernel has whenever rows change, and every few seconds, as somebody may have changed that, or the machine was
started anew. What could not be put in force is reported, and tried again. Caps outlive the agent, as the
servers do; a file says that there may be some, so that they are found and removed when none are wanted.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from cacheyard.agent.loops import forever
from cacheyard.domain.caps import Cap, digest
from cacheyard.engine import tc
from cacheyard.settings import Settings
from cacheyard.store import caps
from cacheyard.store.caps import SeenCaps
from cacheyard.store.db import Store
from cacheyard.waiting import happens

log = structlog.get_logger()

POLL_SECONDS = 0.1  # how often to ask whether another process has written
SHARE = 4  # after a look at the rows, rest so many times as long
VERIFY_SECONDS = 5.0  # how often to look whether somebody has changed what is in force
AGAIN_SECONDS = 2.0  # after a failure

Wanted = dict[str, tuple[Cap, ...]]  # by instance


class Traffic:
    """`run` until it is cancelled; what is in force stays so."""

    def __init__(self, store: Store, settings: Settings, host_id: str) -> None:
        self._store = store
        self._settings = settings
        self._host_id = host_id
        self._region = ""  # the slice whose addresses are held to nothing among themselves
        self._in_force: Wanted | None = None  # None: not known
        self._reported: list[SeenCaps] | None = None
        self._version = -1
        self._due = 0.0  # when to compare with what the kernel has, whatever the rows say
        self.ready = asyncio.Event()  # what the rows say has been tried

    async def run(self) -> None:
        """The loop."""
        if not self._settings.bandwidth_caps:
            await self._end()
            return
        with self._store.changes() as self._happened:
            await forever(self._turn, "traffic")

    async def _end(self) -> None:
        """Nothing is wanted any more."""
        await asyncio.to_thread(remove, self._settings)
        self.ready.set()

    async def _turn(self) -> None:
        began, version = time.monotonic(), self._store.data_version()
        if self._happened.is_set() or version != self._version or began >= self._due:
            self._happened.clear()
            self._version = version
            await self._look(await self._store.run(self._read))
            self.ready.set()
        await asyncio.sleep(SHARE * (time.monotonic() - began))
        await happens(self._happened, POLL_SECONDS)

    async def _look(self, wanted: Wanted) -> None:
        if wanted == self._in_force and time.monotonic() < self._due:
            return
        began, why = time.monotonic(), None
        try:
            changed = await asyncio.to_thread(apply, self._settings, self._region, wanted)
        except tc.CapError as error:
            self._in_force, why, changed = None, str(error), False
            log.warning("caps not in force", why=why)
        else:
            self._in_force = wanted
        self._due = time.monotonic() + (VERIFY_SECONDS if why is None else AGAIN_SECONDS)
        if changed:
            took = round((time.monotonic() - began) * 1000, 1)
            log.info("caps in force", instances=len(wanted), took_ms=took)
        await self._report(
            [
                SeenCaps(
                    host_id=self._host_id,
                    instance_id=instance_id,
                    digest=digest(found) if why is None else "",
                    error=why,
                )
                for instance_id, found in wanted.items()
            ]
        )

    async def _report(self, seen: list[SeenCaps]) -> None:
        if seen != self._reported:
            await self._store.run(self._write, seen)
            self._reported = seen

    def _read(self) -> Wanted:
        with self._store.read() as tx:
            self._region = caps.region(tx)
            return caps.of_host(tx, self._host_id)

    def _write(self, seen: list[SeenCaps]) -> None:
        with self._store.write() as tx:
            caps.report(tx, self._host_id, seen)


def apply(settings: Settings, region: str, wanted: Mapping[str, tuple[Cap, ...]]) -> bool:
    """Have these in force; whether anything had to be changed. Raises `tc.CapError`."""
    mark = _mark(settings)
    if wanted:
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch(mode=0o600)
    changed = tc.apply(settings.data, region, [cap for found in wanted.values() for cap in found])
    if not wanted:
        mark.unlink(missing_ok=True)
    return changed


def remove(settings: Settings) -> None:
    """Take away what may be in force; where that cannot be, say so."""
    if _mark(settings).exists():
        try:
            apply(settings, "", {})
        except tc.CapError as error:
            log.warning("caps are still in force", why=str(error))


def _mark(settings: Settings) -> Path:
    return settings.run / "caps"
