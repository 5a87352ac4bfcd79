"""Taking rules and sets out again, by the agent itself or by whoever comes after it (`remains`)."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

from tidegate_agent.steering.iptables import ipset
from tidegate_agent.steering.iptables.programs import Programs
from tidegate_agent.steering.iptables.rules import Found, Version, keeper_port, removed
from tidegate_agent.steering.nfnetlink import RequestRefused, RequestSocket
from tidegate_agent.steering.unowned import is_abandoned


def needless(there: Found, *, mine: int) -> Found:
    """What there is but for the keepers that a living process needs; `mine` as in `is_abandoned`."""
    keepers = [each for each in there.keepers if is_abandoned(keeper_port(each), mine=mine)]
    return replace(there, keepers=tuple(keepers))


def take_out(programs: Programs, what: Callable[[Found], Found]) -> bool:
    """Remove this of what there is of ours; whether there was anything. Raises ProgramFailed."""
    text = removed(what(programs.look()))
    if text:
        programs.restore(text)
    return bool(text)


def destroy_sets(netlink: RequestSocket, version: Version, *, but_lease: bool = False) -> None:
    """Remove our sets of one IP version, where they are; one that a rule still matches stays, empty."""
    for each in (ipset.LEASE[version], ipset.STEERED[version]):
        with contextlib.suppress(RequestRefused):
            netlink.send(ipset.flush(each))
            if each is not ipset.LEASE[version] or not but_lease:
                netlink.send(ipset.destroy(each))
