"""The look-ups that a hung or dead agent has left unread, told SERVFAIL (N5).

A stub resolver waits 5 s for an answer (resolv.conf(5)), longer than the lease, and all that time its client
hangs. Told SERVFAIL it asks again at once, and by then the lease is over and nothing is steered. The agent's
table must still be there while this is done: it gives what is sent here the resolver's address. So a hung
agent is killed afterwards, and of a dead one it happens where its table outlives it.

Standard library only, for the supervisor's sake. Queries that the agent had read already are not seen here.
"""

import contextlib
import socket
import struct
from collections.abc import Iterable

_HEADER_LENGTH = 12
_MAX_MESSAGE = 65535
_MOST = 4096  # a socket: beyond, their own retry must do (I8)
_RESPONSE, _OPCODE, _RD, _RA, _CD, _SERVFAIL = 0x8000, 0x7800, 0x0100, 0x0080, 0x0010, 2


def give_up_unread(sockets: Iterable[socket.socket]) -> int:
    """Answer all that waits on these UDP sockets; how many were answered. Never blocks, never raises."""
    count = 0
    for sock in sockets:
        with contextlib.suppress(OSError):  # BlockingIOError: nothing more waits
            for _ in range(_MOST):
                query, client = sock.recvfrom(_MAX_MESSAGE, socket.MSG_DONTWAIT)
                answer = servfail(query)
                if answer is not None:
                    with contextlib.suppress(OSError):
                        sock.sendto(answer, socket.MSG_DONTWAIT, client)
                        count += 1
    return count


def servfail(query: bytes) -> bytes | None:
    """A bare SERVFAIL with the query's id and question (RFC 1035, 4.1.1); None for what is no query."""
    if len(query) < _HEADER_LENGTH:
        return None
    number, flags, questions = struct.unpack_from("!HHH", query)
    end = _question_end(query)
    if flags & _RESPONSE or questions != 1 or end is None:
        return None
    flags = _RESPONSE | flags & (_OPCODE | _RD | _CD) | _RA | _SERVFAIL
    return struct.pack("!6H", number, flags, 1, 0, 0, 0) + query[_HEADER_LENGTH:end]


def _question_end(query: bytes) -> int | None:
    """Where the first question ends; None when it is cut short or compressed, which no query's is."""
    at = _HEADER_LENGTH
    while at < len(query) and (length := query[at]):
        if length > 63:
            return None
        at += 1 + length
    end = at + 5  # the root label, QTYPE, QCLASS
    return end if end <= len(query) else None
