"""Which registry a connection is for: host names become a `Site` once, at the edge.

A *registry* is what the configuration names (`docker.io`); a *site* is one host and port of it that
a client asked for (`registry-1.docker.io:443`). Tags and proofs are kept by registry, requests go to
the site. Pure: no socket, no look-up.
"""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

DOCKER_HUB = "docker.io"

Scheme = Literal["http", "https"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """One configured registry; a host may have a port (`example:5000`) or be a wildcard (`*.gcr.io`).

    `ca` (PEM) is trusted for what is asked for its sake and for nothing else, beside the system's anchors;
    `tls` verifies by both.
    """

    name: str
    hosts: tuple[str, ...]
    plain_http: bool = False
    ca: bytes = b""
    tls: ssl.SSLContext | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One host and port of a registry, as a client addressed it."""

    registry: str
    host: str
    port: int = 443
    scheme: Scheme = "https"
    ca: bytes = field(default=b"", repr=False)
    tls: ssl.SSLContext | None = field(default=None, compare=False)
    namespace: str = field(init=False, compare=False, repr=False)
    """What a mirror is told by `?ns=` (containerd, docs/hosts.md): Docker Hub's hosts have one name."""

    def __post_init__(self) -> None:
        # Once, because the hot path asks for it at each request.
        namespace = DOCKER_HUB if self.registry == DOCKER_HUB else self.authority
        object.__setattr__(self, "namespace", namespace)

    @property
    def authority(self) -> str:
        """`host` or `host:port` as it stands in a Host header (RFC 9110, 7.2)."""
        default = 443 if self.scheme == "https" else 80
        return self.host if self.port == default else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`scheme://host[:port]` (RFC 6454)."""
        return f"{self.scheme}://{self.authority}"

    def is_named_by(self, host: str) -> bool:
        """Whether a Host field names this site: its name in any case, its port or none."""
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "")
        return name.lower().rstrip(".") == self.host and (not port or port == str(self.port))


class Registries:
    """The configured registries, looked up by the host and port that a client addressed."""

    def __init__(self, registries: Iterable[Registry]) -> None:
        self._by_host: dict[tuple[str, int], Registry] = {}
        self._plain_ports: frozenset[int] = frozenset()
        self._hub: tuple[str, int] | None = None
        self.replace(registries)

    def replace(self, registries: Iterable[Registry]) -> None:
        """From now on it is these; sites that were given before stay as they are."""
        by_host: dict[tuple[str, int], Registry] = {}
        hub = None
        for registry in registries:
            default = 80 if registry.plain_http else 443
            for pattern in registry.hosts:
                host, _, port = pattern.partition(":")
                place = (host.lower(), int(port) if port else default)
                by_host[place] = registry
                if registry.name == DOCKER_HUB and hub is None:
                    hub = place
        self._by_host, self._hub = by_host, hub
        self._plain_ports = frozenset(port for (_, port), known in by_host.items() if known.plain_http)

    def site(self, host: str, port: int) -> Site | None:
        """The site for a host name and a TCP port, or None when no registry claims them."""
        name = host.lower()
        registry = self._registry(name, port)
        if registry is None:
            return None
        scheme: Scheme = "http" if registry.plain_http else "https"
        return Site(
            registry=registry.name, host=name, port=port, scheme=scheme, ca=registry.ca, tls=registry.tls
        )

    def by_namespace(self, namespace: str) -> Site | None:
        """The site that `?ns=` names, the way back of `Site.namespace`; None when no registry claims it."""
        if namespace == DOCKER_HUB:
            return None if self._hub is None else self.site(*self._hub)
        host, _, port = namespace.partition(":")
        if port:
            return self.site(host, int(port)) if port.isdecimal() and port.isascii() else None
        return self.site(host, 443) or self.site(host, 80)

    def claims(self, host: str) -> bool:
        """Whether any registry has this host name, on whatever port."""
        return bool(self.ports(host))

    def scheme_of(self, host: str, port: int) -> Scheme | None:
        """What the registry speaks that has this host name on this TCP port; None when none has."""
        registry = self._registry(host.lower(), port)
        if registry is None:
            return None
        return "http" if registry.plain_http else "https"

    def plain_http_on(self, port: int) -> bool:
        """Whether any registry without TLS has this TCP port."""
        return port in self._plain_ports

    def ports(self, host: str) -> frozenset[int]:
        """The TCP ports on which registries have this host name."""
        name = host.lower()
        _, _, parent = name.partition(".")
        return frozenset(port for pattern, port in self._by_host if pattern in (name, f"*.{parent}"))

    def _registry(self, name: str, port: int) -> Registry | None:
        _, _, parent = name.partition(".")
        return self._by_host.get((name, port)) or self._by_host.get((f"*.{parent}", port))
