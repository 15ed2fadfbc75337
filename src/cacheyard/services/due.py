"""What may be asked for now and be done in the maintenance window; whether its time has come."""

from cacheyard.contract.types import MigrateAZRequestBody, ResizeInstanceBody
from cacheyard.services import resizing, scheduled, zones
from cacheyard.services.call import House

_BEGINS: scheduled.Begins = {
    "ResizeInstanceBody": (ResizeInstanceBody, resizing.begin),
    "MigrateAZRequestBody": (MigrateAZRequestBody, zones.begin),
}


def begin_due(house: House) -> None:
    """Begin what waits for a maintenance window that is open."""
    scheduled.begin_due(house, _BEGINS)
