"""Which installed server serves a requested engine version.

The API sells versions 4.0 to 7.0; the machine has what it has. A version is served by the nearest
installed server that is not older, and the instance's `internal_version` says which it is.
"""

import msgspec

SOLD = ("4.0", "5.0", "6.0", "7.0")  # engine versions of Redis that the API knows, but 3.0, which it retired


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A server binary that was found and asked."""

    name: str  # redis or valkey
    version: tuple[int, int, int]
    binary: str  # absolute path
    tls: bool

    @property
    def version_text(self) -> str:
        """`7.0.15`."""
        return ".".join(map(str, self.version))


def choose(engines: list[Engine], requested: str) -> Engine | None:
    """The oldest line of engines not older than `requested` (`"6.0"`), of that the newest patch, of equals a
    Redis; None when there is none."""
    if requested not in SOLD:
        return None
    major, minor = (int(part) for part in requested.split("."))
    able = [engine for engine in engines if engine.version >= (major, minor, 0)]
    return min(
        able,
        key=lambda engine: (engine.version[:2], -engine.version[2], engine.name != "redis"),
        default=None,
    )


def newer_patch(engines: list[Engine], running: str) -> Engine | None:
    """The newest patch of the line that `running` (`"7.0.15"`) is of; None when that is the newest."""
    now = version_of(running)
    return max(
        (engine for engine in engines if engine.version[:2] == now[:2] and engine.version > now),
        key=lambda engine: (engine.version, engine.name == "redis"),
        default=None,
    )


def served(engines: list[Engine]) -> frozenset[str]:
    """The versions that can be had with these engines."""
    return frozenset(version for version in SOLD if choose(engines, version) is not None)


def version_of(text: str) -> tuple[int, int, int]:
    """`7.0.15` as numbers."""
    major, minor, patch = (int(part) for part in text.split("."))
    return major, minor, patch
