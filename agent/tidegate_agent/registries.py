"""The configured registries as the proxy knows them, with what their upstream side is verified by.

A registry whose certificate is signed by a CA of one's own names it (`ca`): that CA counts for this registry,
its token service and where it redirects to, beside the system's anchors, and for nothing else. Central uses
the same.
"""

import ssl
from collections.abc import Iterable
from pathlib import Path

from tidegate_agent.config import RegistryConfig
from tidegate_core.errors import StartRefused
from tidegate_proxy.site import Registry


def registries_of(entries: Iterable[RegistryConfig], *, system: Path | None) -> list[Registry]:
    """One for each entry; `system` is the trust store's bundle. Raises StartRefused for an unusable `ca`."""
    return [_registry(entry, system) for entry in entries]


def _registry(entry: RegistryConfig, system: Path | None) -> Registry:
    ca, tls = b"", None
    if entry.ca is not None:
        try:
            ca = entry.ca.read_bytes()
            tls = ssl.create_default_context(cafile=None if system is None else str(system))
            tls.load_verify_locations(cafile=str(entry.ca))
        except (OSError, ssl.SSLError) as error:
            raise StartRefused(
                f"the ca of [[registry]] {entry.name!r} cannot be used: {error}",
                next_step=f"ls -l {entry.ca}: it must be readable for the agent, and PEM",
            ) from error
        # CAs that companies make for themselves are older than RFC 5280's finer points.
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return Registry(
        name=entry.name,
        hosts=tuple(str(host) for host in entry.hosts),
        plain_http=entry.plain_http,
        ca=ca,
        tls=tls,
    )
