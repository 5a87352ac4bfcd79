"""Which resolvers a host asks, from every shape of resolv.conf and of systemd-resolved's files."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from tidegate_agent.resolved import asked_without_dns, over_tls, resolved_servers
from tidegate_agent.resolvers import Resolvers, ResolverWatch, parse_resolv_conf, system_resolvers


def addresses(*texts: str) -> tuple[object, ...]:
    return tuple(ip_address(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", addresses("192.0.2.1", "2001:db8::1")),
        ("nameserver\t192.0.2.1   # first\r\n", addresses("192.0.2.1")),
        ("nameserver fe80::1%eth0\n", addresses("fe80::1%eth0")),
        ("nameserver 192.0.2.1\nnameserver 192.0.2.1\n", addresses("192.0.2.1")),
        ("#nameserver 192.0.2.1\n; nameserver 192.0.2.2\n nameserver 192.0.2.3\n", ()),
        ("nameservers 192.0.2.1\nnameserver\nnameserver resolver.example\nnameserver 300.1.1.1\n", ()),
        ("search example\noptions rotate ndots:2\nnameserver 192.0.2.1", addresses("192.0.2.1")),
        ("", ()),
    ],
)
def test_nameserver_lines_are_read_as_libc_reads_them(text: str, expected: tuple[object, ...]) -> None:
    """N13: order kept, duplicates and nonsense left out, zones kept."""
    assert parse_resolv_conf(text) == expected


def test_the_number_of_resolvers_is_bounded() -> None:
    """I8: a generated file may list hundreds."""
    text = "".join(f"nameserver 192.0.2.{number}\n" for number in range(200))

    assert len(parse_resolv_conf(text)) == 16


class Host:
    """The files of a host, below a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    @property
    def resolvers(self) -> Resolvers:
        return system_resolvers(self.root)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\n"


def test_the_stub_is_steered_and_so_are_the_servers_behind_it(host: Host) -> None:
    """N13: what it has in its cache is learned on its way to the client, what nss-resolve asks behind it."""
    host.write("etc/resolv.conf", STUB)
    host.write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n")

    assert host.resolvers == Resolvers(
        addresses=addresses("127.0.0.53"), behind=addresses("192.0.2.1", "2001:db8::1")
    )
    assert host.resolvers.steered == addresses("127.0.0.53", "192.0.2.1", "2001:db8::1")


def test_a_link_with_routing_domains_only_is_asked_too(host: Host) -> None:
    """N13: systemd-resolved's resolv.conf leaves a VPN's servers out; each way to set them has its file."""
    host.write("etc/resolv.conf", STUB)
    host.write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\nsearch .\n")
    host.write(
        "run/systemd/resolve/netif/7", "# private\nLLMNR=no\nSERVERS=192.0.2.7 [2001:db8::7]:53%7#dns.test\n"
    )
    host.write("run/systemd/netif/links/8", "ADMIN_STATE=configured\nDNS=192.0.2.8 fe80::8\nDOMAINS=\n")

    assert host.resolvers.behind == addresses(
        "192.0.2.1", "192.0.2.7", "2001:db8::7", "192.0.2.8", "fe80::8%8"
    )


def test_a_server_at_another_port_is_not_steered(host: Host) -> None:
    """N13: only port 53 is; status names it."""
    host.write("etc/resolv.conf", STUB)
    host.write("run/systemd/resolve/resolv.conf", "")
    host.write("run/systemd/resolve/netif/7", "SERVERS=192.0.2.7:5353 192.0.2.8\n")
    host.write("etc/systemd/resolved.conf", "[Resolve]\nDNS=[2001:db8::9]:5300#dns.test 192.0.2.9\n")

    assert host.resolvers.behind == addresses("192.0.2.8")
    assert [str(server) for server in resolved_servers(host.root)] == [
        "192.0.2.7:5353",
        "192.0.2.8",
        "[2001:db8::9]:5300",
    ]


def test_where_the_stub_is_not_asked_what_is_behind_it_counts_all_the_same(host: Host) -> None:
    """N13: nss-resolve asks systemd-resolved, whatever resolv.conf says."""
    host.write("etc/resolv.conf", "nameserver 192.0.2.9\nnameserver 192.0.2.1\n")
    host.write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n")

    assert host.resolvers == Resolvers(
        addresses=addresses("192.0.2.9", "192.0.2.1"), behind=addresses("192.0.2.2")
    )


def test_a_resolved_that_does_not_run_has_no_servers(host: Host) -> None:
    """N13: networkd keeps its files without it."""
    host.write("etc/resolv.conf", "nameserver 192.0.2.9\n")
    host.write("run/systemd/netif/links/8", "DNS=192.0.2.8\n")
    host.write("etc/systemd/resolved.conf", "[Resolve]\nDNSOverTLS=yes\n")

    assert host.resolvers == Resolvers(addresses=addresses("192.0.2.9"))
    assert over_tls(host.root) == ""


def test_a_host_that_names_no_server_asks_itself(host: Host) -> None:
    """N13: as libc does; a missing file is the same as an empty one."""
    assert host.resolvers.addresses == addresses("127.0.0.1")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("options use-vc", True),
        ("options edns0 use-vc\noptions rotate", True),
        ("options usevc", True),
        ("options edns0 trust-ad single-request ndots:2", False),
        ("# options use-vc\n options use-vc\noptions", False),
    ],
)
def test_a_host_that_asks_over_tcp_alone_says_so(host: Host, options: str, expected: bool) -> None:
    """N13: then the agent's own look-ups do, too."""
    host.write("etc/resolv.conf", f"nameserver 192.0.2.1\n{options}\n")

    assert host.resolvers.over_tcp is expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ""),
        ({"etc/systemd/resolved.conf": "[Resolve]\n#DNSOverTLS=yes\n"}, ""),
        ({"etc/systemd/resolved.conf": "[Resolve]\nDNSOverTLS=yes\n"}, "yes"),
        ({"etc/systemd/resolved.conf": "[Resolve]\nDNSOverTLS = opportunistic\n"}, "opportunistic"),
        (
            {
                "etc/systemd/resolved.conf": "[Resolve]\nDNSOverTLS=yes\n",
                "etc/systemd/resolved.conf.d/z.conf": "[Resolve]\nDNSOverTLS=no\n",
            },
            "",
        ),
        (
            {
                "usr/lib/systemd/resolved.conf.d/a.conf": "[Resolve]\nDNSOverTLS=yes\n",
                "etc/systemd/resolved.conf.d/a.conf": "",
            },
            "",
        ),
        (
            {
                "etc/systemd/resolved.conf": "[Resolve]\nDNSOverTLS=opportunistic\n",
                "run/systemd/resolve/netif/3": "DNSOVERTLS=yes\nSERVERS=192.0.2.1\n",
            },
            "yes",
        ),
        ({"run/systemd/netif/links/3": "DNS=192.0.2.1\nDNS_OVER_TLS=yes\n"}, "yes"),
    ],
)
def test_dns_over_tls_is_found_wherever_it_is_set(host: Host, files: dict[str, str], expected: str) -> None:
    """Item 3: it is named in status."""
    host.write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n")
    for path, text in files.items():
        host.write(path, text)

    assert over_tls(host.root) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hosts: files resolve [!UNAVAIL=return] dns\n", True),
        ("passwd: files\nhosts:\tresolve\n", True),
        ("hosts: files dns # resolve\nnetworks: resolve\n", False),
        ("", False),
    ],
)
def test_programs_that_ask_without_dns_are_known(host: Host, text: str, expected: bool) -> None:
    """Item 3: only for them it matters what systemd-resolved's own queries look like."""
    host.write("etc/nsswitch.conf", text)

    assert asked_without_dns(host.root) is expected


def test_a_change_is_noticed_once(host: Host) -> None:
    """N13: rewritten in place or replaced, in either file; the same content again is no change."""
    host.write("etc/resolv.conf", "nameserver 192.0.2.1\n")
    watch = ResolverWatch(host.root)
    seen = [watch.poll()]
    host.write("etc/resolv.conf", "nameserver 192.0.2.2\n")
    seen += [watch.poll(), watch.poll()]
    host.write("etc/resolv.conf", "# again\nnameserver 192.0.2.2\n")
    seen += [watch.poll()]
    host.write("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.3\n")
    host.write("new", STUB)
    (host.root / "new").replace(host.root / "etc/resolv.conf")
    seen += [watch.poll()]
    host.write("etc/resolv.conf", f"{STUB}options use-vc\n")
    seen += [watch.poll()]

    assert [change and (change.steered, change.over_tcp) for change in seen] == [
        None,
        (addresses("192.0.2.2"), False),
        None,
        None,
        (addresses("127.0.0.53", "192.0.2.3"), False),
        (addresses("127.0.0.53", "192.0.2.3"), True),
    ]


def test_a_half_written_file_is_not_believed_at_once(host: Host) -> None:
    """N13: a moment without servers would take the steering of DNS away."""
    host.write("etc/resolv.conf", "nameserver 192.0.2.1\n")
    watch = ResolverWatch(host.root)
    host.write("etc/resolv.conf", "")
    half_written = watch.poll()
    host.write("etc/resolv.conf", "nameserver 192.0.2.1\n")
    whole = watch.poll()
    (host.root / "etc/resolv.conf").unlink()
    doubtful, believed = watch.poll(), watch.poll()

    assert (half_written, whole, doubtful) == (None, None, None)
    assert believed is not None and believed.addresses == addresses("127.0.0.1")
