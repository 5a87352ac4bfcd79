"""Which addresses may use a door (FEATURES T8). Pure.

Without a word of the operator these are the addresses that the internet does not route: private networks,
shared address space (RFC 6598, which overlay networks and clouds use for nodes), link-local ones, and this
machine.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from tidegate_proxy.endpoint import IPAddress

Network = IPv4Network | IPv6Network

NEAR = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


class Access:
    """A list of networks; an IPv4 peer of an IPv6 socket counts by its IPv4 address."""

    def __init__(self, allow: Iterable[Network] = NEAR) -> None:
        self._allow = tuple(allow)

    def allows(self, address: IPAddress) -> bool:
        """Whether whoever has this address may use the door."""
        plain = unmapped(address)
        return any(plain.version == network.version and plain in network for network in self._allow)


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv4-mapped IPv6 address stands for; without a zone; any other as it is."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        return IPv6Address(int(address))
    return address


def is_reachable_through_us(address: IPAddress) -> bool:
    """Whether a tunnel may end there: our own services and a cloud's metadata are no registry."""
    plain = unmapped(address)
    return not (plain.is_loopback or plain.is_link_local or plain.is_unspecified or plain.is_multicast)
