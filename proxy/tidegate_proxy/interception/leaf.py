"""What the agent presents to a client that asked for a steered host: a TLS context for each SNI.

RFC 8446 and RFC 5246 through the ssl module; ALPN (RFC 7301) offers `http/1.1` alone, which is what every
registry client speaks. This module issues nothing itself (`authority`) and reads no connection.
"""

import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import serialization

from tidegate_proxy.interception.authority import BACKDATED, Authority

_RENEWED_AFTER = timedelta(days=1)  # of the days that `authority.LEAF_LIFETIME` gives
_MAX_CONTEXTS = 256  # about 20 KiB each; `*.x` lets a client name any number of hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Presented:
    context: ssl.SSLContext
    valid_from: datetime
    renew_at: datetime


class Leaves:
    """TLS contexts by SNI, issued when first asked for, renewed after a day."""

    def __init__(self, authority: Authority, clock: Callable[[], datetime]) -> None:
        self._authority = authority
        self._clock = clock
        self._presented: OrderedDict[str, _Presented] = OrderedDict()

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own, as it is now."""
        return self._authority.certificate_pem

    def replace(self, authority: Authority) -> bool:
        """Issue by this authority from now on, and keep nothing of before; False when it is the same."""
        if authority.certificate_pem == self._authority.certificate_pem:
            return False
        self._authority = authority
        self._presented.clear()
        return True

    def context(self, sni: str) -> ssl.SSLContext:
        """The context for one steered host; raises `TidegateError` for a host that is not steered."""
        now = self._clock()
        presented = self._presented.get(sni)
        if presented is None or not presented.valid_from <= now < presented.renew_at:
            presented = self._presented[sni] = self._present(sni, now)
            if len(self._presented) > _MAX_CONTEXTS:
                self._presented.popitem(last=False)
        self._presented.move_to_end(sni)
        return presented.context

    def _present(self, sni: str, now: datetime) -> _Presented:
        certificate_pem, key = self._authority.issue(sni, now)
        key_pem = key.private_bytes(  # SEC1: OpenSSL loads it faster than PKCS#8
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return _Presented(
            context=server_context(certificate_pem, key_pem),
            valid_from=now - BACKDATED,
            renew_at=now + _RENEWED_AFTER,
        )


def server_context(certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """A TLS 1.2 and 1.3 server context for one certificate and its key.

    The clients that matter (Go's) keep no sessions and connect anew for nearly every request: TLS 1.3
    tickets would be written for nobody. TLS 1.2 keeps its stateless tickets, for without them OpenSSL
    would keep up to 20480 sessions a context in memory.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0
    # The ssl module reads certificates from files only. An anonymous memory file has no name in any file
    # system, is gone with its descriptor, and is never handed to a child.
    fd = os.memfd_create("tidegate-leaf", os.MFD_CLOEXEC)
    try:
        pem = certificate_pem + key_pem
        if os.write(fd, pem) != len(pem):
            raise OSError("a memory file took less than it was given")
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context
