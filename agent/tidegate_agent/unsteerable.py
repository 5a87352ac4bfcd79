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

_NAME_THE_HOSTS = "name the hosts one by one in [[registry]]: those are looked up ahead"


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
    over_tls: str,
    resolved: Iterable[ResolvedServer],
    wildcards: bool,
) -> tuple[Unsteerable, ...]:
    """Every finding, in a fixed order. `wildcards`: names are steered that cannot be looked up ahead."""
    findings = [
        *_resolvers(unserved),
        *_hosts_file(hosts),
        *(_encrypted(over_tls) if wildcards else ()),
        *(_other_ports(resolved) if wildcards else ()),
    ]
    return tuple(findings)


def _resolvers(unserved: Mapping[IPAddress, str]) -> Iterator[Unsteerable]:
    for address, why in unserved.items():
        interface = interface_of(address)
        looking = f"ip -6 address show dev {interface}" if interface else "ip address show dev lo"
        yield Unsteerable(
            what=f"resolver {address}",
            why=f"its queries go direct: {why}",
            next_step=looking,
        )


def _hosts_file(hosts: Mapping[str, Iterable[IPAddress]]) -> Iterator[Unsteerable]:
    for name, addresses in hosts.items():
        for address in filter(is_special, addresses):
            yield Unsteerable(
                what=f"{address} {name} in /etc/hosts",
                why="connections to such an address are never steered",
                next_step="delete the line, or give the registry's real address",
            )


def _encrypted(over_tls: str) -> Iterator[Unsteerable]:
    if over_tls:
        yield Unsteerable(
            what=f"systemd-resolved with DNSOverTLS={over_tls}",
            why="programs that ask it without DNS (nss-resolve, D-Bus) are steered for hosts named exactly, "
            "not for wildcards",
            next_step=f"{_NAME_THE_HOSTS}; or set DNSOverTLS=no",
        )


def _other_ports(resolved: Iterable[ResolvedServer]) -> Iterator[Unsteerable]:
    for server in resolved:
        if server.port != DNS_PORT:
            yield Unsteerable(
                what=f"systemd-resolved's server {server}",
                why="only port 53 is steered: programs that ask systemd-resolved without DNS (nss-resolve, "
                "D-Bus) are steered for hosts named exactly, not for wildcards",
                next_step=_NAME_THE_HOSTS,
            )
