"""The certificates of the lab's internet: a CA that nodes are told to trust, a server leaf, a token signer.

The token key signs what docker-registry's token authentication expects (RS256, certificate in x5c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate (its chain behind it, the anchor left out) and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA of the lab. `anchor` is what a trust store gets."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.anchor: bytes = self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def identity(self) -> Identity:
        """The CA itself, for software that signs by it."""
        return Identity(certificate=self.anchor, key=_pem(self._key))

    def client(self, name: str) -> Identity:
        """A TLS client identity of this name."""
        return self._leaf([name], ExtendedKeyUsageOID.CLIENT_AUTH)

    def server(self, hosts: Sequence[str]) -> Identity:
        """A TLS server identity for these names."""
        return self._leaf(hosts, ExtendedKeyUsageOID.SERVER_AUTH)

    def _leaf(self, hosts: Sequence[str], usage: x509.ObjectIdentifier) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])]), self._name, key.public_key()
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return Identity(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=_pem(key))


def token_signer() -> Identity:
    """A self-signed RSA identity for the token service."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab token service")])
    certificate = _builder(name, name, key.public_key()).sign(key, hashes.SHA256())
    return Identity(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=30))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
