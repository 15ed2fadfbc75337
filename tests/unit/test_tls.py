"""How servers are told to speak TLS, and how cacheyard connects to one that does, or does not."""

import asyncio
import gc
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from support import rows
from support.servers import ENGINES
from support.waiting import until

from cacheyard.agent.certifier import Certifier
from cacheyard.clock import now_ms
from cacheyard.domain.certificates import Pair, issue, names_in, new_authority
from cacheyard.domain.nodes import Address
from cacheyard.engine import tls
from cacheyard.engine.pipe import Pipe, packed
from cacheyard.engine.redis import Link, RedisError
from cacheyard.engine.redis_conf import INTERNAL_USER, render

SECRET = "internal"
NEW = (7, 0, 15)
NAMES = ("127.64.0.9", "127.64.0.2", "redis-1")
AUTHORITY = new_authority("the region's", now_ms())
TRUST = tls.trust(AUTHORITY.certificate)
ABLE = [engine.binary for engine in ENGINES if engine.tls and engine.version >= (7, 0, 0)]
OFF = {"port": "6379", "tls-port": "0", "tls-cert-file": "", "tls-key-file": "", "tls-key-file-pass": ""}
OFF |= {"tls-ca-cert-file": "", "tls-auth-clients": "no", "tls-replication": "no", "tls-cluster": "no"}
NET = f"127.201.{random.randrange(256)}"  # so that runs side by side do not meet
HERE, ELSEWHERE, NOWHERE = (Address(f"{NET}.{number}", 6379) for number in (1, 2, 3))
# asyncio (3.11) forgets to close a connection whose time is up just when TLS is about to begin on it
link_to = partial(Link, secret=SECRET, user=None, seconds=10.0)


def test_a_port_is_free_before_it_is_the_other_one() -> None:
    plain, encrypted = rows.settings(), rows.settings(tls=NAMES)
    on = tls.changes(encrypted, SECRET, OFF, renewed=False)
    assert list(on)[-2:] == ["port", "tls-port"]
    assert (on["port"], on["tls-port"], on["tls-replication"]) == ("0", "6379", "yes")
    assert "tls-cluster" not in on  # which is no cluster's
    off = tls.changes(plain, SECRET, OFF | on, renewed=False)
    assert list(off)[:2] == ["tls-port", "port"]
    assert OFF | on | off == OFF
    assert (
        tls.changes(rows.settings(tls=NAMES, clustered=True), SECRET, OFF, renewed=False)["tls-cluster"]
        == "yes"
    )


def test_what_is_so_is_left_alone_and_a_new_certificate_is_read_once_more() -> None:
    encrypted = rows.settings(tls=NAMES)
    now = OFF | tls.changes(encrypted, SECRET, OFF, renewed=False)
    assert tls.changes(encrypted, SECRET, now, renewed=False) == {}
    assert tls.changes(encrypted, SECRET, now, renewed=True) == {
        "tls-cert-file": tls.PAIR,
        "tls-key-file": tls.PAIR,
    }
    assert tls.changes(rows.settings(), SECRET, {"port": "6379"}, renewed=False) == {}  # built without


def test_the_port_and_the_secrets_come_through_the_gate_alone() -> None:
    made = render(rows.settings(tls=NAMES), SECRET, NEW, Path("/nodes/1"))
    file, gate = made.file.splitlines(), made.gate.splitlines()
    assert f"tls-key-file-pass {tls.password(SECRET)}" in gate
    assert "tls-port 6379" in gate
    assert not any(line.startswith("port") for line in gate)
    assert "port 0" in file
    assert not any(line.startswith(("tls-port", "tls-key-file-pass")) for line in file)
    assert tls.password(SECRET) not in made.file + made.acl


def test_names_are_of_the_region_and_a_certificate_fits_what_it_was_issued_for() -> None:
    certifier = Certifier(AUTHORITY, "dcs.yard-1.internal", 1.0)
    made = certifier.issue(NAMES).certificate
    assert names_in(made) == {"127.64.0.9", "127.64.0.2", "redis-1.dcs.yard-1.internal"}
    assert certifier.fits(made, NAMES)
    assert not certifier.fits(made, NAMES[:2])
    assert not Certifier(AUTHORITY, "dcs.elsewhere", 1.0).fits(made, NAMES)
    assert not Certifier(new_authority("another", now_ms()), "dcs.yard-1.internal", 1.0).fits(made, NAMES)
    assert not certifier.fits(certifier.issue(NAMES, life=timedelta(0)).certificate, NAMES)


@contextmanager
def servers(directory: Path, pair: Pair) -> Iterator[subprocess.Popen[bytes]]:
    """One with TLS `HERE`, which is given, and one without `ELSEWHERE`."""
    (directory / "pair").write_text(pair.certificate + pair.key)
    (directory / "ca").write_text(AUTHORITY.certificate)
    files = ("--tls-cert-file", "pair", "--tls-key-file", "pair", "--tls-ca-cert-file", "ca")
    ways = {
        HERE: ("--port", "0", "--tls-port", "6379", *files, "--tls-auth-clients", "no"),
        ELSEWHERE: ("--port", "6379"),
    }
    with ExitStack() as stack:
        running = {}
        for address, way in ways.items():
            who = ("--requirepass", SECRET, "--user", INTERNAL_USER, "on", f">{SECRET}", "~*", "&*", "+@all")
            command = [ABLE[-1], "--bind", address.ip, "--save", "", *who, *way]
            server = running[address] = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.kill)
        for address in ways:
            until(
                lambda address=address: asyncio.run(tls.speaks_tls(address)) is not None,  # type: ignore[misc]
                seconds=20,
                what=f"{address.ip} to answer",
            )
        yield running[HERE]


@pytest.mark.skipif(not ABLE, reason="no server here can speak TLS")
def test_a_connection_finds_out_how_a_server_speaks_by_now(tmp_path: Path) -> None:
    async def ping(link: Link) -> None:
        try:
            await link.ping()
        finally:
            await link.close()

    async def tried() -> None:
        assert await tls.speaks_tls(HERE) is True
        assert await tls.speaks_tls(ELSEWHERE) is False
        assert await tls.speaks_tls(NOWHERE) is None
        await ping(link_to(HERE, trust=TRUST))
        await ping(link_to(ELSEWHERE))
        for wrong in (link_to(HERE), link_to(ELSEWHERE, trust=TRUST)):
            with pytest.raises(RedisError):
                await ping(wrong)
        await ping(link_to(HERE, switched=TRUST))
        await ping(link_to(ELSEWHERE, trust=TRUST, switched=TRUST))
        stranger = tls.trust(new_authority("the region's", now_ms()).certificate)
        for untrusting in (
            link_to(HERE, trust=stranger),
            link_to(HERE, trust=stranger, switched=TRUST),
        ):
            with pytest.raises(RedisError, match="CERTIFICATE"):
                await ping(untrusting)

    with servers(tmp_path, issue(AUTHORITY, [HERE.ip], now_ms(), timedelta(hours=1))):
        asyncio.run(tried())


@pytest.mark.skipif(not ABLE, reason="no server here can speak TLS")
def test_a_certificate_that_expired_while_nobody_was_there_can_still_be_renewed(tmp_path: Path) -> None:
    async def tried() -> None:
        async with link_to(HERE, trust=TRUST) as link:
            await link.ping()

    begin = now_ms() - 3_600_000
    with servers(tmp_path, issue(AUTHORITY, [HERE.ip], begin, timedelta(minutes=1))):
        asyncio.run(tried())


@pytest.mark.skipif(not ABLE, reason="no server here can speak TLS")
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_connection_ends_at_once_though_the_server_hangs(tmp_path: Path, kind: str) -> None:
    """What is left open says so when it is collected."""

    async def ended(server: subprocess.Popen[bytes]) -> None:
        one = link_to(HERE, trust=TRUST) if kind == "link" else Pipe(HERE, SECRET, TRUST)
        await (one.ping() if isinstance(one, Link) else one.ask([packed("PING")], 20))
        server.send_signal(signal.SIGSTOP)
        await one.close()

    with servers(tmp_path, issue(AUTHORITY, [HERE.ip], now_ms(), timedelta(hours=1))) as server:
        asyncio.run(ended(server))
        gc.collect()
