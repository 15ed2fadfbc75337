"""Which names the API's certificate has, and that it is another one before it ends."""

import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from cacheyard.cli import https as module
from cacheyard.cli.https import Https
from cacheyard.cli.reach import CertificateRefused, is_private, reached_at, url
from cacheyard.clock import now_ms
from cacheyard.domain.certificates import expires, names_in, new_authority
from cacheyard.settings import Settings

DAY = 24 * 3600 * 1000
AUTHORITY = new_authority("here", now_ms())


def shown_to_a_client(https: Https, name: str | None = "localhost") -> int:
    """The serial number of the certificate that a client gets; it trusts the authority."""
    wires = [ssl.MemoryBIO() for _ in range(2)]
    client = ssl.create_default_context(cadata=AUTHORITY.certificate)
    client.check_hostname = name is not None
    near = client.wrap_bio(wires[0], wires[1], server_hostname=name)
    far = https.context.wrap_bio(wires[1], wires[0], server_side=True)
    for _ in range(4):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return x509.load_der_x509_certificate(near.getpeercert(binary_form=True) or b"").serial_number


def test_the_certificate_is_another_one_before_the_first_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        then.setattr(module, "now_ms", lambda: now_ms() - 19 * DAY)
        https = Https(Settings(data=tmp_path, tls=True), lambda: AUTHORITY)
    first = shown_to_a_client(https)
    https.renew()
    assert shown_to_a_client(https) == first
    with monkeypatch.context() as then:
        then.setattr(module, "now_ms", lambda: now_ms() - 21 * DAY)
        https = Https(Settings(data=tmp_path, tls=True), lambda: AUTHORITY)
    first, certificate = shown_to_a_client(https), https.certificate
    https.renew()
    assert shown_to_a_client(https) != first
    assert expires(https.certificate) - expires(certificate) > 20 * DAY


def test_a_client_that_names_nobody_gets_it_too(tmp_path: Path) -> None:
    https = Https(Settings(data=tmp_path, tls=True), lambda: AUTHORITY)
    assert shown_to_a_client(https, None) == shown_to_a_client(https)


def test_another_address_of_the_machine_is_in_the_next_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    https = Https(Settings(data=tmp_path, tls=True, host="0.0.0.0"), lambda: AUTHORITY)
    monkeypatch.setattr(module, "reached_at", lambda _: ["10.1.2.3"])
    https.renew()
    assert "10.1.2.3" in names_in(https.certificate)


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("127.0.0.1", "", ["127.0.0.1"]),
        ("0:0::1", "", ["::1"]),
        ("127.0.0.1", "yard.example.com, 10.0.0.1", ["yard.example.com", "10.0.0.1", "127.0.0.1"]),
    ],
)
def test_clients_may_use_the_host_and_the_names_that_were_given(
    tmp_path: Path, host: str, names: str, expected: list[str]
) -> None:
    settings = Settings(data=tmp_path, host=host, tls_names=names)
    assert reached_at(settings) == expected
    assert names_in(Https(settings, lambda: AUTHORITY).certificate) >= {*expected, "localhost"}
    assert Https(settings, lambda: AUTHORITY).host == expected[0]


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateRefused, match="tls_names"):
        Https(Settings(data=tmp_path, tls_names="ümlaut"), lambda: AUTHORITY)


def test_only_loopback_addresses_are_private() -> None:
    found = {}
    for address, family in (
        ("127.9.9.9", socket.AF_INET),
        ("0.0.0.0", socket.AF_INET),
        ("::1", socket.AF_INET6),
    ):
        with socket.socket(family) as here:
            here.bind((address, 0))
            found[address] = is_private(here)
    assert found == {"127.9.9.9": True, "0.0.0.0": False, "::1": True}


def test_addresses_of_six_have_brackets() -> None:
    assert url("https", "::1", 1) == "https://[::1]:1"
    assert url("http", "a.b", 2) == "http://a.b:2"
