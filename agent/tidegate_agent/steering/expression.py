"""Statements as the expressions that nft itself sends for them (`nft --debug=netlink` shows them); pure."""

import struct
from functools import lru_cache
from typing import assert_never

from tidegate_agent.steering import statement as s
from tidegate_agent.steering.netlink import attribute, nest, text, u32
from tidegate_agent.steering.observation import (
    AtMost,
    BeginsHello,
    CameIn,
    FromNetwork,
    FromPort,
    GoesOut,
    Log,
    Redirected,
)
from tidegate_agent.steering.plan import LEASE_SET
from tidegate_agent.steering.question import CASE_MASK, NAME_OFFSET, AsksFor
from tidegate_proxy.endpoint import IPAddress

_GOTO, _RETURN = -4, -5
_META_NFPROTO, _META_L4PROTO, _META_MARK, _META_SKUID = 15, 16, 3, 10
_META_IIFNAME, _META_OIFNAME, _IFNAME_BYTES = 6, 7, 16
_CT_STATE, _CT_STATE_NEW = 0, 8
_CT_STATUS, _CT_STATUS_DNAT = 2, 0x20
_NETWORK, _TRANSPORT = 1, 2
_REG_VERDICT, _REG_1, _REG_2, _REG32_01 = 0, 1, 2, 9
_EQ, _NEQ = 0, 1
_PROTO_SPECIFIED = 0x2
_NAT_DNAT = 1
_PSEUDO_HEADER = 0x1
_NFPROTO = {4: 2, 6: 10}
_SADDR, _DADDR = {4: 12, 6: 8}, {4: 16, 6: 24}
_L4 = {"tcp": 6, "udp": 17}
_UDP_CHECKSUM_OFFSET = 6
_repeated = lru_cache(maxsize=512)  # a wildcard's 63 rules are much alike


def expressions(statement: s.Statement) -> bytes:
    """What nft sends for this statement."""
    match statement:
        case s.Marked(value=value, mask=mask):
            masked = _mask(struct.pack("=I", mask)) if mask != 0xFFFFFFFF else b""
            return _meta(_META_MARK) + masked + _compare(struct.pack("=I", value))
        case s.SentBy(uid=uid):
            return _meta(_META_SKUID) + _compare(struct.pack("=I", uid))
        case s.LeaseHeld():
            return _meta(_META_L4PROTO) + _lookup(LEASE_SET)
        case s.NewFlow():
            state = _expression("ct", u32(1, _REG_1), u32(2, _CT_STATE))
            return state + _mask(struct.pack("=I", _CT_STATE_NEW)) + _compare(bytes(4), operator=_NEQ)
        case s.To(address=address, l4=l4, port=port):
            return _address(address, _DADDR) + _port(l4, 2, port)
        case s.From(address=address, l4=l4, port=port):
            return _address(address, _SADDR) + _port(l4, 0, port)
        case s.ToPort(l4=l4, port=port):
            return _port(l4, 2, port)
        case s.NotOver(l4=l4):
            return _meta(_META_L4PROTO) + _compare(bytes([_L4[l4]]), operator=_NEQ)
        case s.NotToPort(l4=l4, port=port):
            return _port(l4, 2, port, operator=_NEQ)
        case AsksFor(label_length=label_length, offset=offset, octets=octets):
            return (
                _load(_TRANSPORT, NAME_OFFSET, 1)
                + _compare(bytes([label_length]))
                + _load(_TRANSPORT, NAME_OFFSET + offset, len(octets))
                + _mask(bytes([CASE_MASK]) * len(octets))
                + _compare(octets)
            )
        case s.ToMember(version=version, set_name=set_name):
            length, second = (4, _REG32_01) if version == 4 else (16, _REG_2)
            return (
                _meta(_META_NFPROTO)
                + _compare(bytes([_NFPROTO[version]]))
                + _meta(_META_L4PROTO)
                + _compare(bytes([_L4["tcp"]]))
                + _load(_NETWORK, _DADDR[version], length)
                + _load(_TRANSPORT, 2, 2, register=second)
                + _lookup(set_name)
            )
        case s.Return():
            return _verdict(u32(1, _RETURN))
        case s.Goto(chain=chain):
            return _verdict(u32(1, _GOTO), text(2, chain))
        case s.NoTrack():
            return _expression("notrack")
        case s.Redirect(port=port):
            return _immediate(struct.pack("!H", port)) + _expression(
                "redir", u32(1, _REG_1), u32(3, _PROTO_SPECIFIED)
            )
        case s.RedirectTo(address=address, port=port):
            family = u32(2, _NFPROTO[address.version])
            return (
                _immediate(address.packed)
                + _immediate(struct.pack("!H", port), register=_REG_2)
                + _expression("nat", u32(1, _NAT_DNAT), family, u32(3, _REG_1), u32(5, _REG_2))
            )
        case s.RewriteTo(address=address, port=port):
            return _rewrite(address, _DADDR, port, port_offset=2)
        case s.RewriteFrom(address=address, port=port):
            return _rewrite(address, _SADDR, port, port_offset=0)
        case BeginsHello(tcp_header_words=words):
            return (
                _meta(_META_L4PROTO)
                + _compare(bytes([_L4["tcp"]]))
                + _load(_TRANSPORT, 12, 1)
                + _mask(b"\xf0")
                + _compare(bytes([words << 4]))
                + _load(_TRANSPORT, 4 * words, 2)
                + _compare(b"\x16\x03")
                + _load(_TRANSPORT, 4 * words + 5, 1)
                + _compare(b"\x01")
            )
        case AtMost(per_second=per_second, burst=burst):
            return _expression("limit", _u64(1, per_second), _u64(2, 1), u32(3, burst), u32(4, 0))
        case Log(group=group, prefix=prefix, copied_bytes=copied_bytes):
            # The threshold: tell of each packet at once, while its socket can still be found.
            wanted = attribute(1, struct.pack("!H", group)), text(2, prefix), u32(3, copied_bytes)
            return _expression("log", *wanted, attribute(4, struct.pack("!H", 1)))
        case CameIn(interface=interface):
            return _meta(_META_IIFNAME) + _compare(interface.encode().ljust(_IFNAME_BYTES, b"\0"))
        case GoesOut(interface=interface):
            return _meta(_META_OIFNAME) + _compare(interface.encode().ljust(_IFNAME_BYTES, b"\0"))
        case FromNetwork(network=network):
            address, netmask = network.network_address, network.netmask
            return (
                _meta(_META_NFPROTO)
                + _compare(bytes([_NFPROTO[network.version]]))
                + _load(_NETWORK, _SADDR[network.version], len(address.packed))
                + _mask(netmask.packed)
                + _compare(address.packed)
            )
        case FromPort(l4=l4, port=port):
            return _port(l4, 0, port)
        case Redirected():
            status = _expression("ct", u32(1, _REG_1), u32(2, _CT_STATUS))
            return status + _mask(struct.pack("=I", _CT_STATUS_DNAT)) + _compare(bytes(4), operator=_NEQ)
        case _:
            assert_never(statement)


def _address(address: IPAddress, offsets: dict[int, int]) -> bytes:
    return (
        _meta(_META_NFPROTO)
        + _compare(bytes([_NFPROTO[address.version]]))
        + _load(_NETWORK, offsets[address.version], len(address.packed))
        + _compare(address.packed)
    )


def _port(l4: s.L4, offset: int, port: int, *, operator: int = _EQ) -> bytes:
    return (
        _meta(_META_L4PROTO)
        + _compare(bytes([_L4[l4]]))
        + _load(_TRANSPORT, offset, 2)
        + _compare(struct.pack("!H", port), operator=operator)
    )


def _rewrite(address: IPAddress, offsets: dict[int, int], port: int, *, port_offset: int) -> bytes:
    # IPv6 has no header checksum; the UDP checksum covers the addresses (the pseudo-header) in both.
    header_checksum = (1, 10) if address.version == 4 else (0, 0)
    return (
        _immediate(address.packed)
        + _store(_NETWORK, offsets[address.version], len(address.packed), header_checksum, _PSEUDO_HEADER)
        + _immediate(struct.pack("!H", port))
        + _store(_TRANSPORT, port_offset, 2, (1, _UDP_CHECKSUM_OFFSET), 0)
    )


def _expression(name: str, *data: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *data))


def _u64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!Q", value))


def _meta(key: int) -> bytes:
    return _expression("meta", u32(2, key), u32(1, _REG_1))


@_repeated
def _compare(value: bytes, *, operator: int = _EQ) -> bytes:
    return _expression("cmp", u32(1, _REG_1), u32(2, operator), nest(3, attribute(1, value)))


@_repeated
def _mask(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        u32(1, _REG_1),
        u32(2, _REG_1),
        u32(3, len(mask)),
        nest(4, attribute(1, mask)),
        nest(5, attribute(1, bytes(len(mask)))),
    )


@_repeated
def _load(base: int, offset: int, length: int, *, register: int = _REG_1) -> bytes:
    return _expression("payload", u32(1, register), u32(2, base), u32(3, offset), u32(4, length))


def _store(base: int, offset: int, length: int, checksum: tuple[int, int], flags: int) -> bytes:
    kind, checksum_offset = checksum
    return _expression(
        "payload",
        u32(5, _REG_1),
        u32(2, base),
        u32(3, offset),
        u32(4, length),
        u32(6, kind),
        u32(7, checksum_offset),
        u32(8, flags),
    )


@_repeated
def _verdict(*attributes_of_it: bytes) -> bytes:
    return _expression("immediate", u32(1, _REG_VERDICT), nest(2, nest(2, *attributes_of_it)))


def _immediate(value: bytes, *, register: int = _REG_1) -> bytes:
    return _expression("immediate", u32(1, register), nest(2, attribute(1, value)))


def _lookup(set_name: str) -> bytes:
    return _expression("lookup", text(1, set_name), u32(2, _REG_1))
