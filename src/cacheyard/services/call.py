"""What every operation is given and may give back. `api.bindings` makes the one and reads the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.domain.identity import Principal
from cacheyard.domain.instances import Instance
from cacheyard.domain.statuses import Status
from cacheyard.settings import Settings
from cacheyard.store import instances
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

DRY_RUN = "X-Dry-Run"  # a header, of the operations that can be tried out

B = TypeVar("B")
A_co = TypeVar("A_co", covariant=True)


@dataclass(frozen=True)
class House:
    """What is there once per process."""

    settings: Settings
    region: str
    store: Store
    sealer: Sealer
    start_task: Callable[[str], None]  # to be called after the transaction that wrote the task's row


@dataclass(frozen=True)
class Call(Generic[B]):
    """One request, parsed and allowed."""

    house: House
    who: Principal
    parameters: dict[str, Any]  # of path and query, as the contract types them
    body: B
    base_url: str  # as the client reached us, without a slash at the end
    headers: Mapping[str, str] = field(default_factory=dict)  # of the request, names in lower case

    @property
    def dry_run(self) -> bool:
        """Whether the caller only wants to know what would happen."""
        return self.parameters.get(DRY_RUN) is True

    @property
    def project_id(self) -> str:
        """The project that the path names, which is the caller's."""
        return str(self.parameters["project_id"])

    def instance(self, tx: Connection, instance_id: str | None = None) -> Instance:
        """The instance of the path (or of that id); somebody else's is as good as none."""
        wanted = instance_id if instance_id is not None else str(self.parameters["instance_id"])
        found = instances.get(tx, wanted)
        if found is None or found.project_id != self.project_id:
            raise errors.NoSuchInstance
        return found


class NoContent(msgspec.Struct, frozen=True):
    """The answer of an operation that answers something as a rule, and had nothing to do."""


@dataclass(frozen=True)
class Begun(Generic[A_co]):
    """An answer whose work a task does; the request waits a little for it to end when `wait` says so."""

    answer: A_co
    task_id: str
    wait: bool = False


_BUSY: dict[Status, type[errors.Busy]] = {
    Status.CREATING: errors.BusyCreating,
    Status.RESTARTING: errors.BusyRestarting,
    Status.STARTING: errors.BusyRestarting,
    Status.EXTENDING: errors.BusyExtending,
    Status.RESTORING: errors.BusyRestoring,
    Status.RUNNING: errors.BusyConfiguring,
}


def busy(instance: Instance) -> errors.Busy:
    """Why an instance cannot be changed now, in one of the codes on which clients wait and try again."""
    if instance.task_id is None:
        return errors.NotRunning(status=instance.status)
    return _BUSY.get(instance.status, errors.Busy)(status=instance.status)
