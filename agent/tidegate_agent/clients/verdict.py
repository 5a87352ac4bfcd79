"""Whom to leave alone, decided from what is known about a process (DESIGN 4, trust-aware).

Fails open towards interception: nothing known is no reason. A known runtime that would refuse our certificate
must not lose even one connection, because that fails a pull; a client that nothing is known about may lose
one, and is then left alone. Pure.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from tidegate_agent.clients.process import Process


class Reason(StrEnum):
    """Why a steered name is spliced all the same: a metric label, and what `clients_spliced` says."""

    NOT_RESTARTED = "not_restarted"
    OTHER_STORE = "other_store"
    RELAY = "relay"
    DISTRUSTED = "distrusted"
    NODE_LOGIN = "node_login"


RUNTIMES: Mapping[str, str] = MappingProxyType(
    {"dockerd": "docker", "containerd": "containerd", "crio": "crio", "kubelet": "kubelet"}
)
"""Daemons that read the trust store once, as Go's crypto/x509 does: name -> usual systemd service."""

_RELAYS = frozenset(
    (
        "slirp4netns",
        "pasta",
        "pasta.avx2",
        "passt",
        "passt.avx2",
        "gvproxy",
        "vpnkit",
        "firecracker",
        "qemu-kvm",
    )
)
_RELAY_PREFIXES = ("qemu-system-",)


def is_stale(process: Process, trusted_since: float | None) -> bool:
    """Whether a runtime read the trust store before our anchor was in it."""
    return process.name in RUNTIMES and trusted_since is not None and process.started < trusted_since


def why_splice(process: Process, *, trusted_since: float | None) -> Reason | None:
    """The reason to leave a client alone; `trusted_since` is in seconds since the epoch.

    A relay carries the connections of others, who have a trust store that we do not see: containers without a
    network of their own, and virtual machines.
    """
    if process.name in _RELAYS or process.name.startswith(_RELAY_PREFIXES):
        return Reason.RELAY
    if not process.sees_store:
        return Reason.OTHER_STORE
    return Reason.NOT_RESTARTED if is_stale(process, trusted_since) else None


def doubtful(processes: Iterable[Process], *, trusted_since: float | None) -> tuple[Process, Reason] | None:
    """The first of several possible clients that has to be left alone: one is enough to splice for all."""
    for process in processes:
        reason = why_splice(process, trusted_since=trusted_since)
        if reason is not None:
            return process, reason
    return None


def what_to_type(runtime: str, service: str) -> str:
    """How an administrator restarts a runtime: by its own service where it has one."""
    return f"systemctl restart {service or RUNTIMES[runtime]}"
