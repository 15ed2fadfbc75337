"""What was changed of an instance's parameters, and what became of it."""

from enum import StrEnum

import msgspec


class ConfigStatus(StrEnum):
    """As clients spell it, of one change and of an instance's parameters as a whole."""

    UPDATING = "UPDATING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


class Changed(msgspec.Struct, frozen=True):
    """One parameter of a change."""

    id: str
    name: str
    old: str
    new: str


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `config_histories`."""

    id: str
    instance_id: str
    task_id: str
    status: ConfigStatus
    created_at: int
    ended_at: int | None = None
    changes: list[Changed]
