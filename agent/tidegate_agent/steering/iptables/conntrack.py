"""Makes connection tracking forget the flows with a mark (linux/netfilter/nfnetlink_conntrack.h).

A query's socket keeps its ports, and so its flow keeps going where it was redirected, even after the rules
have gone, for as long as packets come. Forgotten, the very next one goes direct.
"""

import os
import socket
import struct

from tidegate_agent.steering.exemption import ByMark
from tidegate_agent.steering.netlink import attribute
from tidegate_agent.steering.nfnetlink import Request, RequestRefused, RequestSocket

_SUBSYSTEM, _DELETE = 1, 2
_MARK, _MARK_MASK = 8, 21
_OLDEST = (4, 1)
"""Older kernels know no mark here, and would forget every flow of the host."""


def forget_flows(netlink: RequestSocket, mark: ByMark) -> None:
    """Forget the flows with this mark, where the kernel can; else they end by themselves, in 30 s at rest."""
    if _release(os.uname().release) < _OLDEST:
        return
    body = attribute(_MARK, struct.pack("!I", mark.value)) + attribute(
        _MARK_MASK, struct.pack("!I", mark.mask)
    )
    request = Request(
        subsystem=_SUBSYSTEM,
        command=_DELETE,
        family=socket.AF_UNSPEC,
        body=body,
        doing=f"forgetting flows with mark {mark}",
    )
    try:
        netlink.send(request)
    except RequestRefused:  # no ctnetlink, or nothing tracked ever
        return


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)
