"""Runs the service: API and tasks, the agent, or (as `up` does) both in one process."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cacheyard import structs
from cacheyard.agent.agent import Agent
from cacheyard.cli.reach import WILDCARDS, PlainRefused, is_private, reached_at, url
from cacheyard.cli.running import alone, announce
from cacheyard.domain.names import zone_fault, zone_name
from cacheyard.domain.public import pool
from cacheyard.engine import ours, tc
from cacheyard.services.bootstrap import Bootstrap, bootstrap
from cacheyard.services.call import House
from cacheyard.settings import Settings
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

if TYPE_CHECKING:
    from cacheyard.cli.https import Https

log = structlog.get_logger()

GOODBYE_SECONDS = 0.3
# So long a client may say nothing before its connection is closed. Longer than clients keep one for the next
# request (Go 90 s): else that may come just as it is closed, and be lost.
KEEP_ALIVE_SECONDS = 120

Ready = Callable[[Bootstrap, str, str], None]


def serve(settings: Settings, *, api: bool, agent: bool, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once with the first credentials, the endpoint, and the
    file with the authority that clients have to trust, if there is one.

    Raises `AlreadyRuns` when another process does the same on this data directory, `OSError` when a
    port is taken.
    """
    listening: _Listening | None = None
    with ExitStack() as held:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        if api:
            held.enter_context(alone(settings.run, "control"))
            listening = held.enter_context(_listen(settings))
        _check_whole(settings)
        ours.join()
        if api:
            from cacheyard.api import app  # noqa: F401 - for their types, as below
            from cacheyard.tasks import kinds  # noqa: F401
        structs.prepare()
        migrate(settings.database)
        store = Store(settings.database)
        held.callback(store.close)
        sealer = Sealer.of(settings.secret_key)
        first = bootstrap(store, sealer, settings)
        zone = zone_name(settings.dns_zone, first.region)
        if settings.dns_port and (fault := zone_fault(zone)) is not None:
            raise ZoneRefused(zone, fault)
        try:
            pool(settings.public_addresses)
        except ValueError as error:
            raise PublicRefused(str(error)) from None
        if agent and settings.bandwidth_caps and (why := tc.fault()) is not None:
            raise tc.CapError(f"bandwidth_caps is set, but {why}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, store, sealer, first, listening, agent, ready))


class DatabaseLost(Exception):  # noqa: N818 - read as what happened
    """{nodes} has directories of servers, but {database} is gone: put it back, or remove the directories."""

    def __init__(self, settings: Settings) -> None:
        text = type(self).__doc__ or ""
        super().__init__(text.format(nodes=settings.nodes, database=settings.database))


class PublicRefused(Exception):  # noqa: N818 - read as what happened
    """public_addresses cannot be so: {fault}."""

    def __init__(self, fault: str) -> None:
        super().__init__((type(self).__doc__ or "").format(fault=fault))


class ZoneRefused(Exception):  # noqa: N818 - read as what happened
    """dns_zone cannot be {zone}: {fault}."""

    def __init__(self, zone: str, fault: str) -> None:
        super().__init__((type(self).__doc__ or "").format(zone=zone, fault=fault))


class _Listening(NamedTuple):
    """The sockets that clients reach."""

    api: socket.socket
    names: tuple[socket.socket, socket.socket] | None  # UDP and TCP


def _check_whole(settings: Settings) -> None:
    """Without rows every server would be an orphan, to be removed with its data: rather not start."""
    if settings.database.exists() or not settings.nodes.is_dir():
        return
    if any(path.is_dir() for path in settings.nodes.iterdir()):
        raise DatabaseLost(settings)


async def _serve(
    settings: Settings,
    store: Store,
    sealer: Sealer,
    first: Bootstrap,
    listening: _Listening | None,
    agent: bool,
    ready: Ready,
) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(_failed)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as last, AsyncExitStack() as started, asyncio.TaskGroup() as running:
        waits: list[Any] = []
        https: Https | None = None
        if agent:
            local = Agent(settings, store, az_codes=first.az_codes)
            running.create_task(local.run())
            started.push_async_callback(local.stop)
            waits.append(local.ready.wait())
        if listening is not None:
            https = _https(settings, store, sealer)
            server = await _control(settings, first.region, store, sealer, https, started, last)
            serving = running.create_task(server.serve(sockets=[listening.api]))
            started.callback(setattr, server, "should_exit", True)
            waits.append(_started(server, serving))
            if listening.names is not None:
                waits.append(_names(settings, first.region, store, listening.names, started))
        await asyncio.gather(*waits)
        endpoint = ca_file = ""
        if listening is not None:
            endpoint, near, ca_file = _where(settings, https, listening.api.getsockname()[1])
            announce(settings.run, endpoint, near, ca_file)
        ready(first, endpoint, ca_file)
        await stop.wait()
        await started.aclose()


def _failed(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What failed where nobody waits for it, such as in the answer to one query for a name."""
    log.error("failed in the background", what=context["message"], exc_info=context.get("exception"))


def _https(settings: Settings, store: Store, sealer: Sealer) -> "Https | None":
    """What makes the API speak TLS; None: it does not."""
    if not settings.https:
        return None
    from cacheyard.cli.https import Https
    from cacheyard.store.certificates import region_authority

    return Https(settings, lambda: region_authority(store, sealer, settings.data))


def _where(settings: Settings, https: "Https | None", port: int) -> tuple[str, str, str]:
    """The endpoint, the one for this machine, and the file with the authority to trust, if it is ours."""
    own = WILDCARDS.get(settings.host, settings.host)
    if https is None:
        told = reached_at(settings)[0] if settings.host in WILDCARDS else settings.host
        return url("http", told, port), url("http", own, port), ""
    endpoint = url("https", https.host, port)
    if settings.tls_cert:  # it need not be good for another name
        return endpoint, endpoint, ""
    from cacheyard.store.certificates import FILE

    return endpoint, url("https", own, port), str(settings.data / FILE)


async def _control(
    settings: Settings,
    region: str,
    store: Store,
    sealer: Sealer,
    https: "Https | None",
    started: AsyncExitStack,
    last: AsyncExitStack,
) -> "_Server":
    """The API and the task engine behind it; an agent alone does without importing them.

    `last` ends when the last request has been answered.
    """
    from cacheyard.api import audit
    from cacheyard.api.app import application
    from cacheyard.engine import tls
    from cacheyard.services import bandwidth_clock, due
    from cacheyard.services.caretaker import Caretaker
    from cacheyard.store.certificates import region_authority
    from cacheyard.tasks.clock import TICK, Chore, Clock
    from cacheyard.tasks.engine import Engine
    from cacheyard.tasks.kinds import KINDS
    from cacheyard.tasks.tools import Tools

    authority = await store.run(region_authority, store, sealer, settings.data)
    tools = Tools(store, sealer, tls.trust(authority.certificate))
    engine = Engine(tools, KINDS)
    await engine.launch()
    started.push_async_callback(engine.close)
    house = House(settings=settings, region=region, store=store, sealer=sealer, start_task=engine.start)

    async def begin_due(_: Tools) -> None:
        await store.run(due.begin_due, house)

    caretaker = Caretaker(house)

    async def replace_lost(_: Tools) -> None:
        await store.run(caretaker.look)

    async def forget_audit(_: Tools) -> None:
        await store.run(audit.forget, store, settings.audit_days)

    audit_log = audit.AuditLog(store, reads=settings.audit_reads)
    last.push_async_callback(audit_log.close)

    async def end_increases(_: Tools) -> None:
        await store.run(bandwidth_clock.end_increases, house)

    async def follow_policies(_: Tools) -> None:
        await store.run(bandwidth_clock.follow_policies, house)

    chores = [
        Chore("end increases of bandwidth", TICK, end_increases),
        Chore("follow bandwidth policies", bandwidth_clock.LOOK_SECONDS, follow_policies),
        Chore("begin what waits for its window", TICK, begin_due),
        Chore("replace replicas that do not come back", caretaker.seconds, replace_lost),
        Chore("forget what the audit log has kept long enough", 3600.0, forget_audit),
    ]
    if https is not None:

        async def renew(_: Tools) -> None:
            await store.run(https.renew)

        chores.append(Chore("renew the API's certificate", https.look, renew))
    clock = Clock(tools, chores)
    clock.launch()
    started.push_async_callback(clock.close)
    config = uvicorn.Config(
        application(house, engine.ended, audit_log),
        loop="none",
        http=_Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(settings.forwarded_by),
        forwarded_allow_ips=settings.forwarded_by,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        ssl_context_factory=None if https is None else lambda *_: https.context,
    )
    return _Server(config)


async def _names(
    settings: Settings,
    region: str,
    store: Store,
    sockets: tuple[socket.socket, socket.socket],
    started: AsyncExitStack,
) -> None:
    from cacheyard.dns.server import NameServer

    server = NameServer(store, zone_name(settings.dns_zone, region), *sockets)
    started.push_async_callback(server.stop)
    await server.start()


class _Protocol(HttpToolsProtocol):
    """uvicorn's, but at the end a client that has nothing under way need not say goodbye, as TLS has it."""

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: ours end everything in order."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield


async def _started(server: _Server, serving: "asyncio.Task[None]") -> None:
    while not server.started and not serving.done():
        await asyncio.sleep(0.002)


@contextmanager
def _listen(settings: Settings) -> Iterator[_Listening]:
    """What clients reach; bound at once, so that a port that is taken is known before all else."""
    with ExitStack() as held:

        def bound(port: int, kind: socket.SocketKind, why: str) -> socket.socket:
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            here = held.enter_context(socket.socket(family, kind))
            if kind is socket.SOCK_STREAM:  # for datagrams it would let two listen at once
                here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                here.bind((settings.host, port))
            except OSError as error:
                raise OSError(f"cannot {why} at {settings.host}:{port}: {error.strerror}") from None
            if kind is socket.SOCK_STREAM:
                here.listen(1024)
            here.setblocking(False)
            return here

        api = bound(settings.port, socket.SOCK_STREAM, "listen")
        if not (settings.https or settings.insecure_http or is_private(api)):
            raise PlainRefused(settings.host or "any address")
        if not settings.dns_port:
            yield _Listening(api, None)
            return
        why = "answer for names (dns_port)"
        datagrams = bound(settings.dns_port, socket.SOCK_DGRAM, f"{why} by UDP")
        streams = bound(settings.dns_port, socket.SOCK_STREAM, f"{why} by TCP")
        yield _Listening(api, (datagrams, streams))
