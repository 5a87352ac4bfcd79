"""The rules as nftables netlink messages (linux/netfilter/nf_tables.h); pure.

Each statement becomes the expressions that nft itself sends for it (`nft --debug=netlink` shows them), so
that `nft list` can read them back. Sending is `netlink`'s business.
"""

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import assert_never

from tidegate_agent.steering import ruleset as r
from tidegate_agent.steering.listing import statement_text
from tidegate_agent.steering.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    attribute,
    nest,
    text,
    u32,
)
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
from tidegate_agent.steering.question import CASE_MASK, NAME_OFFSET, AsksFor
from tidegate_proxy.endpoint import Endpoint, IPAddress

_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN = 0, 1, 2, 3
_NEWRULE, _DELRULE, _NEWSET, _NEWSETELEM, _DELSETELEM = 6, 8, 9, 12, 14
TABLE_OWNER = 7
"""The attribute of a table that holds its owner's netlink port."""

_FLAG_OWNER = 0x2
_SET_TIMEOUT = 0x10
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3}
_ACCEPT, _GOTO, _RETURN = 1, -4, -5
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
# The kernel's set key types are nft's own numbers, six bits for each part of a concatenation.
_KEYS = {
    r.KeyType.PROTOCOL: (12, 1),
    r.KeyType.ENDPOINT4: (7 << 6 | 13, 8),
    r.KeyType.ENDPOINT6: (8 << 6 | 13, 20),
}
_ELEMENTS_PER_MESSAGE = 500  # an attribute ends at 64 KiB
_repeated = lru_cache(maxsize=512)  # a wildcard's 63 rules are much alike


def new_table(table: r.Table) -> list[Message]:
    """Make the table with all that is in it. It must be new, but for a keeper of the same socket."""
    messages = [
        Message(
            kind=_NEWTABLE,
            flags=NLM_F_CREATE | (NLM_F_EXCL if table.name == r.TABLE else 0),
            body=text(1, table.name) + u32(2, _FLAG_OWNER if table.owned else 0),
            doing=f"adding table inet {table.name}{' with flags owner' if table.owned else ''}",
        )
    ]
    for number, element_set in enumerate(table.sets, start=1):
        messages.append(_new_set(table.name, element_set, number))
    for chain in table.chains:
        messages.append(_new_chain(table.name, chain))
    return messages + replace_rules(table)


def replace_rules(table: r.Table) -> list[Message]:
    """Give every chain of an existing table exactly these rules; each may go to any other."""
    messages = []
    for chain in table.chains:
        where = text(1, table.name) + text(2, chain.name)
        messages.append(Message(kind=_DELRULE, body=where, doing=f"flushing chain {chain.name}"))
        for rule in chain.rules:
            words = " ".join(map(statement_text, rule))
            expressions = b"".join(map(_expressions, rule))
            messages.append(
                Message(
                    kind=_NEWRULE,
                    flags=NLM_F_CREATE | NLM_F_APPEND,
                    body=where + nest(4, expressions),
                    doing=f"adding rule '{words}' to chain {chain.name}",
                )
            )
    return messages


def delete_table(name: str) -> list[Message]:
    """Delete the table; succeeds as well when there is none."""
    body = text(1, name)
    return [
        Message(kind=_NEWTABLE, flags=NLM_F_CREATE, body=body, doing=f"deleting table inet {name}"),
        Message(kind=_DELTABLE, body=body, doing=f"deleting table inet {name}"),
    ]


def get_table(name: str) -> Message:
    """Ask for the table's attributes."""
    return Message(kind=_GETTABLE, body=text(1, name), doing=f"looking up table inet {name}")


def lease(timeout_s: float) -> list[Message]:
    """Hold the lease for `timeout_s` from now, whatever is left of it; 0 gives it up.

    Added, deleted, added in one transaction: before Linux 6.12, adding an element again renews nothing.
    """
    keys = [bytes([_L4["tcp"], 0, 0, 0]), bytes([_L4["udp"], 0, 0, 0])]
    elements = [_LEASE.element(key, timeout_s) for key in keys]
    renewal = _renewal(_LEASE, elements)
    return renewal if timeout_s else renewal[:2]


def add_endpoints(endpoints: Iterable[tuple[Endpoint, float]], *, known: bool) -> list[Message]:
    """Add elements that time out after so many seconds; `known` ones may be there, and are renewed."""
    messages: list[Message] = []
    for elements_of, packed in _by_set(endpoints):
        if known:
            messages += _renewal(elements_of, packed)
        else:
            messages.append(elements_of.message(_NEWSETELEM, packed))
    return messages


def remove_endpoints(endpoints: Iterable[Endpoint]) -> list[Message]:
    """Delete elements; those that timed out meanwhile are no error."""
    messages: list[Message] = []
    for elements_of, packed in _by_set((endpoint, 1.0) for endpoint in endpoints):
        messages += _renewal(elements_of, packed)[:2]
    return messages


class _Elements:
    """Packs elements of one set, by hand and ahead: an address is learned while its client waits for DNS."""

    def __init__(self, set_name: str, key_length: int) -> None:
        padded = -(-key_length // 4) * 4
        self._before_key = struct.pack(
            "=HHHHHH", 8 + padded + 4 + 12, 1 | 0x8000, 8 + padded, 1 | 0x8000, 4 + key_length, 1
        )
        self._after_key = struct.pack("=HH", 12, 4)  # the time-out; deleting ignores it
        self._before_elements = text(1, r.TABLE) + text(2, set_name)
        self._doing = f"changing set {set_name}"

    def element(self, padded_key: bytes, timeout_s: float) -> bytes:
        timeout_ms = max(1, round(timeout_s * 1000))
        return self._before_key + padded_key + self._after_key + timeout_ms.to_bytes(8, "big")

    def message(self, kind: int, elements: Iterable[bytes]) -> Message:
        return Message(
            kind=kind,
            flags=NLM_F_CREATE if kind == _NEWSETELEM else 0,
            body=self._before_elements + nest(3, *elements),
            doing=self._doing,
        )


_LEASE = _Elements(r.LEASE_SET, 1)
_STEERED = {4: _Elements(r.STEERED4, 8), 6: _Elements(r.STEERED6, 20)}


def _renewal(elements_of: _Elements, packed: Sequence[bytes]) -> list[Message]:
    add = elements_of.message(_NEWSETELEM, packed)
    return [add, elements_of.message(_DELSETELEM, packed), add]


def _by_set(endpoints: Iterable[tuple[Endpoint, float]]) -> Iterable[tuple[_Elements, list[bytes]]]:
    packed: dict[int, list[bytes]] = {4: [], 6: []}
    for endpoint, timeout_s in endpoints:
        key = endpoint.address.packed + endpoint.port.to_bytes(2, "big") + b"\0\0"
        version = endpoint.address.version
        packed[version].append(_STEERED[version].element(key, timeout_s))
    for family, elements in packed.items():
        for start in range(0, len(elements), _ELEMENTS_PER_MESSAGE):
            yield _STEERED[family], elements[start : start + _ELEMENTS_PER_MESSAGE]


def _new_set(table: str, element_set: r.ElementSet, number: int) -> Message:
    key_type, key_length = _KEYS[element_set.key]
    size = nest(9, u32(1, element_set.size)) if element_set.size else b""
    return Message(
        kind=_NEWSET,
        flags=NLM_F_CREATE,
        body=text(1, table)
        + text(2, element_set.name)
        + u32(3, _SET_TIMEOUT)
        + u32(4, key_type)
        + u32(5, key_length)
        + size
        + u32(10, number),
        doing=f"adding set {element_set.name}",
    )


def _new_chain(table: str, chain: r.Chain) -> Message:
    body = text(1, table) + text(3, chain.name)
    if chain.hook is not None:
        body += nest(4, u32(1, _HOOKS[chain.hook.at]), u32(2, chain.hook.priority))
        body += u32(5, _ACCEPT) + text(7, chain.hook.type)
    kind = f" (type {chain.hook.type})" if chain.hook is not None else ""
    return Message(kind=_NEWCHAIN, flags=NLM_F_CREATE, body=body, doing=f"adding chain {chain.name}{kind}")


def _expressions(statement: r.Statement) -> bytes:
    match statement:
        case r.Marked(value=value, mask=mask):
            masked = _mask(struct.pack("=I", mask)) if mask != 0xFFFFFFFF else b""
            return _meta(_META_MARK) + masked + _compare(struct.pack("=I", value))
        case r.SentBy(uid=uid):
            return _meta(_META_SKUID) + _compare(struct.pack("=I", uid))
        case r.LeaseHeld():
            return _meta(_META_L4PROTO) + _lookup(r.LEASE_SET)
        case r.NewFlow():
            state = _expression("ct", u32(1, _REG_1), u32(2, _CT_STATE))
            return state + _mask(struct.pack("=I", _CT_STATE_NEW)) + _compare(bytes(4), operator=_NEQ)
        case r.To(address=address, l4=l4, port=port):
            return _address(address, _DADDR) + _port(l4, 2, port)
        case r.From(address=address, l4=l4, port=port):
            return _address(address, _SADDR) + _port(l4, 0, port)
        case r.ToPort(l4=l4, port=port):
            return _port(l4, 2, port)
        case r.NotOver(l4=l4):
            return _meta(_META_L4PROTO) + _compare(bytes([_L4[l4]]), operator=_NEQ)
        case r.NotToPort(l4=l4, port=port):
            return _port(l4, 2, port, operator=_NEQ)
        case AsksFor(label_length=label_length, offset=offset, octets=octets):
            return (
                _load(_TRANSPORT, NAME_OFFSET, 1)
                + _compare(bytes([label_length]))
                + _load(_TRANSPORT, NAME_OFFSET + offset, len(octets))
                + _mask(bytes([CASE_MASK]) * len(octets))
                + _compare(octets)
            )
        case r.ToMember(version=version, set_name=set_name):
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
        case r.Return():
            return _verdict(u32(1, _RETURN))
        case r.Goto(chain=chain):
            return _verdict(u32(1, _GOTO), text(2, chain))
        case r.NoTrack():
            return _expression("notrack")
        case r.Redirect(port=port):
            return _immediate(struct.pack("!H", port)) + _expression(
                "redir", u32(1, _REG_1), u32(3, _PROTO_SPECIFIED)
            )
        case r.RedirectTo(address=address, port=port):
            family = u32(2, _NFPROTO[address.version])
            return (
                _immediate(address.packed)
                + _immediate(struct.pack("!H", port), register=_REG_2)
                + _expression("nat", u32(1, _NAT_DNAT), family, u32(3, _REG_1), u32(5, _REG_2))
            )
        case r.RewriteTo(address=address, port=port):
            return _rewrite(address, _DADDR, port, port_offset=2)
        case r.RewriteFrom(address=address, port=port):
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


def _port(l4: r.L4, offset: int, port: int, *, operator: int = _EQ) -> bytes:
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
