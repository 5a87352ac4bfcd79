"""Which resolvers a host asks, from every shape of resolv.conf."""

from ipaddress import ip_address
from pathlib import Path

import pytest

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


def test_behind_the_stub_the_upstream_servers_count(tmp_path: Path) -> None:
    """N13: steering systemd-resolved's stub would send our own queries round in a circle."""
    etc, upstream = tmp_path / "resolv.conf", tmp_path / "upstream.conf"
    etc.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    upstream.write_text("nameserver 192.0.2.1\nnameserver 2001:db8::1\n")

    assert system_resolvers(etc, upstream) == Resolvers(
        addresses=addresses("192.0.2.1", "2001:db8::1"), source=upstream
    )


def test_servers_beside_the_stub_count_as_well(tmp_path: Path) -> None:
    """N13: and the stub itself never does, wherever it is listed."""
    etc, upstream = tmp_path / "resolv.conf", tmp_path / "upstream.conf"
    etc.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.9\n")
    upstream.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.1\n")

    assert system_resolvers(etc, upstream).addresses == addresses("192.0.2.9", "192.0.2.1")


def test_without_the_stub_resolveds_file_is_not_read(tmp_path: Path) -> None:
    """N13: it may be there, and unused."""
    etc, upstream = tmp_path / "resolv.conf", tmp_path / "upstream.conf"
    etc.write_text("nameserver 192.0.2.9\n")
    upstream.write_text("nameserver 192.0.2.1\n")

    assert system_resolvers(etc, upstream) == Resolvers(addresses=addresses("192.0.2.9"), source=etc)


def test_a_host_that_names_no_server_asks_itself(tmp_path: Path) -> None:
    """N13: as libc does; a missing file is the same as an empty one."""
    assert system_resolvers(tmp_path / "none", tmp_path / "none").addresses == addresses("127.0.0.1")


def test_a_stub_without_upstream_servers_has_none(tmp_path: Path) -> None:
    """N13: systemd-resolved before the network is up."""
    etc = tmp_path / "resolv.conf"
    etc.write_text("nameserver 127.0.0.53\n")

    assert system_resolvers(etc, tmp_path / "none").addresses == ()


def test_a_change_is_noticed_once(tmp_path: Path) -> None:
    """N13: rewritten in place or replaced, in either file; the same content again is no change."""
    etc, upstream = tmp_path / "resolv.conf", tmp_path / "upstream.conf"
    etc.write_text("nameserver 192.0.2.1\n")
    watch = ResolverWatch(etc, upstream)
    seen = [watch.poll()]
    etc.write_text("nameserver 192.0.2.2\n")
    seen += [watch.poll(), watch.poll()]
    etc.write_text("# again\nnameserver 192.0.2.2\n")
    seen += [watch.poll()]
    upstream.write_text("nameserver 192.0.2.3\n")
    (tmp_path / "new").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "new").replace(etc)
    seen += [watch.poll()]

    assert [change and change.addresses for change in seen] == [
        None,
        addresses("192.0.2.2"),
        None,
        None,
        addresses("192.0.2.3"),
    ]
    assert watch.current.addresses == addresses("192.0.2.3")


def test_a_half_written_file_is_not_believed_at_once(tmp_path: Path) -> None:
    """N13: a moment without servers would take the steering of DNS away."""
    etc = tmp_path / "resolv.conf"
    etc.write_text("nameserver 192.0.2.1\n")
    watch = ResolverWatch(etc, tmp_path / "none")
    etc.write_text("")
    half_written = watch.poll()
    etc.write_text("nameserver 192.0.2.1\n")
    whole = watch.poll()
    etc.unlink()
    doubtful, believed = watch.poll(), watch.poll()

    assert (half_written, whole, doubtful) == (None, None, None)
    assert believed is not None and believed.addresses == addresses("127.0.0.1")
