"""The agent's configuration: every key of /etc/tidegate/agent.toml with its default, one value per part.

An empty file is a working agent. Registries merge with the built-in ones by name. What this version does not
implement yet stands in one table, `NOT_YET`, and is refused rather than ignored. This module starts nothing
and looks at nothing of the machine but the one file.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from tidegate_agent.firewall_mark import DEFAULT_MARK
from tidegate_agent.forms import (
    AbsolutePath,
    Duration,
    FirewallMark,
    HostName,
    Lease,
    Listen,
    PasswordFile,
    Port,
    Regex,
    Resolvers,
    Size,
    TokenHost,
    UpstreamUrl,
    Username,
)
from tidegate_agent.registry_host import HOST_FORM, RegistryHost
from tidegate_agent.upstream_check import check_upstreams
from tidegate_core.errors import UsageError
from tidegate_core.settings import read_settings
from tidegate_proxy.endpoint import Endpoint
from tidegate_proxy.storage.limits import Limits

DEFAULT_FILE = Path("/etc/tidegate/agent.toml")
RESERVED_VARIABLES = ("TIDEGATE_CONFIG",)
DEFAULT_MIN_FREE = 5 * 2**30
DEFAULT_LISTEN = Endpoint.of("127.0.0.1", 9077)

Mode = Literal["learn", "sinkhole"]


# The parts.


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringConfig:
    """How connections and look-ups are redirected to the agent."""

    backend: Literal["auto", "nft", "ebpf", "nft-lease", "iptables", "none"] = "auto"
    lease: Lease = timedelta(seconds=3)
    mark: FirewallMark = DEFAULT_MARK
    port: Port = 8443
    linger: Duration = timedelta(hours=24)
    forwarded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    """Whose answers are learned from."""

    resolvers: Resolvers = "system"
    mode: Mode = "learn"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """One registry by its usual name, and the hosts that serve its API; without: those built in."""

    name: str
    hosts: tuple[HostName, ...] = ()
    mode: Mode | None = None
    plain_http: bool = False
    ca: AbsolutePath | None = None

    def port_of(self, host: RegistryHost) -> int:
        """The TCP port clients use for this host."""
        return host.port or (80 if self.plain_http else 443)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """What may be kept, and for how long it may be served when its registry does not answer."""

    max_size: Size = 32 * 2**30
    min_free: Size = DEFAULT_MIN_FREE
    durability: Literal["fsync", "relaxed"] = "fsync"
    stale_max: Duration = timedelta(days=30)

    @property
    def limits(self) -> Limits:
        """On a small file system the default gives way; a value of one's own is taken at its word."""
        return Limits(
            max_size_bytes=self.max_size,
            min_free_bytes=self.min_free,
            yields=self.min_free == DEFAULT_MIN_FREE,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TagTier:
    """How long a tag that matches is served without asking its registry; the first match wins.

    Without `registry` it is for all of them; `repository` may hold `*`.
    """

    match: Regex
    fresh_for: Duration
    registry: str = ""
    repository: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfig:
    """Where a miss is fetched from, in the order configured.

    Going direct comes last where it is not in the list, unless one denies it.
    """

    kind: Literal["central", "connect", "mirror", "direct"]
    url: UpstreamUrl | None = None
    ca: AbsolutePath | None = None
    certificate: AbsolutePath | None = None
    key: AbsolutePath | None = None
    fallback: Literal["direct", "deny"] = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialConfig:
    """A login the agent uses itself, and who may read what it fetched.

    `token_host`: a token service that may have the password although its name is not the registry's kin.
    """

    registry: str
    username: Username
    password_file: PasswordFile
    share: Literal["node", "nobody"]
    token_host: TokenHost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushConfig:
    """Whether uploads, and whatever else changes a repository, may pass through."""

    allow: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    """Where metrics and health are served over TCP, beside the agent's unix socket."""

    listen: Listen = DEFAULT_LISTEN


def _hosts_of(*names: str) -> tuple[RegistryHost, ...]:
    return tuple(RegistryHost.parse(name) for name in names)


DEFAULT_REGISTRIES = (
    RegistryConfig(name="docker.io", hosts=_hosts_of("registry-1.docker.io", "index.docker.io")),
    RegistryConfig(name="ghcr.io", hosts=_hosts_of("ghcr.io")),
    RegistryConfig(name="quay.io", hosts=_hosts_of("quay.io")),
    RegistryConfig(name="registry.k8s.io", hosts=_hosts_of("registry.k8s.io")),
    RegistryConfig(name="gcr.io", hosts=_hosts_of("gcr.io", "*.gcr.io")),
    RegistryConfig(name="pkg.dev", hosts=_hosts_of("*.pkg.dev")),
    RegistryConfig(name="mcr.microsoft.com", hosts=_hosts_of("mcr.microsoft.com")),
    RegistryConfig(name="public.ecr.aws", hosts=_hosts_of("public.ecr.aws")),
    RegistryConfig(name="nvcr.io", hosts=_hosts_of("nvcr.io")),
    RegistryConfig(name="registry.gitlab.com", hosts=_hosts_of("registry.gitlab.com")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Everything `tidegate agent` is told; `registry` holds the merged list."""

    state_dir: AbsolutePath = Path("/var/lib/tidegate")
    runtime_dir: AbsolutePath = Path("/run/tidegate")
    default_registries: bool = True
    steering: SteeringConfig = SteeringConfig()
    dns: DnsConfig = DnsConfig()
    cache: CacheConfig = CacheConfig()
    push: PushConfig = PushConfig()
    admin: AdminConfig = AdminConfig()
    registry: tuple[RegistryConfig, ...] = ()
    tags: tuple[TagTier, ...] = ()
    upstream: tuple[UpstreamConfig, ...] = ()
    credential: tuple[CredentialConfig, ...] = ()

    @property
    def host_patterns(self) -> tuple[str, ...]:
        """All names and wildcards to steer, each once: the zone, and what the CA may vouch for."""
        return tuple(dict.fromkeys(host.pattern for registry in self.registry for host in registry.hosts))

    @property
    def sinkholed(self) -> tuple[str, ...]:
        """The names and wildcards among them that are told an address of this host."""
        found = (entry for entry in self.registry if (entry.mode or self.dns.mode) == "sinkhole")
        return tuple(dict.fromkeys(host.pattern for entry in found for host in entry.hosts))

    @property
    def authority_dir(self) -> Path:
        return self.state_dir / "ca"

    @property
    def socket_path(self) -> Path:
        return self.runtime_dir / "agent.sock"


# What this version does not do yet. Whoever implements one of these deletes its line.

NOT_YET: Mapping[str, Callable[[AgentConfig], bool]] = {
    '[[upstream]] of kind "mirror"': lambda config: any(
        upstream.kind == "mirror" for upstream in config.upstream
    ),
}


def load_config(
    file: Path | None = None,
    *,
    environment: Mapping[str, str],
    command_line: Mapping[str, str] | None = None,
) -> AgentConfig:
    """The configuration from all its sources; UsageError for anything unknown, wrong or not in this version.

    A `file` that is given must exist; without one, DEFAULT_FILE is read where it exists.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    read = read_settings(
        AgentConfig,
        file=file,
        environment=environment,
        command_line=command_line or {},
        reserved=RESERVED_VARIABLES,
    )
    source = str(file) if file else "configuration"
    return checked(merged(read, source), source)


def merged(config: AgentConfig, source: str) -> AgentConfig:
    """The configuration with the built-in registries."""
    known = merged_registries(config.registry, built_in=config.default_registries, source=source)
    return replace(config, registry=known)


def merged_registries(
    entries: Iterable[RegistryConfig], *, built_in: bool, source: str
) -> tuple[RegistryConfig, ...]:
    """The built-in registries and these; an entry of the same name replaces what it gives."""
    registries = {entry.name: entry for entry in DEFAULT_REGISTRIES} if built_in else {}
    seen: set[str] = set()
    for at, entry in enumerate(entries):
        key = f"{source}: `registry[{at}]`"
        if entry.name in seen:
            raise UsageError(
                f"{key} repeats the name {entry.name!r}", next_step="put their hosts into one table"
            )
        seen.add(entry.name)
        known = registries.get(entry.name)
        if not entry.hosts and known is None:
            step = f"add `registry[{at}].hosts`, a list, each item {HOST_FORM}"
            raise UsageError(
                f"{key} ({entry.name!r}) has no hosts and is not a built-in registry", next_step=step
            )
        registries[entry.name] = replace(entry, hosts=entry.hosts or (known.hosts if known else ()))
    return tuple(registries.values())


def checked(config: AgentConfig, source: str) -> AgentConfig:
    """The same configuration; UsageError for parts that contradict each other or are not in this version."""
    check_registries(config.registry, source)
    _check_modes(config, source)
    check_upstreams(config.upstream, source)
    names = {entry.name for entry in config.registry}
    check_credentials(config.credential, names, source)
    check_tags(config.tags, names, source)
    if config.steering.forwarded and config.steering.backend not in ("auto", "nft"):
        raise UsageError(
            f"{source}: steering.forwarded = true needs nft; steering.backend is {config.steering.backend!r}",
            next_step='set steering.backend to "nft" or "auto", or remove steering.forwarded',
        )
    missing = list(not_in_this_version(config))
    if missing:
        raise UsageError(f"{source}: {missing[0]} is not in this version yet", next_step="remove the setting")
    return config


def check_registries(registries: Iterable[RegistryConfig], source: str) -> None:
    """UsageError for a host that belongs to two registries, and where there is none at all.

    On different ports one host may be several registries.
    """
    owners: dict[tuple[str, int], str] = {}
    for entry in registries:
        if entry.plain_http and entry.ca is not None:
            cause = f"{source}: registry {entry.name!r} has a ca, and plain_http says that it speaks no TLS"
            raise UsageError(cause, next_step="remove one of them")
        for host in entry.hosts:
            owner = owners.setdefault((host.pattern, entry.port_of(host)), entry.name)
            if owner != entry.name:
                cause = f"{source}: host {host} belongs to two registries, {owner!r} and {entry.name!r}"
                raise UsageError(cause, next_step="remove it from one of them")
    if not owners:
        raise UsageError(f"{source}: no registry is left to steer", next_step="add a [[registry]] with hosts")


def _check_modes(config: AgentConfig, source: str) -> None:
    """UsageError for a host of two modes, and for sinkholes where containers would be told of them."""
    modes: dict[str, Mode] = {}
    for entry in config.registry:
        mode = entry.mode or config.dns.mode
        for host in entry.hosts:
            if modes.setdefault(host.pattern, mode) != mode:
                cause = (
                    f'{source}: host {host.pattern} is in registries of mode "learn" and of mode "sinkhole"'
                )
                raise UsageError(cause, next_step="give both [[registry]] tables the same mode")
    if config.steering.forwarded and "sinkhole" in modes.values():
        cause = f"{source}: steering.forwarded does not go with sinkholes: their address is this host's alone"
        raise UsageError(cause, next_step='set mode = "learn", or remove steering.forwarded')


def check_credentials(credentials: Iterable[CredentialConfig], registries: set[str], source: str) -> None:
    """UsageError for a login of a registry that there is not, or a second one of the same."""
    seen: set[str] = set()
    for at, credential in enumerate(credentials):
        key = f"{source}: `credential[{at}].registry` = {credential.registry!r}"
        _check_name(credential.registry, registries, key)
        if credential.registry in seen:
            raise UsageError(f"{key} has a login already", next_step="remove one of them")
        seen.add(credential.registry)


def check_tags(tiers: Iterable[TagTier], registries: set[str], source: str) -> None:
    """UsageError for a tier of a registry that there is not."""
    for at, tier in enumerate(tiers):
        if tier.registry:
            key = f"{source}: `tags[{at}].registry` = {tier.registry!r}"
            _check_name(tier.registry, registries, key)


def _check_name(name: str, registries: set[str], key: str) -> None:
    if name in registries:
        return
    nearest = get_close_matches(name, registries, n=1)
    known = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(registries))}"
    raise UsageError(f"{key} is no registry's name", next_step=known)


def tls_ports(registries: Iterable[RegistryConfig]) -> set[int]:
    """The ports at which registries speak TLS."""
    return {entry.port_of(host) for entry in registries if not entry.plain_http for host in entry.hosts}


def not_in_this_version(config: AgentConfig) -> Iterable[str]:
    """The settings that are valid and yet would do nothing."""
    return (setting for setting, is_used in NOT_YET.items() if is_used(config))
