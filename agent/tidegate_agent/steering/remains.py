"""What a dead agent's rules leave behind where no process owns them, and its removal (DESIGN 4, I4).

Three who use it: the supervisor right after its agent's death, the service manager after the service's end
(`leftovers`), and the next start. Nothing is touched while an agent lives, whoever's it is: that holds the
claim. Nobody's rules but those with our name are looked at, and no kernel module is loaded for looking.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tidegate_agent.steering.claim import AnotherSteers, Claim
from tidegate_agent.steering.exemption import DEFAULT_MARK
from tidegate_agent.steering.iptables import ipset
from tidegate_agent.steering.iptables.conntrack import forget_flows
from tidegate_agent.steering.iptables.programs import ProgramFailed, Programs, flavours
from tidegate_agent.steering.iptables.removal import destroy_sets, needless, take_out
from tidegate_agent.steering.iptables.rules import Version
from tidegate_agent.steering.netlink import NftSocket
from tidegate_agent.steering.nfnetlink import RequestRefused, RequestSocket
from tidegate_agent.steering.unowned import end_lease, remove_keepers, remove_steering

_VERSIONS: tuple[Version, ...] = (4, 6)
T = TypeVar("T")

_IPSET = Path("/sys/module/ip_set")


def end_steering(farewell: Callable[[], object] = lambda: None) -> list[str]:
    """At once: nothing that a dead agent left redirects anything any more. What it did; never raises.

    `farewell` is called where there is something of that kind, when nothing new is redirected and answers to
    what was are still translated.
    """
    done = []
    with _unclaimed() as free, contextlib.ExitStack() as held:
        if not free:
            return []
        nft, netlink = _opened(held, _nft), _opened(held, RequestSocket)
        tabled = nft is not None and end_lease(nft)
        leased = netlink is not None and _end_leases(netlink)
        if tabled or leased:
            farewell()
        if nft is not None and remove_steering(nft):
            done.append("removed the table of an agent that is gone")
        if netlink is not None and leased:
            with contextlib.suppress(OSError):
                forget_flows(netlink, DEFAULT_MARK)
            done.append("ended the lease of an agent that is gone")
    return done


def clean_up() -> list[str]:
    """Take out all that dead agents left. What it did; never raises."""
    done = end_steering()
    with _unclaimed() as free:
        if free and _IPSET.exists():
            with contextlib.suppress(OSError), RequestSocket() as netlink:
                done += [line for version in _VERSIONS for line in _take_iptables_out(netlink, version)]
    with contextlib.suppress(OSError), _nft() as nft:
        done += [f"removed table inet {name}" for name in remove_keepers(nft)]
    return done


@contextlib.contextmanager
def _unclaimed() -> Iterator[bool]:
    """Whether no agent lives; held as long, so that none starts in the middle."""
    try:
        claim = Claim()
    except (AnotherSteers, OSError):
        yield False
        return
    try:
        yield True
    finally:
        claim.close()


def _opened(
    held: contextlib.ExitStack, socket: Callable[[], contextlib.AbstractContextManager[T]]
) -> T | None:
    """The netlink socket, open until `held` ends; None where the kernel has no such thing."""
    try:
        return held.enter_context(socket())
    except OSError:
        return None


@contextlib.contextmanager
def _nft() -> Iterator[NftSocket]:
    nft = NftSocket()
    try:
        yield nft
    finally:
        nft.close()


def _end_leases(netlink: RequestSocket) -> bool:
    ended = False
    if _IPSET.exists():
        for version in _VERSIONS:
            with contextlib.suppress(RequestRefused):  # there is no such set
                netlink.send(ipset.flush(ipset.LEASE[version]))
                ended = True
    return ended


def _take_iptables_out(netlink: RequestSocket, version: Version) -> list[str]:
    """Rules of either flavour, where our set says that there may be some; then the sets."""
    try:
        netlink.send(ipset.flush(ipset.LEASE[version]))
    except RequestRefused:
        return []
    done = []
    for programs in flavours(version):
        with contextlib.suppress(ProgramFailed):
            if take_out(programs, lambda there: needless(there, mine=netlink.port)):
                done.append(f"removed rules with {programs.name}")
    if not any(_keepers(programs) for programs in flavours(version)):
        destroy_sets(netlink, version)
    return done


def _keepers(programs: Programs) -> tuple[str, ...]:
    """Those of agents that linger for connections of others."""
    with contextlib.suppress(ProgramFailed):
        return programs.look().keepers
    return ()
