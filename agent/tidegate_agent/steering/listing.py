"""The rules in nft syntax (nft(8)), as `nft list ruleset` prints them; pure.

What they mean is `statement`'s business, and how the kernel is told them `encoding`'s.
"""

from collections.abc import Iterable
from typing import assert_never

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
from tidegate_agent.steering.statement import (
    From,
    Goto,
    LeaseHeld,
    Marked,
    NewFlow,
    NotOver,
    NoTrack,
    NotToPort,
    Redirect,
    RedirectTo,
    Return,
    RewriteFrom,
    RewriteTo,
    SentBy,
    Statement,
    To,
    ToMember,
    ToPort,
)
from tidegate_agent.steering.table import Chain, ElementSet, Table
from tidegate_proxy.endpoint import IPAddress

_PRIORITIES = {
    ("output", -300): "raw",
    ("output", 0): "filter",
    ("output", 10): "filter + 10",
    ("forward", 10): "filter + 10",
    ("prerouting", -110): "dstnat - 10",
    ("forward", 0): "filter",
}
"""As nft prints them."""


def render(tables: Iterable[Table]) -> str:
    """The tables in nft syntax, line by line as `nft list ruleset` prints them."""
    return "\n".join(_table_text(table) for table in tables)


def _table_text(table: Table) -> str:
    blocks = [*map(_set_text, table.sets), *map(_chain_text, table.chains)]
    flags = "\tflags owner\n\n" if table.owned else ""
    return f"table inet {table.name} {{\n{flags}{chr(10).join(blocks)}}}\n"


def _set_text(element_set: ElementSet) -> str:
    size = f"\t\tsize {element_set.size}\n" if element_set.size else ""
    return f"\tset {element_set.name} {{\n\t\ttype {element_set.key.value}\n{size}\t\tflags timeout\n\t}}\n"


def _chain_text(chain: Chain) -> str:
    rules = "".join(f"\t\t{' '.join(map(statement_text, rule))}\n" for rule in chain.rules)
    hook = ""
    if chain.hook is not None:
        priority = _PRIORITIES.get((chain.hook.at, chain.hook.priority), chain.hook.priority)
        hook = f"\t\ttype {chain.hook.type} hook {chain.hook.at} priority {priority}; policy accept;\n"
    return f"\tchain {chain.name} {{\n{hook}{rules}\t}}\n"


def statement_text(statement: Statement) -> str:
    """One statement in nft syntax."""
    match statement:
        case Marked(value=value, mask=0xFFFFFFFF):
            return f"meta mark {value:#010x}"
        case Marked(value=value, mask=mask):
            return f"meta mark & {mask:#010x} == {value:#010x}"
        case SentBy(uid=uid):
            return f"meta skuid {uid}"
        case LeaseHeld():
            return f"meta l4proto @{LEASE_SET}"
        case NewFlow():
            return "ct state new"
        case To(address=address, l4=l4, port=port):
            return f"{_family(address)} daddr {address} {l4} dport {port}"
        case From(address=address, l4=l4, port=port):
            return f"{_family(address)} saddr {address} {l4} sport {port}"
        case ToPort(l4=l4, port=port):
            return f"{l4} dport {port}"
        case NotOver(l4=l4):
            return f"meta l4proto != {l4}"
        case NotToPort(l4=l4, port=port):
            return f"{l4} dport != {port}"
        case AsksFor():
            return _question_text(statement)
        case ToMember(version=version, set_name=set_name):
            return f"{'ip' if version == 4 else 'ip6'} daddr . tcp dport @{set_name}"
        case Return():
            return "return"
        case Goto(chain=chain):
            return f"goto {chain}"
        case NoTrack():
            return "notrack"
        case Redirect(port=port):
            return f"redirect to :{port}"
        case RedirectTo(address=address, port=port):
            at = f"[{address}]" if address.version == 6 else address
            return f"dnat {_family(address)} to {at}:{port}"
        case RewriteTo(address=address, port=port):
            return f"{_family(address)} daddr set {address} udp dport set {port}"
        case RewriteFrom(address=address, port=port):
            return f"{_family(address)} saddr set {address} udp sport set {port}"
        case BeginsHello(tcp_header_words=words):
            record, kind = 32 * words, 32 * words + 40
            return f"tcp doff {words} @th,{record},16 0x1603 @th,{kind},8 0x1"
        case AtMost(per_second=per_second, burst=burst):
            return f"limit rate {per_second}/second burst {burst} packets"
        case Log(group=group, prefix=prefix, copied_bytes=copied_bytes):
            return f'log prefix "{prefix}" group {group} snaplen {copied_bytes} queue-threshold 1'
        case CameIn(interface=interface):
            return f'iifname "{interface}"'
        case GoesOut(interface=interface):
            return f'oifname "{interface}"'
        case FromNetwork(network=network):
            return f"{'ip' if network.version == 4 else 'ip6'} saddr {network}"
        case FromPort(l4=l4, port=port):
            return f"{l4} sport {port}"
        case Redirected():
            return "ct status dnat"
        case _:
            assert_never(statement)


def _question_text(question: AsksFor) -> str:
    start, length = NAME_OFFSET + question.offset, len(question.octets)
    mask, octets = bytes([CASE_MASK]) * length, int.from_bytes(question.octets, "big")
    label = f"@th,{8 * NAME_OFFSET},8 {question.label_length:#x}"
    return f"{label} @th,{8 * start},{8 * length} & 0x{mask.hex()} == {octets:#x}"


def _family(address: IPAddress) -> str:
    return "ip" if address.version == 4 else "ip6"
