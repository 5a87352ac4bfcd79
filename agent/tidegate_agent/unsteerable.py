"""What of this host's look-ups and connections cannot be steered, as far as the host shows it; pure.

Programs that bring a resolver of their own (DNS over HTTPS or TLS), fixed addresses and encrypted
ClientHellos leave no trace in files: docs/operations/resolvers.md names those, the bypass counters show them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tidegate_agent.resolved import ResolvedServer
from tidegate_agent.steering.eligibility import is_special
from tidegate_dns.address import DNS_PORT, interface_of
from tidegate_proxy.endpoint import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsteerable:
    """One finding: what it is, why it is not steered, and what to do about it."""

    what: str
    why: str
    next_step: str


def unsteerable(
    *,
    unserved: Mapping[IPAddress, str],
    hosts: Mapping[str, Iterable[IPAddress]],
    unseen: Iterable[Unsteerable] = (),
) -> tuple[Unsteerable, ...]:
    """Every finding, in a fixed order; `unseen` are those of a host whose look-ups leave no packet here."""
    return (*_resolvers(unserved), *_hosts_file(hosts), *unseen)


def left_on_their_link(linked: Iterable[IPAddress], backend: str) -> Iterator[Unsteerable]:
    """The link-local resolvers, where the back end cannot send their queries to us on their link."""
    if backend == "iptables":
        for address in linked:
            yield Unsteerable(
                what=f"resolver {address}",
                why="its queries go direct: iptables cannot take them to an address of its link",
                next_step='set steering.backend to "nft" where the kernel has nf_tables',
            )


def unseen_behind_resolved(
    *, over_tls: str, servers: Iterable[ResolvedServer], links_are_hidden: bool
) -> Iterator[Unsteerable]:
    """What of systemd-resolved's own queries is not seen, where programs ask it without DNS (nss-resolve).

    Names that are looked up ahead are steered for those all the same: it matters for wildcards only.
    """
    if over_tls:
        yield _unseen(
            f"systemd-resolved with DNSOverTLS={over_tls}", "it asks over TLS", "; or set DNSOverTLS=no"
        )
    for server in servers:
        if server.port != DNS_PORT:
            yield _unseen(f"systemd-resolved's server {server}", "only port 53 is steered", "")
    if links_are_hidden:
        yield _unseen(
            "systemd-resolved's servers of single links",
            "only its own user may read which they are",
            "; or list them as [dns] resolvers together with those of /etc/resolv.conf",
        )


def _unseen(what: str, why: str, or_else: str) -> Unsteerable:
    return Unsteerable(
        what=what,
        why=f"{why}: programs that ask it by nss-resolve are steered for hosts named exactly, "
        "not for wildcards",
        next_step=f"name the hosts one by one in [[registry]]: those are looked up ahead{or_else}",
    )


def _resolvers(unserved: Mapping[IPAddress, str]) -> Iterator[Unsteerable]:
    for address, why in unserved.items():
        interface = interface_of(address)
        yield Unsteerable(
            what=f"resolver {address}",
            why=f"its queries go direct: {why}",
            next_step=f"ip -6 address show dev {interface} shows whether there is an address like fe80::..."
            if interface
            else "list fewer servers; ip address show dev lo shows whether there are 127.0.0.1 and ::1",
        )


def _hosts_file(hosts: Mapping[str, Iterable[IPAddress]]) -> Iterator[Unsteerable]:
    for name, addresses in hosts.items():
        for address in filter(is_special, addresses):
            yield Unsteerable(
                what=f"{address} {name} in /etc/hosts",
                why="connections to such an address are never steered",
                next_step="delete the line, or give the registry's real address",
            )
