"""All kinds of task, by the change that a request asks for."""

from cacheyard.domain.tasks import Change
from cacheyard.tasks.create import CREATE
from cacheyard.tasks.delete import DELETE
from cacheyard.tasks.engine import Kind
from cacheyard.tasks.power import FLUSH, RESTART, START, STOP
from cacheyard.tasks.reconfigure import RECONFIGURE
from cacheyard.tasks.resize import RESIZE

KINDS: dict[str, Kind] = {
    Change.CREATE: CREATE,
    Change.DELETE: DELETE,
    Change.RESIZE: RESIZE,
    Change.RESTART: RESTART,
    Change.FLUSH: FLUSH,
    Change.STOP: STOP,
    Change.START: START,
    Change.RECONFIGURE: RECONFIGURE,
}
