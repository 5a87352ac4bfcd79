"""Names: what this tier is called by others, and how it finds the addresses of registries.

The machine's own resolver is asked (getaddrinfo(3)), so that /etc/hosts and a container's network count.
What was found last serves on while it does not answer (RFC 8767).
"""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tidegate_agent.registry_host import RegistryHost

_KNOWN_FOR_S = 10.0
_THREADS = 16
_MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class _Found:
    addresses: tuple[str, ...]
    until: float


class Addresses:
    """Looks host names up, in threads of its own: one that hangs must not hold up the disk."""

    def __init__(self, *, ipv6: bool) -> None:
        self._family = socket.AF_UNSPEC if ipv6 else socket.AF_INET
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="look-up")
        self._known: OrderedDict[str, _Found] = OrderedDict()

    async def of(self, host: str) -> Sequence[str]:
        """The addresses, in the order to try them; raises OSError where none was ever found."""
        known = self._known.get(host)
        if known is not None and time.monotonic() < known.until:
            return known.addresses
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, None, self._family, socket.SOCK_STREAM)
            )
        except OSError:
            if known is None:
                raise
            return known.addresses
        addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
        self._known[host] = _Found(addresses, time.monotonic() + _KNOWN_FOR_S)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return addresses

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def own_names(hostname: str, hosts_file: str) -> tuple[str, ...]:
    """This machine's name, and what /etc/hosts (`hosts_file`) calls it beside; no network is asked. Pure."""
    names = [hostname]
    for line in hosts_file.splitlines():
        words = line.partition("#")[0].split()[1:]
        if hostname in words:
            names += words
    return tuple(dict.fromkeys(name.lower() for name in (*names, "localhost") if _is_name(name)))


def machine_names() -> tuple[str, ...]:
    """`own_names` of this machine."""
    try:
        hosts_file = Path("/etc/hosts").read_text(errors="replace")
    except OSError:
        hosts_file = ""
    return own_names(socket.gethostname(), hosts_file)


def _is_name(text: str) -> bool:
    try:
        host = RegistryHost.parse(text)
    except ValueError:
        return False
    return host.port is None and not host.is_wildcard
