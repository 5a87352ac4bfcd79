"""The self-probe: one look-up and one TLS request through the agent's own rules (I3).

It uses a reserved address on loopback and a reserved name, so it works with no route, no resolver and
no registry; a failure means that a client would fail too. TLS is verified against the system's trust
store: a node whose store lacks the CA is not steered. Own sockets, never exempt ones: an exempt probe
would go past the rules it has to prove.
"""

import asyncio
import secrets
import socket
import ssl
from pathlib import Path

from dnslib import DNSRecord

from tidegate_agent.trust import trusted
from tidegate_core.errors import TidegateError
from tidegate_proxy.interception.authority import PROBE_HOST

PROBE_ADDRESS = "127.0.0.74"
TIMEOUT_S = 2.0


class ProbeFailed(TidegateError):
    """A client of this node would fail if it were steered now."""


class Probe:
    """A client of this node that trusts what the system's trust store holds now.

    The store must hold the authority's certificate as it is: an older one would pass for the probe's own
    name, and fail the clients of every host that was configured since.
    """

    def __init__(self, *, trust_bundle: Path | None, certificate_pem: bytes) -> None:
        self._bundle = trust_bundle
        self._certificate_pem = certificate_pem
        self._seen: _Signature = None
        self._context: ssl.SSLContext | None = None

    async def __call__(self) -> None:
        """Pull the probe through DNS and TLS; raises ProbeFailed with the cause and what to type."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await _look_up()
                await _request(await self._trust())
        except TimeoutError as error:
            raise ProbeFailed(f"the agent did not answer its own probe in {TIMEOUT_S:g} s") from error

    def store_changed(self) -> bool:
        """Whether the trust store is another one than the last probe went by. One stat(2)."""
        return _signature(self._bundle) != self._seen

    async def _trust(self) -> ssl.SSLContext:
        if self._bundle is None:
            raise ProbeFailed("no system trust store was found", next_step="tidegate trust status")
        if self._context is None or self.store_changed():
            self._context, self._seen = None, _signature(self._bundle)
            # Reading some hundred certificates takes milliseconds: off the loop.
            read = asyncio.get_running_loop().run_in_executor
            if not await read(None, trusted, self._bundle, self._certificate_pem):
                raise ProbeFailed(
                    "the system trust store does not hold this node's CA as it is now",
                    next_step="sudo tidegate trust install",
                )
            self._context = await read(None, _trusting, self._bundle)
        return self._context


_Signature = tuple[int, int, int] | None


def _signature(bundle: Path | None) -> _Signature:
    try:
        found = bundle.stat() if bundle is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


async def _look_up() -> None:
    loop = asyncio.get_running_loop()
    question = DNSRecord.question(PROBE_HOST)
    question.header.id = secrets.randbits(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect((PROBE_ADDRESS, 53))
            await loop.sock_sendall(sock, question.pack())
            answer = DNSRecord.parse(await loop.sock_recv(sock, 512))
        except OSError as error:
            raise ProbeFailed(f"the responder did not answer the probe: {error}") from error
    found = [str(record.rdata) for record in answer.rr]
    if found != [PROBE_ADDRESS]:
        raise ProbeFailed(f"the responder answered the probe with {found}")


async def _request(context: ssl.SSLContext) -> None:
    try:
        reader, writer = await asyncio.open_connection(
            PROBE_ADDRESS, 443, ssl=context, server_hostname=PROBE_HOST
        )
    except ssl.SSLCertVerificationError as error:
        raise ProbeFailed(
            "the system trust store does not vouch for this node's CA",
            next_step="sudo tidegate trust install",
        ) from error
    except OSError as error:
        raise ProbeFailed(f"the interceptor did not answer the probe: {error}") from error
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {PROBE_HOST}\r\nConnection: close\r\n\r\n".encode())
        status_line = await reader.readline()
    except OSError as error:
        raise ProbeFailed(f"the interceptor cut the probe: {error}") from error
    finally:
        writer.close()
    if not status_line.startswith(b"HTTP/1.1 200 "):
        raise ProbeFailed(f"the interceptor answered the probe with {status_line!r}")


def _trusting(bundle: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=bundle)
    return context
