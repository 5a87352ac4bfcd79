"""The node's own certificate authority, able to vouch for the steered hosts and for nothing else.

RFC 5280 4.2.1.10 (name constraints), 4.2.1.1 and 4.2.1.2 (key identifiers), RFC 7468 (PEM).
Invariant: the key is made on the node, is created 0600 and never leaves its directory.

    <directory>/ca.key   PKCS#8 PEM; the text before it names the machine that the key was made on
    <directory>/ca.pem   the certificate: what trust stores are given

The key is the truth and the certificate follows from it. When the hosts change, the certificate is
reissued with the same key and subject, so anchors already installed keep working for the names they have.
A new key is put in place only after the old certificate is gone: a crash at any point leaves a matching
pair or a key alone, never a pair that does not match, and the next start completes what is missing.

This module does not install trust, does not cache leaves (`leaf`), and revokes nothing.
"""

import errno
import fcntl
import hashlib
import hmac
import os
import pwd
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidegate_core.errors import StartRefused, TidegateError

PROBE_HOST = "probe.tidegate.internal"
"""The name of the agent's own readiness probe; every authority may vouch for it."""

BACKDATED = timedelta(days=1)
"""Nodes boot with wrong clocks: what is signed now was already valid a day ago."""

LEAF_LIFETIME = timedelta(days=7)

_KEY_FILE = "ca.key"
_CERTIFICATE_FILE = "ca.pem"
_LIFETIME = timedelta(days=3650)
_REISSUED_BEFORE_END = timedelta(days=90)
_MACHINE = re.compile(rb"^Machine: ([0-9a-f]{64})$", re.MULTILINE)
_NOWHERE = "invalid"  # RFC 2606: exists in no mailbox and no URI


class Authority:
    """A CA key, its certificate, and the hosts that it may sign leaves for."""

    def __init__(
        self, *, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, hosts: Sequence[str]
    ) -> None:
        self._key = key
        self._hosts = frozenset(hosts)
        # What every leaf has in common, encoded once: a new SNI is met in the middle of a handshake.
        self._leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tidegate")]))
            .issuer_name(certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(_SERVER_AUTH, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
        )
        self.certificate = certificate
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def load_or_create(
        cls, directory: Path, *, hosts: Sequence[str], machine_id: str, now: datetime
    ) -> "Authority":
        """The authority kept in `directory`, made or brought up to date as far as need be.

        `hosts` are names or `*.name`. Raises `StartRefused` when the directory cannot be used, when the key
        in it cannot be read, or when others than its owner could have read it.
        """
        permitted = permitted_names(hosts)
        try:
            with _locked(directory) as folder:
                key = _read_key(directory, folder, machine_id)
                if key is None:
                    key = _make_key(folder, machine_id)
                certificate = _read_certificate(folder)
                if certificate is None or not _is_current(certificate, key, permitted, now):
                    certificate = _certificate(key, permitted, now)
                    pem = certificate.public_bytes(serialization.Encoding.PEM)
                    _put(folder, _CERTIFICATE_FILE, pem, mode=0o644)
        except OSError as error:
            raise _unusable(directory, error) from error
        return cls(key=key, certificate=certificate, hosts=permitted)

    def issue(self, host: str, now: datetime) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
        """A certificate (PEM) for one host, and the key of its own that was made for it.

        Raises `TidegateError` for a host that the name constraints would make every client reject.
        """
        if not any(host == name or host.endswith("." + name) for name in self._hosts):
            raise TidegateError(f"{host} is not among the hosts that this authority may vouch for")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._leaf.public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LEAF_LIFETIME)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), key


def permitted_names(hosts: Sequence[str]) -> tuple[str, ...]:
    """The DNS subtrees that cover `hosts` (`*.x` becomes `x`) and the probe, in a fixed order."""
    return tuple(sorted({host.removeprefix("*.").rstrip(".").lower() for host in (*hosts, PROBE_HOST)}))


_SERVER_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _extensions(
    key: ec.EllipticCurvePrivateKey, permitted: Sequence[str]
) -> tuple[x509.Extension[x509.ExtensionType], ...]:
    """What the CA certificate says.

    RFC 5280 has no way to exclude every mailbox or every URI; permitting only names that cannot exist
    comes to the same. IP addresses can be excluded outright.
    """
    constraints = x509.NameConstraints(
        permitted_subtrees=[
            *(x509.DNSName(name) for name in permitted),
            x509.RFC822Name(_NOWHERE),
            x509.UniformResourceIdentifier(_NOWHERE),
        ],
        excluded_subtrees=[x509.IPAddress(IPv4Network("0.0.0.0/0")), x509.IPAddress(IPv6Network("::/0"))],
    )
    content: tuple[tuple[x509.ExtensionType, bool], ...] = (
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(key_cert_sign=True), True),
        (_SERVER_AUTH, False),
        (constraints, True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    )
    return tuple(x509.Extension(value.oid, critical, value) for value, critical in content)


def _subject(key: ec.EllipticCurvePrivateKey) -> x509.Name:
    """One subject per key: two anchors that share a name but not a key confuse verifiers."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tidegate"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Tidegate node authority {key_id[:16]}"),
        ]
    )


def _certificate(
    key: ec.EllipticCurvePrivateKey, permitted: Sequence[str], now: datetime
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(key))
        .issuer_name(_subject(key))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + _LIFETIME)
    )
    for extension in _extensions(key, permitted):
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(key, hashes.SHA256())


def _is_current(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, permitted: Sequence[str], now: datetime
) -> bool:
    """Whether it says what a new one would say; the subject key identifier ties it to the key."""
    return (
        tuple(certificate.extensions) == _extensions(key, permitted)
        and certificate.subject == _subject(key)
        and certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - _REISSUED_BEFORE_END
    )


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """A descriptor of the directory, made when missing; the agent and `tidegate trust` take turns."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _machine_hash(machine_id: str) -> str:
    """machine-id(5) asks not to store the id itself; this is the keyed hash it recommends."""
    return hmac.new(machine_id.strip().encode(), b"tidegate authority", hashlib.sha256).hexdigest()


def _read_key(directory: Path, folder: int, machine_id: str) -> ec.EllipticCurvePrivateKey | None:
    """The key in place; None when there is none or when it came here from another machine."""
    pem = _get(folder, _KEY_FILE)
    if pem is None:
        return None
    path = directory / _KEY_FILE
    again = f"rm {path}, start again, then: tidegate trust install"
    mode = stat.S_IMODE(os.stat(_KEY_FILE, dir_fd=folder).st_mode)
    if mode & 0o077:
        raise StartRefused(
            f"the authority's key {path} can be read by others (mode {mode:04o})", next_step=again
        )
    made_on = _MACHINE.search(pem)
    if made_on is None or made_on[1].decode() != _machine_hash(machine_id):
        return None
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except ValueError as error:
        raise StartRefused(f"the authority's key {path} is damaged: {error}", next_step=again) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StartRefused(f"the authority's key {path} is not an elliptic-curve key", next_step=again)
    return key


def _make_key(folder: int, machine_id: str) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with suppress(FileNotFoundError):
        os.unlink(_CERTIFICATE_FILE, dir_fd=folder)
        os.fsync(folder)
    _put(folder, _KEY_FILE, f"Machine: {_machine_hash(machine_id)}\n".encode() + pem, mode=0o600)
    return key


def _read_certificate(folder: int) -> x509.Certificate | None:
    """The certificate in place; None when there is none that can be read, for it can be reissued."""
    pem = _get(folder, _CERTIFICATE_FILE)
    if pem is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        _ = certificate.extensions
    except ValueError:
        return None
    return certificate


def _get(folder: int, name: str) -> bytes | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(64 * 1024)


def _put(folder: int, name: str, content: bytes, *, mode: int) -> None:
    """Create the file whole: it is on disk under another name before it takes this one."""
    new = f"{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(new, dir_fd=folder)  # of a start that was cut short
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def _unusable(directory: Path, error: OSError) -> StartRefused:
    cause = f"the authority's directory {directory} cannot be used: {error.strerror or error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StartRefused(cause, next_step=f"make room; see: df -h {directory}")
        case errno.ENOTDIR | errno.EEXIST | errno.ELOOP:
            return StartRefused(cause, next_step=f"move what is in its place away; see: namei -l {directory}")
        case errno.EROFS:
            return StartRefused(cause, next_step="set state_dir to a directory on a writable file system")
    return StartRefused(cause, next_step=f"sudo install -d -m 0755 -o {_user()} {directory}")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
