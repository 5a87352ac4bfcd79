"""Which resolvers this host asks (resolv.conf(5), systemd-resolved.service(8)).

Those that resolv.conf names, a daemon on loopback like any other: what it tells its clients is learned on
the last part of the way, however it came by it. And the servers that systemd-resolved asks in turn, because
some of its clients ask it without DNS. No query goes round in a circle, since each is forwarded to whom it
was sent to. Nothing is ever written here.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from tidegate_agent.resolved import resolved_servers
from tidegate_dns.address import DNS_PORT, interface_of
from tidegate_proxy.endpoint import IPAddress

RESOLV_CONF = Path("etc/resolv.conf")

_LOCALHOST = IPv4Address("127.0.0.1")
_MAX_RESOLVERS = 16
_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """The servers in the order they are asked, and what else is said of them."""

    addresses: tuple[IPAddress, ...]
    behind: tuple[IPAddress, ...] = ()
    """What systemd-resolved asks: steered as well, and never asked by us."""
    over_tcp: bool = False
    """`options use-vc`: the host asks over TCP alone."""

    @property
    def steered(self) -> tuple[IPAddress, ...]:
        """All whose answers are learned from."""
        return tuple(dict.fromkeys((*self.addresses, *self.behind)))


def parse_resolv_conf(text: str) -> tuple[IPAddress, ...]:
    """The `nameserver` addresses in order, each once, zones (`fe80::1%eth0`) kept; the rest is skipped."""
    found: dict[IPAddress, None] = {}
    for words in _lines(text, "nameserver"):
        try:
            found[ip_address(words[0])] = None
        except ValueError:
            continue
    return tuple(found)[:_MAX_RESOLVERS]


def uses_tcp(text: str) -> bool:
    """Whether `options use-vc` (glibc; `usevc` as the BSDs have it) is set."""
    return any({"use-vc", "usevc"} & set(words) for words in _lines(text, "options"))


def system_resolvers(root: Path = Path("/")) -> Resolvers:
    """The host's resolvers now; this host itself where no `nameserver` is named, as libc has it."""
    text = _content(root / RESOLV_CONF)
    listed = tuple(dict.fromkeys(map(_named, parse_resolv_conf(text)))) or (_LOCALHOST,)
    behind = dict.fromkeys(
        _named(server.address) for server in resolved_servers(root) if server.port == DNS_PORT
    )
    return Resolvers(
        addresses=listed,
        behind=tuple(address for address in behind if address not in listed)[:_MAX_RESOLVERS],
        over_tcp=uses_tcp(text),
    )


class ResolverWatch:
    """Notices that the resolvers changed; polled, because files are replaced, rewritten and bind-mounted."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._doubtful = False
        self.current = system_resolvers(root)

    def poll(self) -> Resolvers | None:
        """The new resolvers when they changed since the last call, else None.

        A file that names no server is believed when it is still so at the next call: it may be half written.
        """
        seen = system_resolvers(self._root)
        if seen == self.current:
            self._doubtful = False
            return None
        if not parse_resolv_conf(_content(self._root / RESOLV_CONF)) and not self._doubtful:
            self._doubtful = True
            return None
        self._doubtful = False
        self.current = seen
        return seen


def _named(address: IPAddress) -> IPAddress:
    """A scope by its interface's name, whichever way it was written."""
    if isinstance(address, IPv6Address) and address.scope_id and (name := interface_of(address)):
        return IPv6Address(f"{IPv6Address(address.packed)}%{name}")
    return address


def _lines(text: str, keyword: str) -> list[list[str]]:
    """What follows the keyword, which libc wants in the first column."""
    found = [line.split() for line in text.splitlines() if line[:1].strip()]
    return [words[1:] for words in found if len(words) >= 2 and words[0] == keyword]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
