"""The servers that tests run against: all that are found, or those in CACHEYARD_ENGINES too."""

from cacheyard.domain.engines import Engine
from cacheyard.engine import find

ENGINES: list[Engine] = find.engines()
assert ENGINES, "no Redis server on this machine: `cacheyard doctor` says how to get one"
BINARIES = [engine.binary for engine in ENGINES]
NEWEST = BINARIES[-1]


def name(binary: str) -> str:
    """A test's suffix: `redis-7.0.15`."""
    return next(f"{engine.name}-{engine.version_text}" for engine in ENGINES if engine.binary == binary)
