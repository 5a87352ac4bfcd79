"""What the mirror shows: leaves of its own for its names, or the operator's files as they are now."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tidegate_core.errors import StartRefused
from tidegate_proxy.central.mirror_tls import ClientCa, GivenCertificate, OwnCertificate
from tidegate_proxy.interception.authority import Authority
from tidegate_proxy.interception.leaf import Leaves

NAMES = ("central.example.org", "central")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.load_or_create(tmp_path / "ca", hosts=NAMES, machine_id="m", now=now())


def write(authority: Authority, folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = authority.issue(name, now())
    files = folder / "given.pem", folder / "given.key"
    files[0].write_bytes(certificate)
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


def shown_by(server: ssl.SSLContext, authority: Authority) -> str:
    """The name in the certificate that a client is shown."""
    client = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    client.check_hostname = False
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = ends[0].getpeercert()
    assert certificate is not None
    ((_, name),) = certificate["subjectAltName"]
    return str(name)


def test_a_name_gets_its_own_certificate_and_an_unknown_one_is_told(authority: Authority) -> None:
    """T3: the operator learns which name to add; the client is shown a certificate that it will refuse."""
    unknown: list[str] = []
    own = OwnCertificate(Leaves(authority, now), names=NAMES, client_ca=None, unknown=unknown.append)

    assert [shown_by(own.context(name), authority) for name in NAMES] == list(NAMES)
    assert shown_by(own.context(None), authority) == NAMES[0]
    assert unknown == []
    assert shown_by(own.context("other.example"), authority) == NAMES[0]
    assert unknown == ["other.example"]


def test_a_client_ca_is_demanded_of_every_name(authority: Authority, tmp_path: Path) -> None:
    """T8: also of the leaf that replaces a leaf after a day."""
    file = tmp_path / "clients.pem"
    file.write_bytes(authority.certificate_pem)
    own = OwnCertificate(
        Leaves(authority, now), names=NAMES, client_ca=ClientCa(file), unknown=lambda _: None
    )

    assert [own.context(name).verify_mode for name in (*NAMES, None)] == [ssl.CERT_REQUIRED] * 3


def test_given_files_are_read_again_when_they_change_as_long_as_they_are_good(
    authority: Authority, tmp_path: Path
) -> None:
    """T3: certificates are renewed under a process that runs on."""
    complaints: list[str] = []
    certificate, key = write(authority, tmp_path, NAMES[0])
    given = GivenCertificate(certificate, key, client_ca=None, complain=complaints.append)
    assert shown_by(given.context(None), authority) == NAMES[0]

    write(authority, tmp_path, NAMES[1])
    assert shown_by(given.context(None), authority) == NAMES[1]
    assert complaints == []

    certificate.write_text("half a file")
    assert shown_by(given.context(None), authority) == NAMES[1]
    assert len(complaints) == 1


def test_files_that_are_no_good_at_the_start_are_refused(authority: Authority, tmp_path: Path) -> None:
    """DESIGN 9: with the files named."""
    certificate, key = write(authority, tmp_path, NAMES[0])
    key.write_text("")

    with pytest.raises(StartRefused, match=str(certificate)):
        GivenCertificate(certificate, key, client_ca=None, complain=lambda _: None)
