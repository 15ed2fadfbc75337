"""HTTPS for the API: the certificate that is shown to clients, and its renewal without a restart.

Called by `serve`. The certificate is issued by the region's authority at each start, and its key is in no
file; or it is the operator's own, and read again when its files change. Each handshake takes the
certificate that is in force then.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import structlog
from cryptography.x509 import ExtensionNotFound

from cacheyard.cli.reach import CertificateRefused, reached_at
from cacheyard.clock import iso, now_ms
from cacheyard.domain import certificates
from cacheyard.domain.certificates import Pair
from cacheyard.settings import Settings

LIFE = timedelta(days=30)  # of a certificate that we issue
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all good

Stamp = tuple[tuple[int, int, int], ...]

log = structlog.get_logger()


class Https:
    """What makes a socket speak TLS 1.2 or 1.3: `context`. Call `renew` every `look` seconds."""

    look = 2.0  # how late it is noticed that another certificate is due or there

    def __init__(self, settings: Settings, authority: Callable[[], Pair]) -> None:
        """`authority` is asked for when a certificate is issued, not with one of the operator's."""
        self._settings = settings
        self._authority = authority
        self._seen: Stamp = ()
        self.certificate = ""  # PEM, of the one in force
        self._current = self._brought() if settings.tls_cert else self._issued(now_ms())
        self.context = _context()
        self.context.sni_callback = self._take_current

    def _take_current(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._current

    @property
    def host(self) -> str:
        """The name by which clients reach us that the certificate has, as far as it can be known."""
        names, mine = certificates.names_in(self.certificate), reached_at(self._settings)
        usable = (name for name in sorted(names) if not name.startswith("*"))
        return next((name for name in mine if name in names), next(usable, mine[0]))

    def renew(self) -> None:
        """Take another certificate if it is time, or if there is one; a bad one is told of, and not taken."""
        if self._settings.tls_cert:
            try:
                if self._stamp() != self._seen:
                    self._current = self._brought()
                    log.info("another certificate", expires=iso(certificates.expires(self.certificate)))
            except CertificateRefused as refused:
                log.warning("the certificate in force is kept", why=str(refused))
            return
        now = now_ms()
        missing = not certificates.names_in(self.certificate).issuperset(reached_at(self._settings))
        if missing or certificates.due(self.certificate, now):
            self._current = self._issued(now)
            log.info("another certificate", expires=iso(certificates.expires(self.certificate)))

    def _issued(self, now: int) -> ssl.SSLContext:
        names = dict.fromkeys((*reached_at(self._settings), "localhost", "127.0.0.1", "::1"))
        try:
            pair = certificates.issue(self._authority(), names, now, LIFE)
        except ValueError as error:  # a name that is none
            raise CertificateRefused("tls_names", error) from None
        context = _context()
        with _in_memory(f"{pair.certificate}{pair.key}") as file:
            context.load_cert_chain(file)
        self.certificate = pair.certificate
        return context

    def _brought(self) -> ssl.SSLContext:
        certificate, key = _files(self._settings)
        context = _context()
        try:
            self._seen = self._stamp()
            context.load_cert_chain(certificate, key, password=_no_password)
            text = certificate.read_text()
            certificates.names_in(text)
        except (OSError, ValueError, ExtensionNotFound) as error:  # ssl.SSLError is an OSError
            raise CertificateRefused(f"{certificate} with the key in {key}", error) from None
        self.certificate = text
        return context

    def _stamp(self) -> Stamp:
        try:
            facts = [file.stat() for file in _files(self._settings)]
        except OSError:
            return ()
        return tuple((fact.st_ino, fact.st_mtime_ns, fact.st_size) for fact in facts)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _files(settings: Settings) -> tuple[Path, Path]:
    """Certificate and key; one file may hold both."""
    certificate = Path(settings.tls_cert).expanduser()
    return certificate, Path(settings.tls_key).expanduser() if settings.tls_key else certificate


def _no_password() -> str:
    raise ValueError("the key must not be encrypted")  # OpenSSL would ask on the terminal


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """The path of a file that is on no disk, for a library that takes only files."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
