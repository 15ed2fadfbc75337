"""Runs the service: API and tasks, the agent, or (as `up` does) both in one process."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any

import uvicorn
import uvloop

from cacheyard.agent.agent import Agent
from cacheyard.cli.running import alone, announce
from cacheyard.services.bootstrap import Bootstrap, bootstrap
from cacheyard.services.call import House
from cacheyard.settings import Settings
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

Ready = Callable[[Bootstrap, str], None]


def serve(settings: Settings, *, api: bool, agent: bool, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once with the first credentials and the endpoint.

    Raises `AlreadyRuns` when another process does the same on this data directory, `OSError` when the
    port is taken.
    """
    with ExitStack() as held:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        if api:
            held.enter_context(alone(settings.run, "control"))
            listening = held.enter_context(_listen(settings))
        _check_whole(settings)
        migrate(settings.database)
        store = Store(settings.database)
        held.callback(store.close)
        sealer = Sealer.of(settings.secret_key)
        first = bootstrap(store, sealer, settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, store, sealer, first, listening if api else None, agent, ready))


class DatabaseLost(Exception):  # noqa: N818 - read as what happened
    """{nodes} has directories of servers, but {database} is gone: put it back, or remove the directories."""

    def __init__(self, settings: Settings) -> None:
        text = type(self).__doc__ or ""
        super().__init__(text.format(nodes=settings.nodes, database=settings.database))


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
    listening: socket.socket | None,
    agent: bool,
    ready: Ready,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as started, asyncio.TaskGroup() as running:
        waits: list[Any] = []
        if agent:
            local = Agent(settings, store, az_codes=first.az_codes)
            running.create_task(local.run())
            started.push_async_callback(local.stop)
            waits.append(local.ready.wait())
        if listening is not None:
            server = await _control(settings, first.region, store, sealer, started)
            serving = running.create_task(server.serve(sockets=[listening]))
            started.callback(setattr, server, "should_exit", True)
            waits.append(_started(server, serving))
        await asyncio.gather(*waits)
        endpoint = f"http://{settings.host}:{listening.getsockname()[1]}" if listening is not None else ""
        if endpoint:
            announce(settings.run, endpoint)
        ready(first, endpoint)
        await stop.wait()
        await started.aclose()


async def _control(
    settings: Settings, region: str, store: Store, sealer: Sealer, started: AsyncExitStack
) -> "_Server":
    """The API and the task engine behind it; an agent alone does without importing them."""
    from cacheyard.api.app import application
    from cacheyard.tasks.engine import Engine
    from cacheyard.tasks.kinds import KINDS
    from cacheyard.tasks.tools import Tools

    engine = Engine(Tools(store, sealer), KINDS)
    await engine.launch()
    started.push_async_callback(engine.close)
    house = House(settings=settings, region=region, store=store, sealer=sealer, start_task=engine.start)
    config = uvicorn.Config(
        application(house, engine.ended),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: ours end everything in order."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield


async def _started(server: _Server, serving: "asyncio.Task[None]") -> None:
    while not server.started and not serving.done():
        await asyncio.sleep(0.002)


@contextmanager
def _listen(settings: Settings) -> Any:
    """The socket that clients reach; bound at once, so that a port that is taken is known before all else."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            raise OSError(f"cannot listen at {settings.host}:{settings.port}: {error.strerror}") from None
        listening.listen(1024)
        listening.setblocking(False)
        yield listening
