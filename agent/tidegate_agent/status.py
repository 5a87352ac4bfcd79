"""The agent's state as `tidegate status --json` prints it: a stable, documented form (DESIGN, section 9)."""

import msgspec


class SteeringStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` says why steering is off; `addresses` counts the elements that are steered now.

    `paused_until` is null without a pause, and for a pause that has no end. `failure` says what the last
    probe failed of, and `action` what to type; `restored` counts how often rules were put in anew.
    """

    active: bool
    backend: str
    reason: str
    paused: bool
    paused_until: str | None
    lease_s: float
    addresses: int
    failure: str = ""
    action: str = ""
    restored: int = 0


class UnsteerableStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Something of this host that cannot be steered, why, and what to do about it."""

    what: str
    why: str
    next_step: str


class DnsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`learned` counts addresses handed to steering since the start.

    `sinkholes` are the hosts whose look-ups are told an address of this host.
    """

    resolvers: list[str]
    mode: str
    queries: int
    forwarded: int
    learned: int
    resolver_reachable: bool
    unsteerable: list[UnsteerableStatus] = []
    sinkholes: list[str] = []


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Requests and what was evicted since the start; bytes and blobs on disk now."""

    hits: int
    misses: int
    stale: int
    bytes: int
    blobs: int
    max_bytes: int
    saved_bytes: int
    evicted_bytes: int = 0


class UpstreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    url: str
    healthy: bool
    reason: str


class CredentialStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A configured login: whether it works as far as is known, why not, and what to type."""

    registry: str
    username: str
    share: str
    working: bool
    reason: str
    action: str


class RateLimitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry said last of its rate limit, in one name: a login's user name, "" for nobody's.

    `remaining`, `limit` and `window_s` are null where it did not say; `not_before` is when it may be asked
    again after a 429.
    """

    registry: str
    name: str
    remaining: int | None
    limit: int | None
    window_s: int | None
    seen_at: str
    not_before: str | None


class TrustStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A client runtime or store, whether it trusts the node's CA, and what to type if it does not."""

    runtime: str
    pid: int | None
    trusts: bool
    action: str


class SplicedClient(msgspec.Struct, frozen=True, kw_only=True):
    exe: str
    pid: int
    reason: str
    until: str


class BypassedConnection(msgspec.Struct, frozen=True, kw_only=True):
    """`exe` is "" and `pid` null where its process could not be told."""

    at: str
    cause: str
    host: str
    address: str
    exe: str
    pid: int | None


class BypassedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`causes` counts since the start; `recent` has the last few, the newest first.

    `blind` says why connections past the agent are not noticed; empty when they are.
    """

    causes: dict[str, int] = {}
    recent: list[BypassedConnection] = []
    blind: str = ""


class ForwardedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge with containers behind it: whether their connections are steered, why not, what to type."""

    bridge: str
    networks: list[str]
    steered: bool
    reason: str
    action: str


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload changed: hosts, and the keys of the configuration that differ.

    `waiting` are hosts that are not steered before the trust store holds the reissued certificate.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]
    waiting: list[str]
    next_step: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    pid: int
    supervisor_pid: int
    uptime_s: float
    hosts: list[str]
    steering: SteeringStatus
    dns: DnsStatus
    cache: CacheStatus
    upstreams: list[UpstreamStatus]
    credentials: list[CredentialStatus] = []
    rate_limits: list[RateLimitStatus] = []
    trust: list[TrustStatus]
    clients_spliced: list[SplicedClient]
    bypassed: BypassedStatus = BypassedStatus()
    forwarded: list[ForwardedStatus] = []
    hosts_waiting: list[str] = []
