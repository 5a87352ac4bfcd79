"""The world beside the node: servers that say `world`."""

import contextlib
import os
import select
import socket
import struct
import threading

from .namespace import Namespace
from .place import RESOLVER4, RESOLVER6


def answer(query: bytes) -> bytes:
    """198.18.X.Y for `n-X-Y.many.example`; empty for other names."""
    labels = query[13 : 13 + query[12]].split(b"-") if len(query) > 12 else []
    if len(labels) != 3 or b"\4many\7example\0" not in query:
        return b""
    question = query[12:]
    header = query[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0)
    record = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 300, 4, 198, 18, int(labels[1]), int(labels[2]))
    return header + question + record


class World:
    """The servers outside: TCP on 443, 444 and 53 says `world`, at every address that leads here.

    UDP on 53 answers with `world`, the port that the query came from, and the query; but a query for a name
    below `many.example` with an address of its own for each, out of 198.18.0.0/16.
    """

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self._tcp = [
                socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
                for port in (443, 444, 53)
            ]
            self._udp = [
                socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_DGRAM)
                for a in (RESOLVER4, RESOLVER6)
            ]
            for sock, address in zip(self._udp, (RESOLVER4, RESOLVER6), strict=True):
                sock.bind((address, 53))
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([*self._tcp, *self._udp, self._stop], [], [])
            if self._stop in ready:
                return
            for sock in ready:
                with contextlib.suppress(OSError):
                    if sock in self._udp:
                        query, client = sock.recvfrom(512)
                        sock.sendto(answer(query) or f"world {client[1]} ".encode() + query, client)
                    else:
                        connection, _ = sock.accept()
                        connection.sendall(b"world\n")
                        connection.close()

    def close(self) -> None:
        os.write(self._stopped, b".")
        self._thread.join()
        for sock in (*self._tcp, *self._udp):
            sock.close()
        os.close(self._stop)
        os.close(self._stopped)
