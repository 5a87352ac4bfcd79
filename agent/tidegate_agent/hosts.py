"""The addresses that this host's hosts file gives names (hosts(5)).

Clients read them without asking anybody: those of steered names are steered as if they had been learned, and
the agent's own connections go where the clients' would have gone.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from tidegate_dns.zone import normal
from tidegate_proxy.endpoint import IPAddress

HOSTS = Path("etc/hosts")
_MAX_BYTES = 1 << 20


def parse_hosts(text: str) -> Mapping[str, tuple[IPAddress, ...]]:
    """The addresses of each name, in the order of the file; names as a zone has them."""
    found: dict[str, dict[IPAddress, None]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        try:
            address = ip_address(words[0]) if words else None
        except ValueError:
            continue
        for name in map(normal, words[1:]):
            if address is not None:
                found.setdefault(name, {})[address] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


class HostsFile:
    """The file as it is now; read again when it is another one."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._path = root / HOSTS
        self._seen: tuple[int, int, int] | None = None
        self.addresses: Mapping[str, tuple[IPAddress, ...]] = {}
        self.poll()

    def poll(self) -> bool:
        """Whether the addresses changed since the last call."""
        seen = self._signature()
        if seen == self._seen:
            return False
        self._seen = seen
        before, self.addresses = self.addresses, parse_hosts(self._content())
        return self.addresses != before

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _content(self) -> str:
        try:
            with self._path.open("rb") as file:
                return file.read(_MAX_BYTES).decode(errors="replace")
        except OSError:
            return ""
