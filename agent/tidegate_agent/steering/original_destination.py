"""Where a connection was going before NAT redirected it (linux/netfilter_ipv4.h, SO_ORIGINAL_DST)."""

import functools
import socket
import struct

from tidegate_proxy.endpoint import Endpoint

_SO_ORIGINAL_DST = 80  # and IP6T_SO_ORIGINAL_DST


def original_destination(sock: socket.socket) -> Endpoint | None:
    """Of an accepted connection; None when it was dialled directly, or is gone already."""
    try:
        original, name = _asked(sock)
        return None if sock.getsockname()[:2] == name else original
    except OSError:
        return None


def _asked(sock: socket.socket) -> tuple[Endpoint, tuple[str, int]]:
    # A dual-stack listener's IPv4 peers look like ::ffff:192.0.2.1; their flow is an IPv4 one.
    if sock.family == socket.AF_INET6 and not sock.getpeername()[0].startswith("::ffff:"):
        return _read_address(sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28))
    return _read_address(sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16))


@functools.lru_cache(maxsize=4096)
def _read_address(data: bytes) -> tuple[Endpoint, tuple[str, int]]:
    """A struct sockaddr_in or sockaddr_in6, as an endpoint and as the socket module would name it."""
    if len(data) == 16:
        address = socket.inet_ntop(socket.AF_INET, data[4:8])
    else:
        address = socket.inet_ntop(socket.AF_INET6, data[8:24])
    port = struct.unpack_from("!H", data, 2)[0]
    return Endpoint.of(address, port), (address, port)
