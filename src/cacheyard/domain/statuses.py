"""The states of an instance, and what a request that comes at the wrong moment is told.

The status changes inside the request that causes it, by compare-and-set: one task at a time holds
an instance.
"""

from enum import StrEnum


class Status(StrEnum):
    """As the API spells them. DELETING is shown as RUNNING by v2, whose clients know no such state."""

    CREATING = "CREATING"
    CREATEFAILED = "CREATEFAILED"
    RUNNING = "RUNNING"
    ERROR = "ERROR"
    RESTARTING = "RESTARTING"
    EXTENDING = "EXTENDING"
    FLUSHING = "FLUSHING"
    RESTORING = "RESTORING"
    STARTING = "STARTING"
    CLOSING = "CLOSING"
    CLOSED = "CLOSED"
    DELETING = "DELETING"


# The states in which nothing is going on, so that the instance may be deleted.
AT_REST = (Status.RUNNING, Status.ERROR, Status.CREATEFAILED, Status.CLOSED)
