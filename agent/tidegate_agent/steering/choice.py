"""Which back end steers this host: the configured one, or with `auto` the best that works here (N15).

What works is found by trying, not by looking at versions: each candidate puts its rules in, inactive, and
takes them out again; the first that can is the choice (docs/decisions/0022). eBPF comes first where nothing
tracks connections, because the first rule that does slows every connection of the host down; where they are
tracked anyway, the nft table comes first, which has fewer blind spots.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidegate_agent.steering.backend import NoSteering, Steering
from tidegate_agent.steering.claim import AnotherSteers
from tidegate_agent.steering.ebpf import EbpfSteering
from tidegate_agent.steering.exemption import Exemption
from tidegate_agent.steering.iptables.steering import IptablesSteering
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.steering.nft import NftSteering
from tidegate_core.errors import StartRefused

_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")


class Backend(Steering, Protocol):
    """A back end that has something to put in."""

    def dry_run(self) -> str:
        """What `open` would put in."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The back end that was chosen, not open, and why it was not one of those before it."""

    steering: Steering
    passed_over: Mapping[str, str]


def built(
    name: str,
    *,
    port: int,
    keeper: Keeper | None,
    lease_s: float,
    exemption: Exemption,
    forwarded: bool = False,
) -> Backend:
    """The back end of this name; `forwarded` is for `nft`, the others cannot."""
    match name:
        case "nft":
            return NftSteering(
                port=port, keeper=keeper, lease_s=lease_s, exemption=exemption, forwarded=forwarded
            )
        case "nft-lease":
            return NftSteering(port=port, keeper=keeper, lease_s=lease_s, exemption=exemption, owned=False)
        case "ebpf":
            return EbpfSteering(port=port, keeper=keeper, lease_s=lease_s, exemption=exemption)
        case "iptables":
            return IptablesSteering(port=port, keeper=keeper, lease_s=lease_s, exemption=exemption)
        case _:
            raise ValueError(f"no such back end: {name}")


def chosen(name: str, build: Callable[[str], Steering], *, tracked: Path = _TRACKED) -> Choice:
    """What `name` stands for here; raises StartRefused where `auto` finds nothing that works.

    A back end that is named is not tried: its own refusal says more.
    """
    if name == "none":
        return Choice(steering=NoSteering(), passed_over={})
    if name != "auto":
        return Choice(steering=build(name), passed_over={})
    refusals: dict[str, StartRefused] = {}
    for candidate in order(connections_are_tracked=is_tracked(tracked)):
        try:
            steering = build(candidate)
            steering.open()
        except AnotherSteers:
            raise
        except StartRefused as refused:
            refusals[candidate] = refused
            continue
        steering.close()
        passed_over = {each: refused.cause for each, refused in refusals.items()}
        return Choice(steering=steering, passed_over=passed_over)
    raise StartRefused(
        "no back end works here: " + "; ".join(f"{each}: {why.cause}" for each, why in refusals.items()),
        next_step=next(iter(refusals.values())).next_step,
    )


def order(*, connections_are_tracked: bool) -> tuple[str, ...]:
    """What `auto` tries, the best first."""
    best = ("nft", "ebpf") if connections_are_tracked else ("ebpf", "nft")
    return (*best, "nft-lease", "iptables")


def is_tracked(count: Path = _TRACKED) -> bool:
    """Whether connection tracking is at work in this network namespace for somebody."""
    try:
        return int(count.read_text()) > 0
    except (OSError, ValueError):  # no such file: the module is not loaded
        return False
