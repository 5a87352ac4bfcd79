"""A network namespace, and what a client in it sees."""

import contextlib
import ctypes
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.waiting import until

from .place import STEERED


class Namespace:
    """A network namespace, held by a process that ends with its standard input: at our end at the latest."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        self.path = Path(f"/proc/{self._holder.pid}/ns/net")
        here = Path("/proc/self/ns/net").readlink()
        until(lambda: self.path.readlink() != here, "the namespace")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def close(self) -> None:
        self._holder.communicate()

    def run(self, *command: str) -> str:
        return subprocess.run(
            ["nsenter", f"--net={self.path}", *command], check=True, capture_output=True, text=True
        ).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Sockets made inside belong to this namespace, for good."""
        with Path("/proc/thread-self/ns/net").open() as before, self.path.open() as there:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(there.fileno(), 0) == 0
            try:
                yield
            finally:
                assert libc.setns(before.fileno(), 0) == 0

    def make_socket(self, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.entered():
            made = socket.socket(family, kind)
        made.settimeout(2)
        return made

    def connect(self, address: str, port: int = 443, *, timeout_s: float = 2) -> socket.socket:
        made = self.make_socket(address)
        made.settimeout(timeout_s)
        try:
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def greeting(self, address: str, port: int = 443, *, timeout_s: float = 2) -> str:
        """The line that whoever answers says first; empty when nobody does."""
        try:
            with self.connect(address, port, timeout_s=timeout_s) as sock:
                return sock.makefile().readline().strip()
        except OSError:
            return ""

    def ask(self, address: str, query: bytes | None = None, *, timeout_s: float = 2) -> str:
        """Who answers a query for STEERED, or this one; it saw the very query, from our own port."""
        with self.make_socket(address, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(query or question(STEERED), (address, 53))
            answer, source = sock.recvfrom(512)
            assert source[:2] == (address, 53)
            who, port, heard = answer.split(b" ", 2)
            assert heard == (query or question(STEERED))
            assert int(port) == sock.getsockname()[1]
            return who.decode()


def question(name: str, *, id_: int = 0x7A11, more: bytes = b"") -> bytes:
    """A query for type A (RFC 1035 section 4.1), its letters as they are; `more` is an additional record."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack("!6H", id_, 0x0100, 1, 0, 0, 1 if more else 0)
    return header + labels + b"\0" + struct.pack("!2H", 1, 1) + more


def drips(reader: socket.socket) -> bool:
    """Some more bytes arrive."""
    return len(reader.recv(10)) > 0 and len(reader.recv(10)) > 0
