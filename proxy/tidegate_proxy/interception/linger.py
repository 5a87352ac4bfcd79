"""What a peer is told when a socket of ours is closed, by us or by our death (socket(7), SO_LINGER).

An orderly end (FIN) waits behind what the peer has not taken yet. After a death that is too late: the rules
are gone by then, nothing translates our address any more, and the peer waits for its own keep-alive to find
out. A reset goes out at once. So a connection is reset when it is closed, until somebody ends it in order.
"""

import socket
import struct

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time at all
_END = struct.pack("ii", 0, 0)


def reset_when_closed(sock: socket.socket) -> None:
    """From now on a close, the kernel's at our death included, sends RST and drops what was not sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def end_when_closed(sock: socket.socket) -> None:
    """From now on a close sends what is left, and then FIN: every socket's beginning."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _END)


def reset(sock: socket.socket) -> None:
    """Close with RST, so that the peer sees a failure and not an orderly end."""
    try:
        reset_when_closed(sock)
    finally:
        sock.close()
