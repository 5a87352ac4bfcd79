"""The authority as verifiers see it, and its directory as a crash, a copy or a stranger may leave it."""

import functools
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidegate_core.errors import StartRefused, TidegateError
from tidegate_proxy.interception.authority import PROBE_HOST, Authority
from tidegate_proxy.interception.leaf import server_context

_run = functools.partial(subprocess.run, check=False, capture_output=True, timeout=20)

HOSTS = ("ghcr.io", "*.gcr.io")
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}'


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def load(
    directory: Path, *, hosts: Sequence[str] = HOSTS, machine_id: str = "m1", at: datetime | None = None
) -> Authority:
    return Authority.load_or_create(directory, hosts=hosts, machine_id=machine_id, now=at or now())


@pytest.fixture
def directory() -> Iterator[Path]:
    """Below a parent that every user may enter, so that only its own mode decides."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(parent) / "authority"


# What each client's verifier says. Each takes the anchor, a leaf, its key, and the name that was asked for.


def openssl(anchor: Path, leaf: bytes, key: bytes, name: str) -> str:
    """Empty when accepted, else the reason."""
    kind = "-verify_hostname" if _is_name(name) else "-verify_ip"
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        str(anchor),
        kind,
        name,
    ]
    done = _run(command, input=leaf)
    return "" if done.returncode == 0 else done.stderr.decode()


def gnutls(anchor: Path, leaf: bytes, key: bytes, name: str) -> str:
    command = ["certtool", "--verify", "--load-ca-certificate", str(anchor), "--verify-hostname", name]
    done = _run(command, input=leaf)
    return "" if done.returncode == 0 else done.stdout.decode()


def python(anchor: Path, leaf: bytes, key: bytes, name: str) -> str:
    context = ssl.create_default_context(cafile=str(anchor))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context(leaf, key).wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


def curl(anchor: Path, leaf: bytes, key: bytes, name: str) -> str:
    with _tunnel(leaf, key) as proxy:
        command = ["curl", "-sS", "-q", "-x", proxy, "--cacert", str(anchor), f"https://{name}/v2/"]
        done = _run(command, env={"PATH": os.environ["PATH"]})
    return "" if done.returncode == 0 else done.stderr.decode()


def skopeo(anchor: Path, leaf: bytes, key: bytes, name: str) -> str:
    """Go's verifier."""
    with _tunnel(leaf, key) as proxy:
        environment = {"PATH": os.environ["PATH"], "HTTPS_PROXY": proxy, "SSL_CERT_FILE": str(anchor)}
        environment |= {"SSL_CERT_DIR": "/nonexistent", "HOME": str(anchor.parent)}
        command = ["skopeo", "inspect", "--raw", f"docker://{name}/library/some:tag"]
        done = _run(command, env=environment)
    return "" if done.stdout == MANIFEST else done.stderr.decode()


VERIFIERS = {"openssl": openssl, "certtool": gnutls, "python3": python, "curl": curl, "skopeo": skopeo}


def _is_name(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return True
    return False


@contextmanager
def _tunnel(leaf: bytes, key: bytes) -> Iterator[str]:
    """An HTTP CONNECT proxy that is every host itself, under one leaf: clients need no DNS to meet it."""
    context = server_context(leaf, key)

    def answer(plain: socket.socket) -> None:
        with plain:
            _head(plain.recv)
            plain.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with context.wrap_socket(plain, server_side=True) as tls:
                _head(tls.recv)
                kind = b"Content-Type: application/vnd.oci.image.manifest.v1+json\r\n"
                length = f"Content-Length: {len(MANIFEST)}\r\n".encode()
                tls.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + kind + length + b"\r\n" + MANIFEST)

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                answer(plain)
            except OSError:
                continue  # a client that rejects us hangs up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _head(receive: Callable[[int], bytes]) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += (more := receive(4096))
        if not more:
            raise ConnectionResetError


@pytest.fixture(params=VERIFIERS)
def verify(request: pytest.FixtureRequest) -> Callable[[Path, bytes, bytes, str], str]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return VERIFIERS[request.param]


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def forge(
    issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey, *names: x509.GeneralName
) -> tuple[bytes, bytes]:
    """A leaf for any names at all, as whoever stole the key would make it."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = [digital_signature := True] + [not digital_signature] * 8
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Thief")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(*usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return leaf.public_bytes(serialization.Encoding.PEM), pem_of(key)


def key_in(directory: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


@pytest.mark.parametrize("host", ["ghcr.io", "eu.gcr.io", PROBE_HOST])
def test_every_verifier_accepts_a_leaf_for_a_steered_host(
    directory: Path, verify: Callable[[Path, bytes, bytes, str], str], host: str
) -> None:
    """N3, N8: what is steered is vouched for, strictly read."""
    leaf, key = load(directory).issue(host, now())

    assert verify(directory / "ca.pem", leaf, pem_of(key), host) == ""


GHCR = x509.DNSName("ghcr.io")
FORBIDDEN: dict[str, tuple[str, *tuple[x509.GeneralName, ...]]] = {
    "another host": ("quay.io", x509.DNSName("quay.io")),
    "a host that ends alike": ("evilghcr.io", x509.DNSName("evilghcr.io")),
    "an IPv4 address": ("192.0.2.1", x509.IPAddress(ip_address("192.0.2.1"))),
    "an IPv6 address": ("[2001:db8::1]", x509.IPAddress(ip_address("2001:db8::1"))),
    "a steered host and another": ("ghcr.io", GHCR, x509.DNSName("quay.io")),
    "a steered host and an address": ("ghcr.io", GHCR, x509.IPAddress(ip_address("192.0.2.1"))),
    "a steered host and an IPv6 address": ("ghcr.io", GHCR, x509.IPAddress(ip_address("2001:db8::1"))),
    "a steered host and a mailbox": ("ghcr.io", GHCR, x509.RFC822Name("root@quay.io")),
    "a steered host and a URI": ("ghcr.io", GHCR, x509.UniformResourceIdentifier("https://quay.io/")),
}


LIMITS = {
    ("skopeo", "an IPv6 address"): "an image reference cannot hold an IPv6 literal",
    ("certtool", "a steered host and a URI"): "GnuTLS does not enforce constraints on URIs",
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_every_verifier_rejects_what_a_stolen_key_signs_for_others(
    directory: Path,
    verify: Callable[[Path, bytes, bytes, str], str],
    case: str,
    request: pytest.FixtureRequest,
) -> None:
    """N8, I7: the name constraints hold, whoever has the key; without them the same leaf is accepted."""
    verifier = request.node.callspec.params["verify"]
    if limit := LIMITS.get((verifier, case)):
        pytest.skip(f"{verifier}, {case}: {limit}")
    asked, *names = FORBIDDEN[case]
    name = asked if verify in (curl, skopeo) else asked.strip("[]")
    authority = load(directory)
    leaf, key = forge(authority.certificate, key_in(directory), *names)
    anchor, unbound_key = unbound(directory)
    unbound_leaf, unbound_leaf_key = forge(
        x509.load_pem_x509_certificate(anchor.read_bytes()), unbound_key, *names
    )

    assert verify(directory / "ca.pem", leaf, key, name) != ""
    assert verify(anchor, unbound_leaf, unbound_leaf_key, name) == ""


def unbound(directory: Path) -> tuple[Path, ec.EllipticCurvePrivateKey]:
    """An anchor like ours but for the name constraints."""
    key = ec.generate_private_key(ec.SECP256R1())
    ours = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Unbound")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ours.not_valid_before_utc)
        .not_valid_after(ours.not_valid_after_utc)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for extension in ours.extensions:
        if not isinstance(extension.value, x509.NameConstraints | x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    anchor = directory / "unbound.pem"
    anchor.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return anchor, key


def test_it_does_not_issue_for_a_host_that_is_not_steered(directory: Path) -> None:
    """N8: a leaf that every client would reject is not made."""
    with pytest.raises(TidegateError, match=r"quay\.io is not among"):
        load(directory).issue("quay.io", now())


def test_the_key_is_readable_by_its_owner_alone(directory: Path) -> None:
    """I7: 0600 from its first moment, whatever the umask."""
    before = os.umask(0)
    try:
        load(directory)
    finally:
        os.umask(before)

    assert stat.S_IMODE((directory / "ca.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in directory.iterdir()) == ["ca.key", "ca.pem"]


def test_a_second_start_changes_nothing(directory: Path) -> None:
    """N8: the anchor that was installed stays the anchor."""
    first = load(directory)
    constraints = first.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    names = [name.value for name in constraints.permitted_subtrees or () if isinstance(name, x509.DNSName)]

    assert load(directory, hosts=tuple(reversed(HOSTS))).certificate == first.certificate
    assert names == sorted(names)


def test_other_hosts_are_reissued_under_the_same_key_and_subject(directory: Path, tmp_path: Path) -> None:
    """N8: an old anchor keeps vouching for its old names, and only for them."""
    old = load(directory)
    old_anchor = tmp_path / "old.pem"
    old_anchor.write_bytes(old.certificate_pem)
    new = load(directory, hosts=("ghcr.io", "quay.io"))
    kept_leaf, kept_key = new.issue("ghcr.io", now())
    added_leaf, added_key = new.issue("quay.io", now())

    assert new.certificate.subject == old.certificate.subject
    assert new.certificate.public_key() == old.certificate.public_key()
    assert openssl(old_anchor, kept_leaf, pem_of(kept_key), "ghcr.io") == ""
    assert openssl(directory / "ca.pem", added_leaf, pem_of(added_key), "quay.io") == ""
    assert "permitted subtree violation" in openssl(old_anchor, added_leaf, pem_of(added_key), "quay.io")


def test_a_key_from_another_machine_is_replaced(directory: Path) -> None:
    """N8: nodes made from one golden image do not share an authority."""
    image = load(directory, machine_id="golden")
    node = load(directory, machine_id="node")

    assert node.certificate.public_key() != image.certificate.public_key()
    assert node.certificate.subject != image.certificate.subject
    assert b"golden" not in (directory / "ca.key").read_bytes()


LEFT_BY_A_CRASH: dict[str, Callable[[Path], object]] = {
    "nothing but the directory": lambda directory: [path.unlink() for path in directory.iterdir()],
    "a key and no certificate": lambda directory: (directory / "ca.pem").unlink(),
    "a certificate and no key": lambda directory: (directory / "ca.key").unlink(),
    "a half-written key": lambda directory: (directory / "ca.key").rename(directory / "ca.key.new"),
    "a half-written certificate": lambda directory: (directory / "ca.pem.new").write_bytes(b"-----BEG"),
    "a certificate cut short": lambda directory: (directory / "ca.pem").write_bytes(b"-----BEG"),
    "somebody else's certificate": lambda directory: shutil.copy(unbound(directory)[0], directory / "ca.pem"),
}


@pytest.mark.parametrize("leave", LEFT_BY_A_CRASH.values(), ids=LEFT_BY_A_CRASH.keys())
def test_a_half_made_directory_is_completed_with_a_matching_pair(
    directory: Path, leave: Callable[[Path], object]
) -> None:
    """I7: whatever a crash left, the next start has a key and the certificate that belongs to it."""
    load(directory)
    leave(directory)
    authority = load(directory)
    leaf, key = authority.issue("ghcr.io", now())

    assert authority.certificate.public_key() == key_in(directory).public_key()
    assert (directory / "ca.pem").read_bytes() == authority.certificate_pem
    assert openssl(directory / "ca.pem", leaf, pem_of(key), "ghcr.io") == ""


def test_a_start_killed_at_any_moment_leaves_no_pair_that_does_not_match(directory: Path) -> None:
    """I7: every state on disk between two system calls, as an observer of the directory sees it."""
    load(directory, machine_id="golden")
    states: list[tuple[bytes | None, bytes | None]] = []
    for step in range(40):
        copy = directory.with_name(f"copy{step}")
        shutil.copytree(directory, copy)
        finished = _killed_after(copy, step)
        pair = [path.read_bytes() if path.exists() else None for path in (copy / "ca.key", copy / "ca.pem")]
        states.append((pair[0], pair[1]))
        if finished:
            break

    assert 5 < len(states) < 40
    for key, certificate in states:
        if key is not None and certificate is not None:
            public = serialization.load_pem_private_key(key, password=None).public_key()
            assert x509.load_pem_x509_certificate(certificate).public_key() == public


def _killed_after(directory: Path, calls: int) -> bool:
    """Start on a copied node in a child that ends itself, without clean-up, after so many changes."""
    child = os.fork()
    if child == 0:
        left = calls

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
            if event in ("os.rename", "os.remove") or writes:
                if left == 0:
                    os._exit(1)
                left -= 1

        sys.addaudithook(audit)
        load(directory, machine_id="node")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_authority_near_its_end_or_from_the_future_is_reissued(directory: Path) -> None:
    """N8: nodes boot with wrong clocks and live for years; the key stays."""
    first = load(directory, at=now() + timedelta(days=400))
    corrected = load(directory)
    late = load(directory, at=now() + timedelta(days=3600))

    assert corrected.certificate.not_valid_before_utc < now()
    assert late.certificate.not_valid_after_utc > now() + timedelta(days=4000)
    assert first.certificate.public_key() == late.certificate.public_key()


def test_a_key_that_others_could_read_is_refused(directory: Path) -> None:
    """I7: a key that may be known is not used, and the way out is named."""
    load(directory)
    (directory / "ca.key").chmod(0o644)

    with pytest.raises(StartRefused, match=r"can be read by others(?s:.)*rm .*ca\.key"):
        load(directory)


def test_a_damaged_key_is_refused_and_not_replaced_behind_the_back_of_those_who_trust_it(
    directory: Path,
) -> None:
    """I7: a new key would break every client that trusts the old one; that is for a person to decide."""
    load(directory)
    key = directory / "ca.key"
    key.write_bytes(key.read_bytes()[:150])

    with pytest.raises(StartRefused, match=r"damaged(?s:.)*tidegate trust install"):
        load(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_a_directory_that_cannot_be_written_says_what_to_type(directory: Path) -> None:
    """Issue 2, unwritable directory: refuse to start, and name the next step."""
    directory.mkdir(mode=0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(StartRefused, match=r"Permission denied(?s:.)*sudo install -d .*authority"):
            load(directory)
    finally:
        os.seteuid(0)


def test_a_file_where_the_directory_belongs_says_what_to_type(directory: Path) -> None:
    """Issue 2, unwritable directory: the cause is told apart."""
    directory.write_text("not a directory")

    with pytest.raises(StartRefused, match=r"move what is in its place"):
        load(directory)
