"""This host's bridges with nothing but containers on them (rtnetlink(7)).

A bridge counts when each of its ports is a veth or a tap, it has an address of this host, and the way to the
outside does not lead over it: a bridge with the host's own cable on it would let strangers in. Machines of
libvirt and the like are behind such bridges as containers are. Pods of network plugins that route, as Calico
and Cilium do, are behind none.
"""

import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from tidegate_agent.steering.netlink import attributes

_NETLINK_ROUTE = 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_DONE, _NLMSG_ERROR = 3, 2
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _INFO_KIND = 3, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTN_UNICAST, _RT_TABLE_MAIN = 4, 1, 254
_IFF_UP = 0x1
_OF_CONTAINERS = ("veth", "tun")
_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR

Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface; `kind` is "" for what is none of the kernel's own making, such as a network card."""

    index: int
    name: str
    kind: str
    master: int
    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A bridge, and this host's addresses on it with their networks."""

    index: int
    name: str
    addresses: tuple[Interface, ...]

    def __str__(self) -> str:
        return self.name


def bridges_of(
    links: Iterable[Link], addresses: Iterable[tuple[int, Interface]], uplinks: Iterable[int]
) -> tuple[Bridge, ...]:
    """The bridges that count; `uplinks` are the interfaces of default routes."""
    links, outside = tuple(links), frozenset(uplinks)
    ports: defaultdict[int, list[Link]] = defaultdict(list)
    for link in links:
        if link.master:
            ports[link.master].append(link)
    found = []
    for link in links:
        if link.kind != "bridge" or not link.up or link.index in outside:
            continue
        here = tuple(a for index, a in addresses if index == link.index and not a.ip.is_link_local)
        if here and all(port.kind in _OF_CONTAINERS for port in ports[link.index]):
            found.append(Bridge(index=link.index, name=link.name, addresses=here))
    return tuple(found)


class Bridges:
    """Reads them, and tells when they may have changed."""

    def __init__(self) -> None:
        """Raises OSError without rtnetlink."""
        self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._news.bind((0, _GROUPS))
        self._news.setblocking(False)

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._news.fileno()

    def forget_news(self) -> None:
        """All that has happened so far is going to be looked at."""
        try:
            while self._news.recv(1 << 16):
                pass
        except OSError:  # nothing more, or more than fitted
            return

    def read(self) -> tuple[Bridge, ...]:
        """The bridges that count now; raises OSError."""
        return bridges_of(
            parse_links(dump(_RTM_GETLINK, _RTM_NEWLINK, _IFINFO.pack(0, 0, 0, 0, 0))),
            tuple(parse_addresses(dump(_RTM_GETADDR, _RTM_NEWADDR, _IFADDR.pack(0, 0, 0, 0, 0)))),
            parse_uplinks(dump(_RTM_GETROUTE, _RTM_NEWROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))),
        )

    def close(self) -> None:
        self._news.close()


def parse_links(messages: Iterable[bytes]) -> Iterator[Link]:
    for message in messages:
        _, _, index, flags, _ = _IFINFO.unpack_from(message)
        told = dict(attributes(message[_IFINFO.size :]))
        kind = dict(attributes(told.get(_IFLA_LINKINFO, b""))).get(_INFO_KIND, b"")
        yield Link(
            index=index,
            name=told.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            kind=kind.rstrip(b"\0").decode(errors="replace"),
            master=int.from_bytes(told.get(_IFLA_MASTER, b"\0"), "little"),
            up=bool(flags & _IFF_UP),
        )


def parse_addresses(messages: Iterable[bytes]) -> Iterator[tuple[int, Interface]]:
    for message in messages:
        _, length, _, _, index = _IFADDR.unpack_from(message)
        told = dict(attributes(message[_IFADDR.size :]))
        packed = told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS)
        if packed is not None and len(packed) in (4, 16):
            yield index, ip_interface((packed, length))


def parse_uplinks(messages: Iterable[bytes]) -> Iterator[int]:
    for message in messages:
        _, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message)
        oif = dict(attributes(message[_ROUTE.size :])).get(_RTA_OIF)
        if not length and table == _RT_TABLE_MAIN and kind == _RTN_UNICAST and oif is not None:
            yield int.from_bytes(oif, "little")


def dump(request: int, answer: int, body: bytes) -> Sequence[bytes]:
    """The bodies of every message of an answer."""
    found: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as sock:
        sock.settimeout(2)
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        sock.send(_HEADER.pack(_HEADER.size + len(body), request, flags, 1, 0) + body)
        while True:
            data = sock.recv(1 << 17)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                    return found
                if kind == answer:
                    found.append(data[offset + _HEADER.size : offset + length])
                offset += length + 3 & ~3
