"""The configured upstreams as one, and what status and metrics tell of them; central uses the same.

Nothing here connects: a tier that is down at the start is no reason not to start (I1).
"""

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp.abc import AbstractResolver

from tidegate_agent.config import UpstreamConfig
from tidegate_agent.status import UpstreamStatus
from tidegate_proxy.upstreams.carrier import Carrier
from tidegate_proxy.upstreams.central import CentralCarrier
from tidegate_proxy.upstreams.connect import ConnectCarrier
from tidegate_proxy.upstreams.direct import DirectUpstream
from tidegate_proxy.upstreams.tier import Tier
from tidegate_proxy.upstreams.tiers import Member, Tiers


def open_upstreams(
    entries: Sequence[UpstreamConfig],
    parts: AsyncExitStack,
    *,
    state_dir: Path,
    system: Path | None,
    resolver: AbstractResolver,
    exempt: Callable[[socket.socket], None],
    offline: Callable[[str], str],
) -> Tiers:
    """The upstreams in their order; `system` is the trust store's bundle, `offline` why no name resolves."""
    tls = ssl.create_default_context(cafile=str(system) if system is not None else None)

    def direct() -> DirectUpstream:
        upstream = DirectUpstream(resolver=resolver, exempt=exempt, tls=tls, offline=offline)
        parts.push_async_callback(upstream.close)
        return upstream

    def tier(entry: UpstreamConfig) -> Tier:
        assert entry.url is not None  # else the configuration had been refused
        carrier: Carrier
        if entry.kind == "connect":
            pinned = state_dir / "upstreams" / f"{entry.url.name}.pem"
            carrier = ConnectCarrier(
                entry.url,
                system=system,
                ca=entry.ca or pinned,
                pin=entry.ca is None,
                resolver=resolver,
                exempt=exempt,
            )
        else:
            carrier = CentralCarrier(
                entry.url,
                system=system,
                ca=entry.ca,
                certificate=entry.certificate,
                key=entry.key,
                elsewhere=tls,
                resolver=resolver,
                exempt=exempt,
            )
        upstream = Tier(carrier)
        parts.push_async_callback(upstream.close)
        upstream.open()
        return upstream

    members: list[Member] = [direct() if entry.kind == "direct" else tier(entry) for entry in entries]
    if all(entry.kind != "direct" and entry.fallback == "direct" for entry in entries):
        members.append(direct())
    return Tiers(members)


def upstreams_status(upstreams: Tiers) -> list[UpstreamStatus]:
    """What `tidegate status` tells of each."""
    return [
        UpstreamStatus(kind=member.kind, url=member.url, healthy=not member.failing, reason=member.failing)
        for member in upstreams.members
    ]
