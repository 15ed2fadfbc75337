"""The region's authority, and what it issues."""

import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cacheyard.clock import now_ms
from cacheyard.domain.certificates import (
    due,
    expires,
    issue,
    issued_by,
    names_in,
    new_authority,
)
from cacheyard.store.certificates import authority_certificate, region_authority
from cacheyard.store.db import Store
from cacheyard.store.migrate import migrate
from cacheyard.store.secrets import Sealer

DAY = 24 * 3600 * 1000
NAMES = ("127.64.0.9", "redis-1.dcs.yard-1.internal", "::1")


def shake_hands(authority: str, pair: tuple[str, str], name: str, directory: Path) -> None:
    """A client that trusts that authority meets a server that has the pair. Strictly."""
    certificate, key = directory / "server.crt", directory / "server.key"
    certificate.write_text(pair[0])
    key.write_text(pair[1])
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cadata=authority)
    server.load_cert_chain(certificate, key)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    wires = [ssl.MemoryBIO() for _ in range(2)]
    ends = [
        client.wrap_bio(wires[0], wires[1], server_hostname=name),
        server.wrap_bio(wires[1], wires[0], server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_trusts_the_authority_trusts_what_it_issued(name: str, tmp_path: Path) -> None:
    authority = new_authority("the region's", now_ms())
    pair = issue(authority, NAMES, now_ms(), timedelta(days=1))
    shake_hands(authority.certificate, (pair.certificate, pair.key), name, tmp_path)
    assert names_in(pair.certificate) == set(NAMES)


def test_a_client_trusts_no_other_authority_and_no_other_name(tmp_path: Path) -> None:
    authority, other = (new_authority("the same name", now_ms()) for _ in range(2))
    pair = issue(authority, NAMES, now_ms(), timedelta(days=1))
    assert issued_by(authority.certificate, pair.certificate)
    assert not issued_by(other.certificate, pair.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(other.certificate, (pair.certificate, pair.key), NAMES[0], tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(authority.certificate, (pair.certificate, pair.key), "127.64.0.10", tmp_path)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    now = now_ms()
    certificate = issue(new_authority("a", now), ["127.0.0.1"], now, timedelta(days=30)).certificate
    assert abs(expires(certificate) - now - 30 * DAY) < 2000
    assert not due(certificate, now)
    assert not due(certificate, now + 20 * DAY - 2000)
    assert due(certificate, now + 20 * DAY + 2000)
    assert due(certificate, now + 31 * DAY)


def test_a_key_that_has_a_password_is_of_no_use_without_it() -> None:
    pair = issue(new_authority("a", now_ms()), ["127.0.0.1"], now_ms(), timedelta(days=1), "secret")
    assert "ENCRYPTED" in pair.key
    assert pair.key not in repr(pair)
    with pytest.raises(TypeError):
        load_pem_private_key(pair.key.encode(), None)
    with pytest.raises(ValueError, match="password"):
        load_pem_private_key(pair.key.encode(), b"another")
    assert load_pem_private_key(pair.key.encode(), b"secret")


def test_a_region_has_one_authority_for_ever(tmp_path: Path) -> None:
    migrate(tmp_path / "rows")
    sealer = Sealer.of(tmp_path / "secret.key")
    first, second = Store(tmp_path / "rows"), Store(tmp_path / "rows")
    try:
        with first.read() as tx:
            assert authority_certificate(tx) is None
        made = region_authority(first, sealer, tmp_path)
        (tmp_path / "ca.crt").unlink()
        assert region_authority(second, sealer, tmp_path) == made
        with first.read() as tx:
            assert authority_certificate(tx) == made.certificate
    finally:
        first.close()
        second.close()
    assert (tmp_path / "ca.crt").read_text() == made.certificate
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.name != "secret.key")
    assert made.key.splitlines()[1].encode() not in kept


def test_openssl_finds_no_fault(tmp_path: Path) -> None:
    authority = new_authority("a", now_ms())
    (tmp_path / "ca.crt").write_text(authority.certificate)
    pair = issue(authority, NAMES, now_ms(), timedelta(days=1))
    (tmp_path / "it.crt").write_text(pair.certificate)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.crt", "it.crt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
