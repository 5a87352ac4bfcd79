"""IP addresses as the DNS side sees them: whom to ask, what was learned, and sockets of our own.

Link-local resolvers keep their scope id (RFC 4007 section 11, `fe80::1%eth0`). This module never
decides which address may be steered; that is the steering's business.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

IPAddress = IPv4Address | IPv6Address

Exempt = Callable[[socket.socket], None]
"""Takes a socket out of steering; called before the socket connects or sends (invariant I5)."""

DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class LearnedAddress:
    """An A or AAAA record of a steered name; the time to live is in seconds."""

    address: IPAddress
    ttl_s: int


def socket_address(address: IPAddress, port: int) -> tuple[Any, ...]:
    """What `connect` and `bind` take; raises OSError when the scope names no interface of this host."""
    if address.version == 4:
        return (str(address), port)
    scope = address.scope_id
    if not scope:
        return (str(address), port, 0, 0)
    index = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    return (str(address).partition("%")[0], port, 0, index)


def connected_udp_socket(address: IPAddress, port: int, exempt: Exempt) -> socket.socket:
    """A fresh exempt socket on a source port the kernel picks at random (RFC 5452 section 9.2).

    Being connected, it gets datagrams of that server and port only, and its ICMP errors as OSError.
    """
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        exempt(sock)
        sock.connect(socket_address(address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def exempt_tcp_socket(address: IPAddress, exempt: Exempt) -> socket.socket:
    """An exempt, non-blocking TCP socket that is not connected yet."""
    sock = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        exempt(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def family_of(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def loopback_of(address: IPAddress) -> str:
    """Where the responder listens for the queries of a resolver of this family."""
    return "127.0.0.1" if address.version == 4 else "::1"
