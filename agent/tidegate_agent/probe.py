"""The self-probe: look-ups and TLS requests through the agent's own rules (I3).

It uses reserved addresses on loopback and a reserved name, so it works with no route, no resolver and
no registry; a failure means that a client would fail too. TLS is verified against the system's trust
store: a node whose store lacks the CA is not steered. Own sockets, never exempt ones: an exempt probe
would go past the rules it has to prove.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path

from dnslib import DNSError, DNSRecord

from tidegate_agent.trust import trusted
from tidegate_core.errors import TidegateError
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.interception.authority import PROBE_HOST

PROBE_ADDRESS = "127.0.0.74"
TIMEOUT_S = 2.0
_OUT_OF_DATE = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class Failure(StrEnum):
    """What a probe failed of: a metric label, and what `status` says."""

    TRUST = "trust"
    RULES = "rules"
    DNS = "dns"
    TLS = "tls"
    IPV6 = "ipv6"


class ProbeFailed(TidegateError):
    """A client of this node would fail if it were steered now."""

    def __init__(self, cause: str, *, of: Failure, next_step: str = "") -> None:
        super().__init__(cause, next_step=next_step)
        self.of = of


class Probe:
    """A client of this node that trusts what the system's trust store holds now.

    The store must hold one of the authority's certificates that are expected: any other would pass for the
    probe's own name, and fail the clients of every host that was configured since.
    """

    def __init__(
        self, *, trust_bundle: Path | None, certificate_pem: bytes, ipv6: Endpoint | None = None
    ) -> None:
        """`ipv6` is the endpoint to ask over IPv6, where connections over that are redirected."""
        self._bundle = trust_bundle
        self._expected: tuple[bytes, ...] = (certificate_pem,)
        self.held = certificate_pem
        """The certificate that the store held when the probe passed last, the newest of those expected."""
        self._ipv6 = ipv6
        self._seen: _Signature = None
        self._context: ssl.SSLContext | None = None

    async def __call__(self) -> None:
        """Pull the probe through DNS and TLS; raises ProbeFailed with the cause and what to type."""
        async with _in_time("the responder did not answer the probe", Failure.DNS):
            await _look_up()
        context = await self._trust()
        async with _in_time("the interceptor did not answer the probe", Failure.TLS):
            await _request(context, Endpoint.of(PROBE_ADDRESS, 443))
        if self._ipv6 is not None:
            async with _in_time("the interceptor did not answer the probe over IPv6", Failure.IPV6):
                await self._request_over_ipv6(context, self._ipv6)

    def expect(self, certificates_pem: tuple[bytes, ...]) -> None:
        """Pass by any of these, the newest first."""
        self._expected = certificates_pem
        self._context = None

    def store_changed(self) -> bool:
        """Whether the trust store is another one than the last probe went by. One stat(2)."""
        return _signature(self._bundle) != self._seen

    async def _request_over_ipv6(self, context: ssl.SSLContext, endpoint: Endpoint) -> None:
        try:
            await _request(context, endpoint)
        except ProbeFailed as failed:
            raise ProbeFailed(
                f"over IPv6: {failed.cause}",
                of=Failure.IPV6,
                next_step="check that ::1 is on lo: ip -6 address show lo; then restart the agent",
            ) from failed

    async def _trust(self) -> ssl.SSLContext:
        if self._bundle is None:
            cause = "no system trust store was found"
            raise ProbeFailed(cause, of=Failure.TRUST, next_step="tidegate trust status")
        if self._context is None or self.store_changed():
            self._context, self._seen = None, _signature(self._bundle)
            # Reading some hundred certificates takes milliseconds: off the loop.
            read = asyncio.get_running_loop().run_in_executor
            for certificate_pem in self._expected:
                if await read(None, trusted, self._bundle, certificate_pem):
                    break
            else:
                raise ProbeFailed(
                    "the system trust store does not hold this node's CA as it is now",
                    of=Failure.TRUST,
                    next_step="sudo tidegate trust install",
                )
            self._context, self.held = await read(None, _trusting, self._bundle), certificate_pem
        return self._context


_Signature = tuple[int, int, int] | None


def _signature(bundle: Path | None) -> _Signature:
    try:
        found = bundle.stat() if bundle is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


@asynccontextmanager
async def _in_time(cause: str, of: Failure) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise ProbeFailed(f"{cause} in {TIMEOUT_S:g} s", of=of) from error


async def _look_up() -> None:
    loop = asyncio.get_running_loop()
    question = DNSRecord.question(PROBE_HOST)
    question.header.id = secrets.randbits(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect((PROBE_ADDRESS, 53))
            await loop.sock_sendall(sock, question.pack())
            answer = DNSRecord.parse(await loop.sock_recv(sock, 512))
        except ConnectionRefusedError as error:
            # Where a rule rewrites it, not even the refusal of a closed port finds its way back here.
            raise ProbeFailed("the probe's look-up is not redirected any more", of=Failure.RULES) from error
        except (OSError, DNSError) as error:
            raise ProbeFailed(f"the responder did not answer the probe: {error}", of=Failure.DNS) from error
    found = [str(record.rdata) for record in answer.rr]
    if found != [PROBE_ADDRESS]:
        raise ProbeFailed(f"somebody else answered the probe's look-up, with {found}", of=Failure.RULES)


async def _request(context: ssl.SSLContext, endpoint: Endpoint) -> None:
    try:
        reader, writer = await asyncio.open_connection(
            str(endpoint.address), endpoint.port, ssl=context, server_hostname=PROBE_HOST
        )
    except ssl.SSLCertVerificationError as error:
        # The store holds our CA, or we would not be here: the clock is wrong, or another server answered.
        raise ProbeFailed(
            f"the certificate shown to the probe is refused: {error.verify_message}",
            of=Failure.TLS if error.verify_code in _OUT_OF_DATE else Failure.RULES,
            next_step="check the clock: date -u; and who listens: ss -ltnp 'sport = :443'",
        ) from error
    except ConnectionRefusedError as error:
        cause = "the probe's connection is not redirected any more, or nobody accepts it"
        raise ProbeFailed(cause, of=Failure.RULES) from error
    except OSError as error:
        raise ProbeFailed(f"the interceptor did not answer the probe: {error}", of=Failure.TLS) from error
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {PROBE_HOST}\r\nConnection: close\r\n\r\n".encode())
        status_line = await reader.readline()
    except OSError as error:
        raise ProbeFailed(f"the interceptor cut the probe: {error}", of=Failure.TLS) from error
    finally:
        writer.close()
    if not status_line.startswith(b"HTTP/1.1 200 "):
        raise ProbeFailed(f"the interceptor answered the probe with {status_line!r}", of=Failure.TLS)


def _trusting(bundle: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=bundle)
    return context
