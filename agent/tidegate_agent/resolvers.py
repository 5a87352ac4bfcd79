"""Which resolvers this host asks (resolv.conf(5), systemd-resolved.service(8)).

Behind systemd-resolved's stub the upstream servers are what counts: the stub's own queries go there, and
steering the stub as well would send our queries round in a circle. Nothing is ever written here.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from tidegate_proxy.endpoint import IPAddress

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")

_STUBS = frozenset({IPv4Address("127.0.0.53"), IPv4Address("127.0.0.54")})
_LOCALHOST = IPv4Address("127.0.0.1")
_MAX_RESOLVERS = 16
_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """The servers in the order they are asked, and the file that names them."""

    addresses: tuple[IPAddress, ...]
    source: Path


def parse_resolv_conf(text: str) -> tuple[IPAddress, ...]:
    """The `nameserver` addresses in order, each once, zones (`fe80::1%eth0`) kept; the rest is skipped."""
    found: dict[IPAddress, None] = {}
    for line in text.splitlines():
        words = line.split()
        # libc wants the keyword in the first column, and takes the first word after it.
        if len(words) >= 2 and words[0] == "nameserver" and not line[0].isspace():
            try:
                found[ip_address(words[1])] = None
            except ValueError:
                continue
    return tuple(found)[:_MAX_RESOLVERS]


def system_resolvers(etc: Path = RESOLV_CONF, resolved: Path = RESOLVED_UPSTREAM) -> Resolvers:
    """The host's resolvers now; this host itself where no `nameserver` is named, as libc has it."""
    listed = parse_resolv_conf(_content(etc))
    others = tuple(address for address in listed if address not in _STUBS)
    if len(others) == len(listed):
        return Resolvers(addresses=listed or (_LOCALHOST,), source=etc)
    upstream = tuple(a for a in parse_resolv_conf(_content(resolved)) if a not in _STUBS)
    return Resolvers(addresses=tuple(dict.fromkeys((*others, *upstream))), source=resolved)


class ResolverWatch:
    """Notices that the resolvers changed; polled, because files are replaced, rewritten and bind-mounted."""

    def __init__(self, etc: Path = RESOLV_CONF, resolved: Path = RESOLVED_UPSTREAM) -> None:
        self._etc = etc
        self._resolved = resolved
        self._doubtful = False
        self.current = system_resolvers(etc, resolved)

    def poll(self) -> Resolvers | None:
        """The new resolvers when they changed since the last call, else None.

        A file that names no server is believed when it is still so at the next call: it may be half written.
        """
        seen = system_resolvers(self._etc, self._resolved)
        if seen == self.current:
            self._doubtful = False
            return None
        if not parse_resolv_conf(_content(seen.source)) and not self._doubtful:
            self._doubtful = True
            return None
        self._doubtful = False
        self.current = seen
        return seen


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
