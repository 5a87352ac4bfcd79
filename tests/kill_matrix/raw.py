"""Raw clients for the moments that no real client can be stopped at: one connection or query each.

Runs on the node as a file of its own: `raw.py dns|handshake|splice HOST SECONDS`. Prints `ready` in time,
then `{"well": ..., "how": ..., "at": ...}`; `at` is the monotonic clock, which hosts share.
"""

import json
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 1.0  # of the client in its handshake, before it goes on with it


def main() -> None:
    moment, host, listen_s = sys.argv[1:]
    match moment:
        case "dns":
            well, how = ask(host)
        case "handshake":
            well, how = shake_hands(host)
        case _:
            well, how = listen(host, float(listen_s))
    tell(json.dumps({"well": well, "how": how, "at": time.monotonic()}))


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def ask(name: str) -> tuple[bool, str]:
    """A stub resolver's query; asked again after 2 s (glibc and Go: 5 s) and after SERVFAIL at once."""
    line = next(
        each for each in Path("/etc/resolv.conf").read_text().splitlines() if each.startswith("nameserver")
    )
    query = struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0)
    query += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
    asked = 0
    for _ in range(10):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stub:
            stub.connect((line.split()[1], 53))
            stub.settimeout(2)
            stub.send(query)
            asked += 1
            if asked == 1:
                tell("ready")
            try:
                answer = stub.recv(4096)
            except OSError:
                continue
            if answer[3] & 0x0F == 0:
                return True, "answered" if asked == 1 else f"answered when asked again ({asked})"
    return False, "no answer"


def shake_hands(host: str) -> tuple[bool, str]:
    """The server's flight has come, and the client's last one has not been sent yet."""
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(coming, going, server_hostname=host)
    with socket.create_connection((host, 443), timeout=20) as sock:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(going.read())
        first = sock.recv(1)
        tell("ready")
        patience = time.monotonic() + PATIENCE_S
        try:
            if select.select([sock], [], [], 0.2)[0]:
                first += sock.recv(65536)
            coming.write(first)
            if select.select([sock], [], [], max(0, patience - time.monotonic()))[0]:
                data = sock.recv(65536)
                if not data:
                    return False, "FIN"
                coming.write(data)
            speak(sock, coming, going, tls.do_handshake)
            tls.write(f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = speak(sock, coming, going, lambda: tls.read(65536))
        except OSError as error:
            return False, type(error).__name__
        except EOFError:
            return False, "FIN"
    return answer.startswith(b"HTTP/1.1 401"), answer.partition(b"\r\n")[0].decode()


def speak(sock: socket.socket, coming: ssl.MemoryBIO, going: ssl.MemoryBIO, act: Callable[[], T]) -> T:
    """Do something in TLS, moving bytes as it needs them."""
    while True:
        try:
            return act()
        except ssl.SSLWantReadError:
            pass
        finally:
            if pending := going.read():
                sock.sendall(pending)
        data = sock.recv(65536)
        if not data:
            raise EOFError
        coming.write(data)


def listen(host: str, for_s: float) -> tuple[bool, str]:
    """Somebody else's protocol on a steered address: a stream that drips."""
    began = None
    with socket.create_connection((host, 443), timeout=20) as sock:
        sock.sendall(b"hello\n")
        while began is None or time.monotonic() < began + for_s:
            try:
                data = sock.recv(4096)
            except OSError as error:
                return False, type(error).__name__
            if not data:
                return False, "FIN"
            if began is None:
                tell("ready")
                began = time.monotonic()
    return True, "goes on"


if __name__ == "__main__":
    main()
