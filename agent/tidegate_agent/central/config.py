"""The central tier's configuration: every key of /etc/tidegate/central.toml with its default.

The parts that an agent has too mean the same in both. What this version does not implement yet stands in
`NOT_YET`. This module looks at nothing of the machine but the one file.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from tidegate_agent.config import (
    RESERVED_VARIABLES,
    CacheConfig,
    CredentialConfig,
    RegistryConfig,
    TagTier,
    UpstreamConfig,
    check_credentials,
    check_registries,
    check_tags,
    merged_registries,
)
from tidegate_agent.forms import AbsolutePath, Listen, parse_listen
from tidegate_agent.registry_host import RegistryHost
from tidegate_agent.upstream_check import check_upstreams
from tidegate_core.errors import UsageError
from tidegate_core.settings import Form, listed, read_settings
from tidegate_proxy.central.access import NEAR, Network
from tidegate_proxy.endpoint import Endpoint

DEFAULT_FILE = Path("/etc/tidegate/central.toml")
HANDED_OVER = "TIDEGATE_HANDED_OVER"
"""Our own word to the process that we become; see `handover`."""


def _listens(value: object) -> tuple[Endpoint, ...]:
    listens = listed(value)
    if not isinstance(listens, list) or not listens:
        raise ValueError
    return tuple(parse_listen(each) for each in listens)


def _network(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError
    return ip_network(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    try:
        host = RegistryHost.parse(value)
    except ValueError as error:
        if "IP address" in str(error):
            reason = (
                "the tier's own CA vouches for names alone; for an address give [mirror] certificate and key"
            )
            raise ValueError(reason) from error
        raise
    if host.port is not None or host.is_wildcard:
        raise ValueError
    return host.pattern


Listens = Annotated[
    tuple[Endpoint, ...],
    Form(
        accepted='an address and a port, such as "0.0.0.0:5443", or a list of them',
        read=_listens,
        show=lambda listens: [str(each) for each in listens],
    ),
]
Cidr = Annotated[Network, Form(accepted='a network such as "10.0.0.0/8"', read=_network)]
MirrorName = Annotated[
    str,
    Form(accepted='a host name that clients have for this tier, such as "central.example.org"', read=_name),
]


def _everywhere(port: int) -> tuple[Endpoint, ...]:
    return Endpoint.of("0.0.0.0", port), Endpoint.of("::", port)


MIRROR_LISTEN, CONNECT_LISTEN = _everywhere(5443), _everywhere(3128)
CACHE = CacheConfig()
ADMIN_LISTEN = Endpoint.of("127.0.0.1", 9078)  # beside an agent's


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorConfig:
    """The containerd mirror protocol over TLS. Without a certificate the tier makes its own, for `names`."""

    listen: Listens = MIRROR_LISTEN
    certificate: AbsolutePath | None = None
    key: AbsolutePath | None = None
    client_ca: AbsolutePath | None = None
    names: tuple[MirrorName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectConfig:
    """The CONNECT proxy, and what it does with hosts that are no registries."""

    listen: Listens = CONNECT_LISTEN
    others: Literal["tunnel", "refuse"] = "tunnel"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """Who may use either door."""

    allow: tuple[Cidr, ...] = NEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class PushConfig:
    """Whether uploads, and whatever else changes a repository, may pass through the CONNECT proxy."""

    allow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    """Where metrics and health are served over TCP, beside the unix socket."""

    listen: Listen = ADMIN_LISTEN


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralConfig:
    """Everything `tidegate central` is told; `registry` holds the merged list."""

    state_dir: AbsolutePath = Path("/var/lib/tidegate-central")
    runtime_dir: AbsolutePath = Path("/run/tidegate-central")
    default_registries: bool = True
    ipv6: bool = True
    mirror: MirrorConfig = MirrorConfig()
    connect: ConnectConfig = ConnectConfig()
    access: AccessConfig = AccessConfig()
    cache: CacheConfig = CACHE
    push: PushConfig = PushConfig()
    admin: AdminConfig = AdminConfig()
    registry: tuple[RegistryConfig, ...] = ()
    tags: tuple[TagTier, ...] = ()
    upstream: tuple[UpstreamConfig, ...] = ()
    credential: tuple[CredentialConfig, ...] = ()

    @property
    def host_patterns(self) -> tuple[str, ...]:
        """All names and wildcards of registries, each once."""
        return tuple(dict.fromkeys(host.pattern for registry in self.registry for host in registry.hosts))

    @property
    def authority_dir(self) -> Path:
        return self.state_dir / "ca"

    @property
    def socket_path(self) -> Path:
        return self.runtime_dir / "central.sock"


NOT_YET: Mapping[str, Callable[[CentralConfig], bool]] = {
    '[[upstream]] of kind "mirror"': lambda config: any(each.kind == "mirror" for each in config.upstream),
}


def load_config(
    file: Path | None = None,
    *,
    environment: Mapping[str, str],
    command_line: Mapping[str, str] | None = None,
    also: Iterable[RegistryConfig] = (),
    last_tags: Iterable[TagTier] = (),
) -> CentralConfig:
    """The configuration from all its sources; UsageError for anything unknown, wrong or not in this version.

    A `file` that is given must exist; without one, DEFAULT_FILE is read where it exists. `also` are
    registries that are added where none has their hosts, `last_tags` tiers behind those configured.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    read = read_settings(
        CentralConfig,
        file=file,
        environment=environment,
        command_line=command_line or {},
        reserved=(*RESERVED_VARIABLES, HANDED_OVER),
    )
    source = str(file) if file else "configuration"
    known = merged_registries(read.registry, built_in=read.default_registries, source=source)
    tags = (*read.tags, *last_tags)
    return _checked(replace(read, registry=_with(known, also), tags=tags), source)


def _with(known: tuple[RegistryConfig, ...], also: Iterable[RegistryConfig]) -> tuple[RegistryConfig, ...]:
    names = {entry.name for entry in known}
    hosts = {host for entry in known for host in entry.hosts}
    return (*known, *(each for each in also if each.name not in names and not hosts & set(each.hosts)))


def _checked(config: CentralConfig, source: str) -> CentralConfig:
    check_registries(config.registry, source)
    check_upstreams(config.upstream, source)
    names = {entry.name for entry in config.registry}
    check_credentials(config.credential, names, source)
    check_tags(config.tags, names, source)
    for entry in config.registry:
        if entry.mode is not None:
            cause = f"{source}: registry {entry.name!r} has a mode, and this tier steers nothing"
            raise UsageError(cause, next_step="remove it; it belongs into an agent's configuration")
    mirror = config.mirror
    if (mirror.certificate is None) != (mirror.key is None):
        missing = "certificate" if mirror.certificate is None else "key"
        raise UsageError(f"{source}: `mirror` has no `{missing}`", next_step=f"add mirror.{missing} = ...")
    if mirror.certificate is not None and mirror.names:
        cause = f"{source}: `mirror.names` is for a certificate that this tier makes, and one is given"
        raise UsageError(cause, next_step="remove one of them")
    for setting, is_used in NOT_YET.items():
        if is_used(config):
            raise UsageError(
                f"{source}: {setting} is not in this version yet", next_step="remove the setting"
            )
    return config
