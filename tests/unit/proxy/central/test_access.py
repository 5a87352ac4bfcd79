"""Who may use a door, and where a tunnel may end."""

from ipaddress import ip_address, ip_network

import pytest

from tidegate_proxy.central.access import Access, is_reachable_through_us

NEAR = ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1", "fe80::1%eth0"]
FAR = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:4860::1", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", [*NEAR, "::ffff:10.0.0.1"])
def test_near_addresses_are_allowed_without_a_word(address: str) -> None:
    """T8: docker-registry-proxy's users need no new key; an IPv4 client of an IPv6 socket is one."""
    assert Access().allows(ip_address(address))


@pytest.mark.parametrize("address", FAR)
def test_the_internet_is_not(address: str) -> None:
    """T8: an open proxy is nobody's default."""
    assert not Access().allows(ip_address(address))


def test_a_list_replaces_the_default() -> None:
    """T8."""
    access = Access([ip_network("203.0.113.0/24")])

    assert access.allows(ip_address("203.0.113.9"))
    assert not access.allows(ip_address("127.0.0.1"))
    assert not access.allows(ip_address("2001:db8::1"))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"]
)
def test_a_tunnel_never_ends_at_this_machine_or_at_its_links(address: str) -> None:
    """T8: a cloud's metadata would give this machine's rights to every client."""
    assert not is_reachable_through_us(ip_address(address))
    assert is_reachable_through_us(ip_address("10.0.0.1"))
