"""What the operator can choose, with units, defaults and reasons.

Read once at start from `settings.toml` in the data directory and from `CACHEYARD_*` environment
variables (the environment wins), then passed down; nothing reads them from anywhere else.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

LISTEN = "127.0.0.1"  # plain HTTP stays on this machine
PORT = 7654


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. `data` is where all state lives; delete it and nothing is left."""

    data: Path
    host: str = LISTEN
    port: int = PORT
    region: str = ""  # chosen at first start and then kept; empty: what was kept, or yard-1
    # The slice of 127.0.0.0/8 that instances get their addresses from. Empty: the first free /16 from
    # 127.64.0.0 on, chosen at first start and then kept (two yards on one machine must not share one).
    cidr: str = ""
    # How much memory may be promised to instances, as a multiple of what the machine has.
    overcommit: float = 1.0
    instance_quota: int = 200  # instances per project
    memory_quota: int = 8192  # GB per project
    token_hours: float = 24.0  # life of a token; the cloud's is 24 h too
    observe_seconds: float = 2.0  # how often the agent reads INFO of every running server
    body_limit: int = 1_048_576  # bytes of a request body; the largest real ones are some KB

    @property
    def database(self) -> Path:
        """The SQLite file with all rows."""
        return self.data / "cacheyard.sqlite"

    @property
    def secret_key(self) -> Path:
        """The key that seals secrets at rest (mode 600)."""
        return self.data / "secret.key"

    @property
    def nodes(self) -> Path:
        """One directory per server process, the agent's alone."""
        return self.data / "nodes"

    @property
    def run(self) -> Path:
        """Pid files of cacheyard itself."""
        return self.data / "run"

    @property
    def log(self) -> Path:
        """The service's log when it runs detached."""
        return self.data / "cacheyard.log"


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/cacheyard`, else `~/.local/state/cacheyard`."""
    state = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "cacheyard"


def load(data: Path, environ: Mapping[str, str] = os.environ, **flags: object) -> Settings:
    """Settings for `data`: defaults, then settings.toml, then the environment, then `flags` not None.

    Raises `msgspec.ValidationError` that names the setting when a value does not fit.
    """
    chosen: dict[str, object] = {}
    file = data / "settings.toml"
    if file.exists():
        chosen.update(tomllib.loads(file.read_text()))
    for name in Settings.__struct_fields__:
        if (value := environ.get(f"CACHEYARD_{name.upper()}")) is not None:
            chosen[name] = value
    chosen.update({name: value for name, value in flags.items() if value is not None})
    chosen["data"] = str(data.expanduser().resolve())
    return msgspec.convert(chosen, Settings, strict=False, dec_hook=_path)


def _path(kind: type, value: object) -> object:
    return Path(str(value)) if kind is Path else value
