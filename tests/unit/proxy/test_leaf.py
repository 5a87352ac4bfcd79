"""What a client gets to see of a leaf, and when it sees a new one."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tidegate_core.errors import TidegateError
from tidegate_proxy.interception.authority import Authority
from tidegate_proxy.interception.leaf import Leaves

START = datetime(2026, 3, 1, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leaves(tmp_path: Path, clock: Clock) -> Leaves:
    authority = Authority.load_or_create(
        tmp_path / "authority", hosts=["ghcr.io", "*.gcr.io"], machine_id="m", now=START
    )
    return Leaves(authority, clock)


def shake(
    context: ssl.SSLContext, prepare: Callable[[ssl.SSLContext], object] | None = None
) -> ssl.SSLObject:
    """A client's side of a handshake with `context`, done; raises what the client or the server raised."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    if prepare is not None:
        prepare(trusting)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return client


def presented(context: ssl.SSLContext) -> x509.Certificate:
    certificate = shake(context).getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate)


def test_a_leaf_names_its_host_alone_and_was_valid_yesterday(leaves: Leaves) -> None:
    """N8: nodes boot with wrong clocks, a day either way does not matter."""
    leaf = presented(leaves.context("eu.gcr.io"))

    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("eu.gcr.io")]
    assert leaf.not_valid_before_utc <= START - timedelta(days=1)
    assert leaf.not_valid_after_utc >= START + timedelta(days=2)


def test_every_leaf_has_a_key_of_its_own(leaves: Leaves, tmp_path: Path) -> None:
    """I7: no leaf key is the authority's, and none is another leaf's."""
    authority = x509.load_pem_x509_certificate((tmp_path / "authority/ca.pem").read_bytes())
    keys = [
        certificate.public_key()
        for certificate in (presented(leaves.context("ghcr.io")), presented(leaves.context("eu.gcr.io")))
    ]

    assert keys[0] != keys[1]
    assert authority.public_key() not in keys


def test_a_context_is_kept_for_a_day_and_renewed_long_before_its_end(leaves: Leaves, clock: Clock) -> None:
    """N8: a leaf is never presented near its end, nor before its beginning when a clock is set back."""
    first = leaves.context("ghcr.io")
    clock.now = START + timedelta(hours=23)
    assert leaves.context("ghcr.io") is first

    clock.now = START + timedelta(hours=25)
    second = leaves.context("ghcr.io")
    assert second is not first
    assert presented(second).not_valid_after_utc > clock.now + timedelta(days=6)

    clock.now = START - timedelta(days=30)
    assert presented(leaves.context("ghcr.io")).not_valid_before_utc < clock.now


def test_the_number_of_contexts_is_bounded(leaves: Leaves) -> None:
    """I8: a client that asks for ever new names below a wildcard pushes out the least used, not the most."""
    wanted = leaves.context("ghcr.io")
    first = leaves.context("h0.gcr.io")
    for number in range(1, 260):
        leaves.context(f"h{number}.gcr.io")
        assert leaves.context("ghcr.io") is wanted

    assert leaves.context("h0.gcr.io") is not first


def test_only_http1_is_offered(leaves: Leaves) -> None:
    """DESIGN 2: HTTP/1.1 in ALPN, also for a client that would rather have HTTP/2."""
    client = shake(leaves.context("ghcr.io"), lambda client: client.set_alpn_protocols(["h2", "http/1.1"]))

    assert client.selected_alpn_protocol() == "http/1.1"


def test_tls_1_2_is_the_least(leaves: Leaves) -> None:
    """TLS 1.2 is served, nothing older is."""
    context = leaves.context("ghcr.io")

    def old(client: ssl.SSLContext) -> None:
        client.maximum_version = ssl.TLSVersion.TLSv1_2

    assert shake(context, old).version() == "TLSv1.2"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_connections_leave_no_sessions_behind(leaves: Leaves) -> None:
    """I8: twenty connections a pull do not grow the agent."""
    context = leaves.context("ghcr.io")
    for _ in range(20):
        shake(context)

    assert context.session_stats()["number"] == 0


def test_no_key_is_left_in_any_file(leaves: Leaves, tmp_path: Path) -> None:
    """I7: a leaf's key exists in memory alone; the authority's directory holds its own pair and no more."""
    open_before = descriptors()
    leaves.context("ghcr.io")

    assert sorted(path.name for path in (tmp_path / "authority").iterdir()) == ["ca.key", "ca.pem"]
    assert descriptors() == open_before


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_host_that_is_not_steered_gets_no_context(leaves: Leaves) -> None:
    """N8: what every client would reject is not presented."""
    with pytest.raises(TidegateError):
        leaves.context("quay.io")
