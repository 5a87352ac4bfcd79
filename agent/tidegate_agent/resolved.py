"""What systemd-resolved asks, and how: its servers and whether it talks TLS to them (resolved.conf(5)).

Read from the files that it and systemd-networkd keep under /run, and from its configuration: its resolv.conf
leaves out the servers of links with routing domains only, such as a VPN's. Nothing is written or called here,
and a file that is not there, or not for us to read, says nothing.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from tidegate_proxy.endpoint import IPAddress

STUBS = frozenset({IPv4Address("127.0.0.53"), IPv4Address("127.0.0.54")})
"""Where it listens itself (systemd-resolved.service(8))."""

UPSTREAM = Path("run/systemd/resolve/resolv.conf")
_LINKS = ((Path("run/systemd/resolve/netif"), "SERVERS"), (Path("run/systemd/netif/links"), "DNS"))
"""One file a link, named by its index: what resolvectl or NetworkManager said, and what networkd knows."""

_CONFIGURED = ("usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd")
_DNS_PORT = 53
_MAX_BYTES = 65536
_TRUE = frozenset({"1", "yes", "true", "on", "y", "t"})
_SERVER = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+)|(?P<bare>[0-9A-Fa-f:.]+))"
    r"(?::(?P<port>[0-9]+))?(?:%(?P<scope>[^#\s]+))?(?:#(?P<name>\S*))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedServer:
    """One server as systemd-resolved writes it: ADDRESS[:PORT][%LINK][#NAME]."""

    address: IPAddress
    port: int = _DNS_PORT

    @classmethod
    def parse(cls, text: str, *, link: str = "") -> "ResolvedServer | None":
        """None for what is no server; a link-local one without a link is on `link`."""
        found = _SERVER.fullmatch(text)
        if found is None:
            return None
        scope = found["scope"] or link
        try:
            address = ip_address(found["v6"] or found["v4"] or found["bare"])
            if isinstance(address, IPv6Address) and address.is_link_local and scope:
                address = IPv6Address(f"{address}%{scope}")
        except ValueError:
            return None
        return cls(address=address, port=int(found["port"] or _DNS_PORT))

    def __str__(self) -> str:
        if self.port == _DNS_PORT:
            return str(self.address)
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


def resolved_servers(root: Path = Path("/")) -> tuple[ResolvedServer, ...]:
    """Every server of every link; none where systemd-resolved does not run."""
    if not (root / UPSTREAM).exists():
        return ()
    found: dict[ResolvedServer, None] = {}
    for words in map(str.split, _content(root / UPSTREAM).splitlines()):
        if len(words) >= 2 and words[0] == "nameserver" and (server := ResolvedServer.parse(words[1])):
            found[server] = None
    for link, settings, key in _links(root):
        for word in settings.get(key, "").split():
            if server := ResolvedServer.parse(word, link=link):
                found[server] = None
    for settings in _configured(root):
        for word in settings.get("DNS", "").split():
            if (server := ResolvedServer.parse(word)) and server.port != _DNS_PORT:
                found[server] = None  # which its resolv.conf cannot name
    return tuple(server for server in found if server.address not in STUBS)


def over_tls(root: Path = Path("/")) -> str:
    """How far it uses DNS over TLS, for any link: "yes", "opportunistic", or empty."""
    if not (root / UPSTREAM).exists():
        return ""
    configured = ""
    for settings in _configured(root):
        configured = settings.get("DNSOverTLS", configured)
    said = {_tls_mode(configured)}
    for _, settings, _ in _links(root):
        said |= {_tls_mode(settings.get(key, "")) for key in ("DNSOVERTLS", "DNS_OVER_TLS")}
    return next((mode for mode in ("yes", "opportunistic") if mode in said), "")


def links_are_hidden(root: Path = Path("/")) -> bool:
    """Servers were set for single links (resolvectl, NetworkManager): only its own user may read which."""
    folder = root / _LINKS[0][0]
    return folder.exists() and not os.access(folder, os.R_OK | os.X_OK)


def asked_without_dns(root: Path = Path("/")) -> bool:
    """Programs ask it by nss-resolve(8), so that none of their packets tells a name."""
    for line in _content(root / "etc/nsswitch.conf").splitlines():
        database, _, sources = line.partition("#")[0].partition(":")
        if database.strip() == "hosts":
            return "resolve" in sources.split()
    return False


def _tls_mode(said: str) -> str:
    word = said.strip().lower()
    return "yes" if word in _TRUE else word if word == "opportunistic" else ""


def _links(root: Path) -> Iterator[tuple[str, Mapping[str, str], str]]:
    for folder, key in _LINKS:
        for path in _files(root / folder):
            if path.name.isdecimal():
                yield path.name, _settings(_content(path)), key


def _configured(root: Path) -> Iterator[Mapping[str, str]]:
    """resolved.conf, then its drop-ins by name; one of a later folder hides its like (resolved.conf(5))."""
    main = [_content(root / folder / "resolved.conf") for folder in reversed(_CONFIGURED)]
    yield _settings(next((text for text in main if text), ""))
    drop_ins: dict[str, Path] = {}
    for folder in _CONFIGURED:
        drop_ins.update((path.name, path) for path in _files(root / folder / "resolved.conf.d"))
    for name in sorted(drop_ins):
        if name.endswith(".conf"):
            yield _settings(_content(drop_ins[name]))


def _settings(text: str) -> Mapping[str, str]:
    """KEY=VALUE lines, the last of each key; sections are not told apart, none here has two."""
    pairs = (line.partition("=") for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _files(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return ()


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
