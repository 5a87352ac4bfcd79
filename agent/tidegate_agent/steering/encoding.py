"""The rules as nftables netlink messages (linux/netfilter/nf_tables.h); pure.

The statements of a rule are `expression`'s business, sending is `netlink`'s.
"""

import socket
import struct
from collections.abc import Iterable, Sequence

from tidegate_agent.steering.expression import expressions
from tidegate_agent.steering.listing import statement_text
from tidegate_agent.steering.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    nest,
    text,
    u32,
)
from tidegate_agent.steering.plan import LEASE_SET, STEERED4, STEERED6, TABLE
from tidegate_agent.steering.table import Chain, ElementSet, KeyType, Table
from tidegate_proxy.endpoint import Endpoint

_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN = 0, 1, 2, 3
_NEWRULE, _DELRULE, _NEWSET, _NEWSETELEM, _DELSETELEM = 6, 8, 9, 12, 14
TABLE_NAME, TABLE_OWNER = 1, 7
"""The attributes of a table that hold its name and its owner's netlink port."""

_FLAG_OWNER = 0x2
_SET_TIMEOUT = 0x10
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3}
_ACCEPT = 1
# The kernel's set key types are nft's own numbers, six bits for each part of a concatenation.
_KEYS = {
    KeyType.PROTOCOL: (12, 1),
    KeyType.ENDPOINT4: (7 << 6 | 13, 8),
    KeyType.ENDPOINT6: (8 << 6 | 13, 20),
}
_ELEMENTS_PER_MESSAGE = 500  # an attribute ends at 64 KiB


def new_table(table: Table) -> list[Message]:
    """Make the table with all that is in it. It must be new, but for a keeper of the same socket."""
    messages = [
        Message(
            kind=_NEWTABLE,
            flags=NLM_F_CREATE | (NLM_F_EXCL if table.name == TABLE else 0),
            body=text(1, table.name) + u32(2, _FLAG_OWNER if table.owned else 0),
            doing=f"adding table inet {table.name}{' with flags owner' if table.owned else ''}",
        )
    ]
    for number, element_set in enumerate(table.sets, start=1):
        messages.append(_new_set(table.name, element_set, number))
    for chain in table.chains:
        messages.append(_new_chain(table.name, chain))
    return messages + replace_rules(table)


def replace_rules(table: Table) -> list[Message]:
    """Give every chain of an existing table exactly these rules; each may go to any other."""
    messages = []
    for chain in table.chains:
        where = text(1, table.name) + text(2, chain.name)
        messages.append(Message(kind=_DELRULE, body=where, doing=f"flushing chain {chain.name}"))
        for rule in chain.rules:
            words = " ".join(map(statement_text, rule))
            packed = b"".join(map(expressions, rule))
            messages.append(
                Message(
                    kind=_NEWRULE,
                    flags=NLM_F_CREATE | NLM_F_APPEND,
                    body=where + nest(4, packed),
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


def get_tables() -> Message:
    """Ask for the attributes of all tables, to be dumped."""
    return Message(kind=_GETTABLE, body=b"", doing="looking up all tables")


def lease(timeout_s: float) -> list[Message]:
    """Hold the lease for `timeout_s` from now, whatever is left of it; 0 gives it up.

    Added, deleted, added in one transaction: before Linux 6.12, adding an element again renews nothing.
    """
    keys = [bytes([socket.IPPROTO_TCP, 0, 0, 0]), bytes([socket.IPPROTO_UDP, 0, 0, 0])]
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
        self._before_elements = text(1, TABLE) + text(2, set_name)
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


_LEASE = _Elements(LEASE_SET, 1)
_STEERED = {4: _Elements(STEERED4, 8), 6: _Elements(STEERED6, 20)}


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


def _new_set(table: str, element_set: ElementSet, number: int) -> Message:
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


def _new_chain(table: str, chain: Chain) -> Message:
    body = text(1, table) + text(3, chain.name)
    if chain.hook is not None:
        body += nest(4, u32(1, _HOOKS[chain.hook.at]), u32(2, chain.hook.priority))
        body += u32(5, _ACCEPT) + text(7, chain.hook.type)
    kind = f" (type {chain.hook.type})" if chain.hook is not None else ""
    return Message(kind=_NEWCHAIN, flags=NLM_F_CREATE, body=body, doing=f"adding chain {chain.name}{kind}")
