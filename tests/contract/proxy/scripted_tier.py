"""A small working tier for the contract tests: a CONNECT proxy that intercepts, or a containerd mirror.

It answers from what it was given, as a warm cache does, and misbehaves as told. Real sockets on loopback, one
thread a connection; its certificates come from a CA of its own.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lab.pki import Authority

Manner = Literal["intercepts", "tunnels", "mirrors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How it behaves; what is not said it does well."""

    connect_status: int = 200
    hangs_before_head: bool = False
    hangs_after: int | None = None
    cuts_after: int | None = None
    status: int = 200
    location: str = ""
    wrong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request, as the tier saw it."""

    host: str
    method: str
    target: str
    headers: Mapping[str, str]


class ScriptedTier:
    """Listens on loopback from its making to `close`; `url` is what a configuration would say."""

    def __init__(self, manner: Manner, folder: Path, contents: Mapping[str, bytes]) -> None:
        """`contents` by path; `folder` is for key files."""
        self.script = Script()
        self.contents = contents
        self.connects: list[str] = []
        self.seen: list[Seen] = []
        self.client_ca: bytes | None = None
        self.offers: tuple[int, bytes] | None = None  # at /ca.crt, if not its CA
        self._manner = manner
        self._folder = folder
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self.renew_authority()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = (
            f"https://localhost:{self.port}" if manner == "mirrors" else f"http://127.0.0.1:{self.port}"
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def renew_authority(self) -> None:
        """From now on its certificates come from a new CA."""
        self.authority = Authority("Scripted tier")

    def behave(self, **script: object) -> None:
        self.script = replace(Script(), **script)  # type: ignore[arg-type]  # the names of Script's fields

    def close(self) -> None:
        """Be gone, as a killed process is: nobody listens, every connection ends."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()

    def drop_connections(self) -> None:
        """End every connection that is open now."""
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def paths(self) -> list[str]:
        """What content it was asked for."""
        asked = (urlsplit(seen.target).path for seen in self.seen)
        return [path for path in asked if "/manifests/" in path or "/blobs/" in path]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock:
            if self._manner == "mirrors":
                self._answer_all(self._over_tls(sock, "localhost"), "")
                return
            head = _head(sock)
            if head is None:
                return
            method, target, headers = head
            if method != "CONNECT":
                self.seen.append(Seen(host="", method=method, target=target, headers=headers))
                _send(sock, *(self.offers or (200, self.authority.anchor)))
                return
            self.connects.append(target)
            self.seen.append(Seen(host=target, method=method, target="", headers=headers))
            if self.script.connect_status != 200:
                _send(sock, self.script.connect_status, b"no")
                return
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            host, _, port = target.rpartition(":")
            if self._manner == "tunnels":
                self._splice(sock, int(port))
            else:
                self._answer_all(self._over_tls(sock, host), target)

    def _over_tls(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        leaf = self.authority.server([host])
        file = self._folder / f"{threading.get_ident()}.pem"
        file.write_bytes(leaf.certificate + leaf.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        if self.client_ca is not None:
            context.load_verify_locations(cadata=self.client_ca.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        secured = context.wrap_socket(sock, server_side=True)
        self._sockets.add(secured)
        return secured

    def _answer_all(self, sock: ssl.SSLSocket, host: str) -> None:
        with sock:
            while (head := _head(sock)) is not None:
                method, target, headers = head
                self.seen.append(Seen(host=host, method=method, target=target, headers=headers))
                self._answer(sock, host, method, target, headers)

    def _answer(
        self, sock: ssl.SSLSocket, host: str, method: str, target: str, headers: Mapping[str, str]
    ) -> None:
        script = self.script
        if script.hangs_before_head:
            self._stopping.wait()
        path = urlsplit(target).path
        content = self.contents.get(path)
        if path == "/v2/":
            _send(sock, 200, b"{}")
        elif script.location and host.startswith("registry."):
            location = f"Location: {script.location}\r\n"
            sock.sendall(f"HTTP/1.1 307 Elsewhere\r\n{location}Content-Length: 0\r\n\r\n".encode())
        elif script.status != 200:
            _send(sock, script.status, b"no" if method == "GET" else b"")
        elif content is None:
            _send(sock, 404, b"" if method == "HEAD" else b"unknown")
        else:
            self._give(sock, method, content[:-1] + b"!" if script.wrong else content, headers)

    def _give(self, sock: ssl.SSLSocket, method: str, content: bytes, headers: Mapping[str, str]) -> None:
        first = int(headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        ranged = f"Content-Range: bytes {first}-{len(content) - 1}/{len(content)}\r\n" if first else ""
        status = "206 Partial Content" if first else "200 OK"
        length = f"Content-Length: {len(content) - first}\r\n"
        sock.sendall(f"HTTP/1.1 {status}\r\n{ranged}{length}\r\n".encode())
        if method == "HEAD":
            return
        stop = self.script.cuts_after if self.script.cuts_after is not None else self.script.hangs_after
        sock.sendall(content[first:] if stop is None else content[first : first + stop])
        if self.script.cuts_after is not None:
            raise OSError("cut")
        if self.script.hangs_after is not None:
            self._stopping.wait()

    def _splice(self, sock: socket.socket, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as other:
            self._sockets.add(other)
            back = threading.Thread(target=_pump, args=(other, sock), daemon=True)
            back.start()
            _pump(sock, other)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


def _head(sock: socket.socket) -> tuple[str, str, dict[str, str]] | None:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            return None
        data += byte
    first, *lines = data.decode().strip().split("\r\n")
    method, target, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    return method, target, {name.lower(): value.strip() for name, _, value in fields}


def _send(sock: socket.socket, status: int, body: bytes) -> None:
    sock.sendall(f"HTTP/1.1 {status} As told\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
