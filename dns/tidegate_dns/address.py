"""IP addresses as the DNS side sees them: whom to ask, what was learned, and sockets of our own.

Link-local resolvers keep their scope id (RFC 4007 section 11, `fe80::1%eth0`). This module never
decides which address may be steered; that is the steering's business.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

IPAddress = IPv4Address | IPv6Address

Exempt = Callable[[socket.socket], None]
"""Takes a socket out of steering; called before the socket connects or sends (invariant I5)."""

DNS_PORT = 53
_LOOPBACK4 = IPv4Address("127.0.0.1")
_LOOPBACK6 = IPv6Address("::1")


@dataclass(frozen=True, slots=True)
class LearnedAddress:
    """An A or AAAA record of a steered name; the time to live is in seconds."""

    address: IPAddress
    ttl_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """Where the queries to a resolver arrive when the kernel sends them to us: an address of this host."""

    resolver: IPAddress
    address: IPAddress
    """Loopback, or for a resolver on a link this host's own address there, with its scope."""
    udp_port: int
    tcp_port: int

    @property
    def interface(self) -> str:
        """The link of a link-local resolver; empty for every other."""
        return interface_of(self.resolver)


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


async def connect(sock: socket.socket, address: IPAddress, port: int) -> None:
    """Connect a non-blocking TCP socket; raises OSError. uvloop's own sock_connect drops the scope."""
    loop = asyncio.get_running_loop()
    try:
        sock.connect(socket_address(address, port))
        return
    except BlockingIOError:
        ready = asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


def family_of(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def is_on_a_link(address: IPAddress) -> bool:
    """IPv6 link-local: only told apart from its like on other links by its scope (RFC 4291 section 2.5.6)."""
    return address.version == 6 and address.is_link_local


def interface_of(address: IPAddress) -> str:
    """The interface that a scope names, by number or by name; empty without a scope or an interface."""
    scope = address.scope_id if address.version == 6 else None
    if not scope or not scope.isdecimal():
        return scope or ""
    try:
        return socket.if_indextoname(int(scope))
    except OSError:
        return ""


def landing_address(resolver: IPAddress) -> IPAddress:
    """Where queries to this resolver can be sent to us instead: loopback, but for link-local ones.

    A client's socket is bound to the interface of a link-local resolver's scope, from which ::1 is not
    reached (ENETUNREACH). This host's own address on that link is, and what comes from there counts as come
    over that interface (RFC 4007 section 9; ip6_rcv_core of Linux). Raises OSError when there is none.
    """
    if not is_on_a_link(resolver):
        return _LOOPBACK4 if resolver.version == 4 else _LOOPBACK6
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(socket_address(resolver, DNS_PORT))  # sends nothing
        own = sock.getsockname()[0].partition("%")[0]
    address = ip_address(f"{own}%{resolver.scope_id}" if resolver.version == 6 else own)
    if not address.is_link_local:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return address
