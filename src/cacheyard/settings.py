"""What the operator can choose, with units, defaults and reasons.

Read once at start from `settings.toml` in the data directory and from `CACHEYARD_*` environment
variables (the environment wins), then passed down; nothing reads them from anywhere else.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

LISTEN = "127.0.0.1"
PORT = 7654


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set. `data` is where all state lives; delete it and nothing is left."""

    data: Path
    host: str = LISTEN
    port: int = PORT
    tls: bool = False  # HTTPS, with a certificate of the region's authority unless there is one
    tls_cert: str = ""  # the operator's own, PEM with its chain; HTTPS follows from it
    tls_key: str = ""  # empty: it is in the same file
    tls_names: str = ""  # further names and addresses that clients use, with commas; the first is shown
    insecure_http: bool = False  # plain HTTP also where others than this machine can reach it
    # Addresses, with commas, of HTTP proxies in front: from them X-Forwarded-For and -Proto are believed.
    forwarded_by: str = ""
    region: str = ""  # chosen at first start and then kept; empty: what was kept, or yard-1
    # The slice of 127.0.0.0/8 that instances get their addresses from. Empty: the first free /16 from
    # 127.64.0.0 on, chosen at first start and then kept (two yards on one machine must not share one).
    cidr: str = ""
    # The port, UDP and TCP, where instances' names are answered for. 0: no names, and none are shown.
    dns_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    dns_zone: str = ""  # the zone that the names are in; empty: dcs.<region>.internal
    # Addresses of this machine at which instances may be given public access, by the ids that requests name
    # as load balancers: "front-1=192.0.2.10, front-2=192.0.2.11". Empty: it is refused.
    public_addresses: str = ""
    # How much memory may be promised to instances, as a multiple of what the machine has.
    overcommit: float = 1.0
    instance_quota: int = 200  # instances per project
    memory_quota: int = 8192  # GB per project
    template_quota: int = 100  # custom parameter templates per project
    audit_days: float = 90.0  # how long the audit log keeps an entry
    audit_reads: bool = False  # whether it keeps requests that change nothing too; refusals it always keeps
    token_hours: float = 24.0  # life of a token; the cloud's is 24 h too
    # How long a replica may be away until another takes its place; a crashed one is back in a moment.
    replace_seconds: float = 60.0
    # Whether clients are held to the bandwidth that their instance is shown with. It needs tc, nft and
    # CAP_NET_ADMIN, and puts a queueing discipline on the loopback device that all its traffic goes through.
    bandwidth_caps: bool = False
    increase_hours: float = 168.0  # how long a temporary increase of bandwidth lasts; the cloud's is a week
    increase_pause_hours: float = 24.0  # from its end until the next one
    # How long servers' certificates are valid; a third of that before the end they get others, in use.
    certificate_days: Annotated[float, msgspec.Meta(gt=0, le=3650)] = 365.0
    observe_seconds: float = 2.0  # how often the agent reads INFO of every running server
    drift_seconds: float = (
        60.0  # how often the agent compares the parameters of servers with what they should be
    )
    body_limit: int = 1_048_576  # bytes of a request body; the largest real ones are some KB

    @property
    def https(self) -> bool:
        """Whether the API speaks TLS."""
        return self.tls or bool(self.tls_cert)

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
    def sentinels(self) -> Path:
        """One directory per Sentinel, the agent's alone."""
        return self.data / "sentinels"

    @property
    def proxies(self) -> Path:
        """One directory per proxy, the agent's alone."""
        return self.data / "proxies"

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
