"""The addresses that this host's hosts file gives steered names (hosts(5)).

Clients read them without asking anybody, so their addresses are steered as if they had been learned, and the
agent's own connections go to the same ones. Other names in the file are not looked at.
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

from tidegate_dns.zone import normal
from tidegate_proxy.endpoint import IPAddress

HOSTS = Path("etc/hosts")
_MAX_BYTES = 1 << 20


def parse_hosts(text: str, covers: Callable[[str], bool]) -> Mapping[str, tuple[IPAddress, ...]]:
    """The addresses of each name that is covered, in the order of the file."""
    found: dict[str, dict[IPAddress, None]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        try:
            address = ip_address(words[0]) if words else None
        except ValueError:
            continue
        for name in map(normal, words[1:]):
            if address is not None and covers(name):
                found.setdefault(name, {})[address] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


class HostsFile:
    """The file as it is now; read again when it is another one."""

    def __init__(self, covers: Callable[[str], bool], root: Path = Path("/")) -> None:
        """`covers` is asked of each name whenever the file is read."""
        self._path = root / HOSTS
        self._covers = covers
        self._seen: tuple[int, int, int] | None = None
        self.addresses: Mapping[str, tuple[IPAddress, ...]] = {}
        self.poll()

    def poll(self, *, again: bool = False) -> bool:
        """Whether the addresses changed since the last call; `again` reads the file in any case."""
        seen = self._signature()
        if seen == self._seen and not again:
            return False
        self._seen = seen
        before, self.addresses = self.addresses, parse_hosts(self._content(), self._covers)
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
