"""A DNS server that answers, over UDP and TCP, the octets it was given; what it was not, another answers.

    python replayer.py PAIRS UPSTREAM ADDRESS...

PAIRS is what `written` makes of a corpus. A process of its own, with nothing but the standard library, so
that it shares no code with what is tested.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

PORT = 53


def written(pairs: Sequence[Any]) -> str:
    """Each query behind its id -> the messages that answer it, by transport."""
    return json.dumps(
        {
            "udp": {each.query[2:].hex(): [each.over_udp.hex()] for each in pairs},
            "tcp": {each.query[2:].hex(): [answer.hex() for answer in each.over_tcp] for each in pairs},
        }
    )


class Replayer:
    """What is answered over each transport."""

    def __init__(self, told: dict[str, dict[str, list[str]]], upstream: str):
        self._told = {
            transport: {
                bytes.fromhex(query): [bytes.fromhex(answer) for answer in answers]
                for query, answers in known.items()
            }
            for transport, known in told.items()
        }
        self._upstream = upstream

    def answers(self, query: bytes, transport: str) -> list[bytes]:
        known = self._told[transport].get(query[2:])
        if known is None:
            return self._elsewhere(query)
        return [query[:2] + answer[2:] for answer in known]

    def _elsewhere(self, query: bytes) -> list[bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect((self._upstream, PORT))
            try:
                sock.send(query)
                return [sock.recv(65535)]
            except OSError:
                return []


def serve(replayer: Replayer, addresses: Sequence[str]) -> None:
    """Answer at these addresses, until killed."""

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, sock = self.request
            for answer in replayer.answers(query, "udp"):
                sock.sendto(answer, self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while len(length := self.rfile.read(2)) == 2:
                query = self.rfile.read(int.from_bytes(length, "big"))
                for answer in replayer.answers(query, "tcp"):
                    self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for base, handler in ((socketserver.UDPServer, Datagram), (socketserver.ThreadingTCPServer, Stream)):
            kind = type("Server", (base,), {"address_family": family, "max_packet_size": 65535})
            Thread(target=kind((address, PORT), handler).serve_forever).start()
    print("listening", flush=True)  # noqa: T201 - what the test waits for


if __name__ == "__main__":
    told, upstream, *addresses = sys.argv[1:]
    serve(Replayer(json.loads(Path(told).read_text()), upstream), addresses)
