"""The API over HTTPS: clients that verify are content; certificates change while it runs."""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography import x509
from huaweicloudsdkcore.exceptions.exceptions import SslHandShakeException
from huaweicloudsdkdcs import v2 as dcs
from support.caches import made
from support.service import Service
from support.waiting import until

from cacheyard.clock import now_ms
from cacheyard.domain.certificates import Pair, issue, new_authority


@pytest.fixture(scope="module")
def secured() -> Iterator[Service]:
    """A service with a certificate of its region's authority."""
    with Service(CACHEYARD_TLS="true") as running:
        yield running


def where(service: Service) -> tuple[str, int]:
    url = httpx.URL(service.facts.endpoint)
    return url.host, url.port or 0


def shake_hands(service: Service, trust: ssl.SSLContext, name: str | None = None) -> tuple[str, bytes]:
    """The version of TLS and the certificate that a client gets which connects by that name."""
    host, port = where(service)
    with (
        socket.create_connection((host, port), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname=name or host) as link,
    ):
        return str(link.version()), link.getpeercert(binary_form=True) or b""


def serial(service: Service) -> int:
    return x509.load_der_x509_certificate(shake_hands(service, service.trust())[1]).serial_number


# --- clients that trust the region's authority -----------------------------------------------------


@pytest.mark.parametrize("by", ["token", "signature"])
def test_the_official_client_verifies_and_creates_a_cache(secured: Service, by: str) -> None:
    assert secured.facts.endpoint.startswith("https://")
    client = secured.sdk_token() if by == "token" else secured.sdk()
    with made(secured, name=f"by-{by}") as cache:
        found = client.show_instance(dcs.ShowInstanceRequest(instance_id=cache.id))
        assert found.status == "RUNNING"
        with cache.client() as link:
            assert link.ping()


def test_the_official_client_refuses_without_the_authority(secured: Service) -> None:
    builder = dcs.DcsClient.new_builder().with_credentials(secured.sdk().get_credentials())
    client = builder.with_endpoint(secured.facts.endpoint).build()
    with pytest.raises(SslHandShakeException):
        client.list_instances(dcs.ListInstancesRequest())


def test_the_command_line_trusts_its_own_service(secured: Service) -> None:
    assert msgspec.json.decode(secured.command("call", "list_instances", "--json"))["instance_num"] == 0


def test_the_command_line_of_elsewhere_is_told_whom_to_trust(secured: Service) -> None:
    facts = secured.facts
    account = {
        "CACHEYARD_ENDPOINT": facts.endpoint,
        "CACHEYARD_ACCESS_KEY": facts.access_key,
        "CACHEYARD_SECRET_KEY": facts.secret_key,
        "CACHEYARD_PROJECT_ID": facts.project_id,
    }

    def call(**more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "cacheyard", "call", "list_instances", "--json"],
            env={**os.environ, **account, **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert call(CACHEYARD_CA=facts.ca_file).returncode == 0
    untrusting = call()
    assert untrusting.returncode == 1
    assert "certificate verify failed" in untrusting.stderr.lower()


def test_all_addresses_that_clients_are_told_are_https(secured: Service) -> None:
    entries = secured.http("GET", "/v3/auth/catalog").json()["catalog"]
    urls = [endpoint["url"] for entry in entries for endpoint in entry["endpoints"]]
    assert len(urls) > 5
    texts = [secured.http("GET", path).text for path in ("/v3", "/v3/auth/projects", "/v3/projects")]
    assert all(url.startswith(secured.facts.endpoint) for url in urls)
    assert not any("http://" in text for text in texts)
    assert all(secured.facts.endpoint in text for text in texts)


def test_the_certificate_is_good_for_the_names_of_this_machine_alone(secured: Service) -> None:
    assert shake_hands(secured, secured.trust(), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(secured, secured.trust(), "elsewhere.example.com")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(secured: Service, version: ssl.TLSVersion) -> None:
    trust = secured.trust()
    trust.minimum_version = trust.maximum_version = version
    assert shake_hands(secured, trust)[0] == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_tls_is_not(secured: Service) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake_hands(secured, old)


def test_plain_http_gets_no_answer_there(secured: Service) -> None:
    host, port = where(secured)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{host}:{port}/v3", timeout=10)


def test_the_key_is_in_no_file(secured: Service) -> None:
    kept = [file for file in secured.data.rglob("*") if file.is_file() and file.suffix != ".sqlite"]
    assert secured.data / "ca.crt" in kept
    assert not [file for file in kept if b"PRIVATE KEY" in file.read_bytes()]


def test_the_authority_is_the_same_after_a_restart(secured: Service) -> None:
    before = serial(secured)
    secured.restart()
    assert serial(secured) != before  # verified with the authority of before
    assert secured.sdk().list_instances(dcs.ListInstancesRequest()).instance_num == 0


def test_doctor_says_until_when(secured: Service) -> None:
    told = secured.command("doctor")
    [line] = [line for line in told.splitlines() if "certificate" in line]
    assert line.startswith("yes")
    assert "ca.crt" in told


# --- a certificate that the operator brings --------------------------------------------------------


@pytest.fixture
def brought(tmp_path: Path) -> Callable[..., str]:
    """Writes a certificate of somebody else's authority and its key; the serial number it has."""
    authority = new_authority("somebody", now_ms())
    (tmp_path / "ca.pem").write_text(authority.certificate)

    def bring(*names: str, life: timedelta = timedelta(days=365)) -> str:
        pair: Pair = issue(authority, names or ("127.0.0.1",), now_ms(), life)
        (tmp_path / "key.pem").write_text(pair.key)
        (tmp_path / "cert.pem").write_text(pair.certificate)
        return str(x509.load_pem_x509_certificate(pair.certificate.encode()).serial_number)

    return bring


def with_files(tmp_path: Path) -> dict[str, str]:
    return {
        "CACHEYARD_TLS_CERT": str(tmp_path / "cert.pem"),
        "CACHEYARD_TLS_KEY": str(tmp_path / "key.pem"),
        "CACHEYARD_CA": str(tmp_path / "ca.pem"),
    }


def test_another_certificate_is_taken_without_a_restart(
    tmp_path: Path, brought: Callable[..., str], fresh_service: Any
) -> None:
    first = brought("127.0.0.1", "localhost")
    service = fresh_service(**with_files(tmp_path))
    assert service.facts.endpoint.startswith("https://127.0.0.1:")
    assert service.facts.ca_file == ""
    assert str(serial(service)) == first
    assert service.http("GET", "/v2/{p}/instances").status_code == 200  # a connection that stays
    pid = service.pid

    second = brought()
    until(lambda: str(serial(service)) == second, seconds=30, what="the new certificate to be shown")
    assert (service.pid, service.sdk().list_instances(dcs.ListInstancesRequest()).instance_num) == (pid, 0)

    (tmp_path / "cert.pem").write_text("half of a certif")
    until(lambda: "is kept" in service.log(), seconds=30, what="the bad certificate to be told of")
    assert str(serial(service)) == second
    assert service.http("GET", "/v2/{p}/instances").status_code == 200
    third = brought(life=timedelta(days=3))
    until(lambda: str(serial(service)) == third, seconds=30, what="the next good one to be shown")
    assert any(
        line.startswith("no") and "certificate" in line for line in service.command("doctor").splitlines()
    )


# --- where plain HTTP is refused -------------------------------------------------------------------


def start(data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A start that fails."""
    return subprocess.run(
        [sys.executable, "-m", "cacheyard", "up", "--data", str(data), "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_plain_http_is_not_served_to_others_unless_asked_for(tmp_path: Path, host: str) -> None:
    done = start(tmp_path / "data", "--host", host)
    assert done.returncode == 1
    assert "plain HTTP" in done.stderr
    assert "--tls" in done.stderr
    assert "--insecure-http" in done.stderr
    assert not (tmp_path / "data" / "cacheyard.sqlite").exists()


@pytest.mark.parametrize(
    "setting",
    [{"CACHEYARD_INSECURE_HTTP": "true"}, {"CACHEYARD_TLS": "true", "CACHEYARD_TLS_NAMES": "127.0.0.1"}],
)
def test_who_asks_for_it_or_has_tls_is_served_on_all_addresses(
    fresh_service: Any, setting: dict[str, str]
) -> None:
    service = fresh_service(CACHEYARD_HOST="0.0.0.0", **setting)
    assert httpx.URL(service.facts.endpoint).host not in ("0.0.0.0", "")
    assert service.sdk().list_instances(dcs.ListInstancesRequest()).instance_num == 0
    assert msgspec.json.decode(service.command("call", "list_instances", "--json"))["instance_num"] == 0


def test_only_a_proxy_that_is_named_is_believed(fresh_service: Any) -> None:
    front = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.9.8.7", "Host": "yard.example.com"}

    def link(service: Service) -> str:
        shown = service.http("GET", "/v3", headers=front).json()
        return str(shown["version"]["links"][0]["href"])

    service = fresh_service()
    assert link(service) == "http://yard.example.com/v3/"
    service.restart(CACHEYARD_FORWARDED_BY="127.0.0.1")
    assert link(service) == "https://yard.example.com/v3/"


def test_a_certificate_that_cannot_be_used_is_said_at_the_start(
    tmp_path: Path, brought: Callable[..., str]
) -> None:
    missing = start(tmp_path / "data", "--tls-cert", str(tmp_path / "cert.pem"))
    assert (missing.returncode, "cert.pem" in missing.stderr) == (1, True)
    brought()
    without = start(tmp_path / "data", "--tls-cert", str(tmp_path / "cert.pem"))
    assert (without.returncode, "cannot be used" in without.stderr) == (1, True)
    assert "Traceback" not in missing.stderr + without.stderr
