"""What the hosts file says of steered names, and what of a host cannot be steered."""

from ipaddress import ip_address
from pathlib import Path

from tidegate_agent.hosts import HostsFile, parse_hosts
from tidegate_agent.resolved import ResolvedServer
from tidegate_agent.unsteerable import unsteerable
from tidegate_dns.zone import Zone

ZONE = Zone.of(["registry.test", "*.wild.test"])
HOSTS = """
127.0.0.1       localhost
192.0.2.7       Registry.test reg.wild.test other.test  # ours
2001:db8::7     registry.test.
192.0.2.8       registry.test registry.test
#192.0.2.9      registry.test
fe80::1%eth0    deep.reg.wild.test
nonsense        registry.test
"""


def test_the_addresses_of_steered_names_are_read_in_order() -> None:
    """N1: any case, several names a line, several lines a name; comments and other names left out."""
    assert parse_hosts(HOSTS, ZONE.covers) == {
        "registry.test": tuple(map(ip_address, ("192.0.2.7", "2001:db8::7", "192.0.2.8"))),
        "reg.wild.test": (ip_address("192.0.2.7"),),
    }


def test_the_file_is_read_again_when_it_is_another_one(tmp_path: Path) -> None:
    """N1: edited, replaced, or gone; and when other names are steered."""
    path = tmp_path / "etc/hosts"
    path.parent.mkdir()
    steered = [ZONE]

    def covers(name: str) -> bool:
        return steered[-1].covers(name)

    file = HostsFile(covers, tmp_path)
    assert (file.addresses, file.poll()) == ({}, False)

    path.write_text(HOSTS)
    assert file.poll()
    assert not file.poll()
    steered.append(Zone.of(["other.test"]))
    assert file.poll(again=True)
    assert file.addresses == {"other.test": (ip_address("192.0.2.7"),)}
    path.unlink()
    assert file.poll()
    assert file.addresses == {}


def test_each_finding_says_what_and_why_and_what_to_do() -> None:
    """Item 3: what cannot be steered is named in status."""
    findings = unsteerable(
        unserved={ip_address("fe80::1%eth0"): "no interface with this name"},
        hosts={"registry.test": [ip_address("192.0.2.7"), ip_address("127.0.0.1")]},
        over_tls="yes",
        resolved=[
            ResolvedServer(address=ip_address("192.0.2.1")),
            ResolvedServer(address=ip_address("2001:db8::1"), port=5353),
        ],
        wildcards=True,
    )

    assert [found.what for found in findings] == [
        "resolver fe80::1%eth0",
        "127.0.0.1 registry.test in /etc/hosts",
        "systemd-resolved with DNSOverTLS=yes",
        "systemd-resolved's server [2001:db8::1]:5353",
    ]
    assert "no interface with this name" in findings[0].why
    assert all(found.why and found.next_step for found in findings)


def test_where_every_name_can_be_looked_up_ahead_no_transport_matters() -> None:
    """Item 3: only a wildcard's names have to be seen on the wire."""
    assert not unsteerable(
        unserved={},
        hosts={},
        over_tls="yes",
        resolved=[ResolvedServer(address=ip_address("192.0.2.1"), port=5353)],
        wildcards=False,
    )
