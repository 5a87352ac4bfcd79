"""What the hosts file says of names, and what of a host cannot be steered."""

from ipaddress import ip_address
from pathlib import Path

from tidegate_agent.hosts import HostsFile, parse_hosts
from tidegate_agent.resolved import ResolvedServer
from tidegate_agent.unsteerable import left_on_their_link, unseen_behind_resolved, unsteerable

HOSTS = """
127.0.0.1       localhost
192.0.2.7       Registry.test other.test  # ours
2001:db8::7     registry.test.
192.0.2.8       registry.test registry.test
#192.0.2.9      registry.test
fe80::1%eth0    deep.test
nonsense        registry.test
"""


def test_the_addresses_of_names_are_read_in_order() -> None:
    """N1: any case, several names a line, several lines a name; comments and nonsense left out."""
    assert parse_hosts(HOSTS) == {
        "localhost": (ip_address("127.0.0.1"),),
        "registry.test": tuple(map(ip_address, ("192.0.2.7", "2001:db8::7", "192.0.2.8"))),
        "other.test": (ip_address("192.0.2.7"),),
        "deep.test": (ip_address("fe80::1%eth0"),),
    }


def test_the_file_is_read_again_when_it_is_another_one(tmp_path: Path) -> None:
    """N1: edited, replaced, or gone."""
    path = tmp_path / "etc/hosts"
    path.parent.mkdir()
    file = HostsFile(tmp_path)
    assert (file.addresses, file.poll()) == ({}, False)

    path.write_text(HOSTS)
    assert (file.poll(), file.poll()) == (True, False)
    (tmp_path / "new").write_text("192.0.2.9 other.test\n")
    (tmp_path / "new").replace(path)
    assert file.poll()
    assert file.addresses == {"other.test": (ip_address("192.0.2.9"),)}
    path.unlink()
    assert file.poll()
    assert file.addresses == {}


def test_each_finding_says_what_and_why_and_what_to_do() -> None:
    """Item 3: what cannot be steered is named in status."""
    findings = unsteerable(
        unserved={ip_address("fe80::1%eth0"): "no interface with this name"},
        hosts={"registry.test": [ip_address("192.0.2.7"), ip_address("127.0.0.1")]},
        unseen=unseen_behind_resolved(
            over_tls="yes",
            servers=[
                ResolvedServer(address=ip_address("192.0.2.1")),
                ResolvedServer(address=ip_address("2001:db8::1"), port=5353),
            ],
            links_are_hidden=True,
        ),
    )

    assert [found.what for found in findings] == [
        "resolver fe80::1%eth0",
        "127.0.0.1 registry.test in /etc/hosts",
        "systemd-resolved with DNSOverTLS=yes",
        "systemd-resolved's server [2001:db8::1]:5353",
        "systemd-resolved's servers of single links",
    ]
    assert "no interface with this name" in findings[0].why
    assert all(found.why and found.next_step for found in findings)


def test_a_back_end_that_cannot_reach_a_link_says_so() -> None:
    """N12, N15: iptables alone."""
    linked = [ip_address("fe80::1%eth0")]

    (finding,) = left_on_their_link(linked, "iptables")
    assert finding.what == "resolver fe80::1%eth0"
    assert 'steering.backend to "nft"' in finding.next_step
    assert not [*left_on_their_link(linked, "nft")]


def test_a_host_in_plain_sight_has_nothing_to_find() -> None:
    """Item 3."""
    plain = ResolvedServer(address=ip_address("192.0.2.1"))

    assert not [*unseen_behind_resolved(over_tls="", servers=[plain], links_are_hidden=False)]
    assert not unsteerable(unserved={}, hosts={"registry.test": [ip_address("192.0.2.7")]})
