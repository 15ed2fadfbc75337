"""Certificates: the region's own authority, and what it issues for servers. No I/O.

Keys are of the curve P-256, which every TLS library of the last ten years takes; a handshake with them
costs a server a tenth of what RSA does. Times are epoch milliseconds, as everywhere.
"""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 30 * 365  # clients keep the authority's certificate: it must outlive all that they do
EARLY = timedelta(hours=1)  # clocks of clients may be that slow
LEFT = 3  # a certificate is renewed when one part of so many of its life is left


class Pair(msgspec.Struct, frozen=True):
    """A certificate and its private key, both PEM. The key shows in no repr."""

    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Pair(…)"


def new_authority(name: str, now: int) -> Pair:
    """A certificate authority that signs servers' certificates alone, no further authority's."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key, now, timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
        .sign(key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key, None))


def issue(
    authority: Pair, names: Iterable[str], now: int, life: timedelta, password: str | None = None
) -> Pair:
    """A server's certificate for host names and IP addresses, the first of which it is called by.
    `password`: the key is encrypted with it."""
    signer = serialization.load_pem_private_key(authority.key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 - `new_authority` made it
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    key, alternatives = ec.generate_private_key(ec.SECP256R1()), [_alternative(name) for name in names]
    # a common name has 64 characters at most, and nobody reads it any more where there are alternatives
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(alternatives[0].value)[:64])])
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, issuer.subject, key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
        .sign(signer, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key, password))


def expires(certificate: str) -> int:
    """Until when it is valid."""
    return _ms(_read(certificate).not_valid_after_utc)


def names_in(certificate: str) -> frozenset[str]:
    """The host names and IP addresses that it is for."""
    found = _read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset(str(alternative.value) for alternative in found)


def due(certificate: str, now: int) -> bool:
    """Whether it is time for another, with long enough to go for whoever has to take it."""
    read = _read(certificate)
    begin, end = _ms(read.not_valid_before_utc + EARLY), _ms(read.not_valid_after_utc)
    return end - now < (end - begin) / LEFT


def issued_by(authority: str, certificate: str) -> bool:
    """Whether that authority, and no other of its name, has signed it."""
    try:
        _read(certificate).verify_directly_issued_by(_read(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _read(certificate: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.encode())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: int, life: timedelta
) -> x509.CertificateBuilder:
    begin = datetime.fromtimestamp(now / 1000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - EARLY)
        .not_valid_after(begin + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey, password: str | None) -> str:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, encryption).decode()


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
