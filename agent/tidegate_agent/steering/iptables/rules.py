"""The rules of the iptables back end, as iptables-restore(8) reads them; pure.

One chain for each IP version, named after us, in table nat; OUTPUT jumps to it first. The probe's rules
come before everything, then what is exempt leaves, then whatever comes while the lease is not held. Queries
to a resolver are redirected when a steered name stands in them, wherever; a few that ask for another name are
too, and the responder forwards those. Rules of table nat see the first packet of a flow only: a socket that
asked for another name before goes direct with its next ones. Redirected flows are marked (`FLOW`), so that
connection tracking can be told to forget them.

The agent's own queries go to the same resolvers from the same addresses, and may come from a port that a
client's query has: connection tracking would take one for the other, and send the client's past us, or ours
to ourselves. So table raw puts ours into a zone of their own, where the kernel has zones; answers need none.

A chain to which nothing jumps is the keeper: its rule needs connection tracking, without which connections
that were redirected would break when our other rules go. Its name says whose it is (see `unowned`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, assert_never

from tidegate_agent.steering.exemption import DEFAULT_MARK, ByMark, ByUid, Exemption
from tidegate_agent.steering.iptables.ipset import LEASE, STEERED
from tidegate_agent.steering.plan import DNS, HTTPS, PROBE6, PROBE_ADDRESS, TABLE, Plan, unscoped
from tidegate_agent.steering.question import wire
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import IPAddress

CHAIN = TABLE
JUMP = f"OUTPUT -j {CHAIN}"
_ANYTHING = ""
_LONGEST_PATTERN = 127  # XT_STRING_MAX_PATTERN_SIZE less one
_KEEPER_PREFIX = "tidegate_for_"
_OWN_ZONE = 0x74
FLOW = DEFAULT_MARK
"""The mark of redirected queries' flows in connection tracking."""

Version = Literal[4, 6]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What there is of ours: in table nat, and `raw_` in table raw."""

    jumps: int = 0
    chain: bool = False
    keepers: tuple[str, ...] = ()
    raw_jumps: int = 0
    raw_chain: bool = False


def keeper_name(port: int) -> str:
    """The keeper's chain for processes that share the netlink socket with this port."""
    return f"{_KEEPER_PREFIX}{port}"


def keeper_port(name: str) -> int:
    """The port in a keeper's name."""
    return int(name.removeprefix(_KEEPER_PREFIX))


def restored(plan: Plan, version: Version, *, keeper: str, instead_of: Found, zone: bool = True) -> str:
    """Puts our chains in with exactly these rules, and one jump first in OUTPUT, instead of what is there.

    `zone=False` is for kernels that have none.
    """
    raw = _table(
        "raw",
        f":{CHAIN} - [0:0]",
        f"-A {CHAIN} -p udp {_exempt(plan.exemption)} -m udp --dport {DNS} -j CT --zone-orig {_OWN_ZONE}",
        *[f"-D {JUMP}"] * instead_of.raw_jumps,
        f"-I {JUMP}",
    )
    others = [f"{how} {chain}" for chain in instead_of.keepers for how in ("-F", "-X")]
    return (raw if zone else "") + _table(
        "nat",
        *others,
        f":{keeper} - [0:0]",
        f":{CHAIN} - [0:0]",
        f"-A {keeper} -m conntrack --ctstate NEW -j RETURN",
        *(f"-A {CHAIN} {rule}" for rule in _rules(plan, version)),
        *[f"-D {JUMP}"] * instead_of.jumps,
        f"-I {JUMP}",
    )


def replaced(plan: Plan, version: Version, *, names: bool = True) -> str:
    """Gives our chain exactly these rules, and leaves its place in OUTPUT as it is.

    `names=False` redirects all queries: for kernels that cannot look for a name in a packet.
    """
    rules = _rules(plan, version, names=names)
    return _table("nat", f":{CHAIN} - [0:0]", *(f"-A {CHAIN} {rule}" for rule in rules))


def removed(what: Found) -> str:
    """Takes all of this out; empty when there is nothing."""
    chains = [*([CHAIN] if what.chain else []), *what.keepers]
    lines = [f"-D {JUMP}"] * what.jumps + [f"{how} {chain}" for chain in chains for how in ("-F", "-X")]
    raw_lines = [f"-D {JUMP}"] * what.raw_jumps
    raw_lines += [f"-F {CHAIN}", f"-X {CHAIN}"] if what.raw_chain else []
    return "".join(_table(table, *each) for table, each in (("raw", raw_lines), ("nat", lines)) if each)


def found(saved: str, saved_raw: str = "") -> Found:
    """What iptables-save(8) shows of ours in table nat, and in table raw."""
    lines, raw_lines = saved.splitlines(), saved_raw.splitlines()
    chains = [line[1:].partition(" ")[0] for line in lines if line.startswith(":")]
    return Found(
        raw_jumps=raw_lines.count(f"-A {JUMP}"),
        raw_chain=any(line.startswith(f":{CHAIN} ") for line in raw_lines),
        jumps=lines.count(f"-A {JUMP}"),
        chain=CHAIN in chains,
        keepers=tuple(
            name
            for name in chains
            if name.startswith(_KEEPER_PREFIX) and name.removeprefix(_KEEPER_PREFIX).isdecimal()
        ),
    )


def _table(name: str, *lines: str) -> str:
    return "\n".join([f"*{name}", *lines, "COMMIT", ""])


def _rules(plan: Plan, version: Version, *, names: bool = True) -> Iterable[str]:
    asked = tuple(map(_asks_for, _names(plan.zone))) if names else (_ANYTHING,)
    resolvers = [
        (unscoped(resolver), port) for resolver, port in plan.dns_udp.items() if resolver.version == version
    ]
    if version == 4:
        yield _connection(PROBE_ADDRESS, HTTPS, plan.port)
    else:
        yield _connection(PROBE6.address, PROBE6.port, plan.port)
    yield from _dns(plan, [each for each in resolvers if each[0] == PROBE_ADDRESS], (_ANYTHING,))
    yield f"{_exempt(plan.exemption)} -j RETURN"
    yield f"-m set ! --match-set {LEASE[version].name} dst -j RETURN"
    yield f"-p tcp -m set --match-set {STEERED[version].name} dst,dst -j REDIRECT --to-ports {plan.port}"
    for uid in plan.dns_tcp_direct_uids:
        if resolvers and plan.dns_tcp_port:
            yield f"-p tcp -m owner --uid-owner {uid} -m tcp --dport {DNS} -j RETURN"
    yield from _dns(plan, [each for each in resolvers if each[0] != PROBE_ADDRESS], asked)


def _dns(plan: Plan, resolvers: Iterable[tuple[IPAddress, int]], asked: Iterable[str]) -> Iterable[str]:
    for resolver, port in resolvers:
        if plan.dns_tcp_port:
            yield _connection(resolver, DNS, plan.dns_tcp_port)
        query = f"-d {_network(resolver)} -p udp -m udp --dport {DNS}"
        for question in asked:
            yield f"{query}{question} -j CONNMARK --set-xmark {FLOW}"
        yield f"{query} -m connmark --mark {FLOW} -j REDIRECT --to-ports {port}"


def _names(zone: Zone) -> Iterable[bytes]:
    """The zone's names as a message carries them; a wildcard's is what follows its first label."""
    return dict.fromkeys(wire(name) for name in sorted({*zone.exact_names, *zone.wildcard_parents}))


def _asks_for(name: bytes) -> str:
    """A packet with these octets in it, in any case (RFC 4343)."""
    return f' -m string --algo bm --icase --hex-string "|{name[:_LONGEST_PATTERN].hex()}|"'


def _connection(address: IPAddress, port: int, to_port: int) -> str:
    return f"-d {_network(address)} -p tcp -m tcp --dport {port} -j REDIRECT --to-ports {to_port}"


def _network(address: IPAddress) -> str:
    return f"{address}/{address.max_prefixlen}"


def _exempt(exemption: Exemption) -> str:
    match exemption:
        case ByMark():
            return f"-m mark --mark {exemption}"
        case ByUid(uid=uid):
            return f"-m owner --uid-owner {uid}"
        case _:
            assert_never(exemption)
