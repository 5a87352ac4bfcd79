"""The lab's internet: TLS in front of real docker-registry processes, their token services and blob hosts.

Run as `python -m lab.front CONFIG` on the internet host. Terminates TLS for every name, logs each connection
when TCP accepts it and each request when it arrives (JSON lines), turns blob GETs into redirects with a
signature that is checked to the letter, and injects the faults it is told on its control socket. It speaks
HTTP/1.1 and stores nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, StreamReader, TCPConnector, web
from aiohttp.client import _RequestContextManager
from multidict import CIMultiDict
from yarl import URL

from . import token_service
from .answer import Answer, hang_up, send
from .fault import Fault, Redirects, Resource
from .pki import Identity

MOST_CONTROL_BYTES = 16 << 20  # a command may carry the body of an answer
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
BLOB = re.compile(r"/v2/.+/blobs/(sha256:[0-9a-f]{64})$")
BLOB_BYTES = re.compile(r"/registry-v2/docker/registry/v2/blobs/sha256/[0-9a-f]{2}/([0-9a-f]{64})/data$")
HOP = re.compile(r"/hop/(\d+)(/.*)$")
CHUNK = 256 << 10


class Site:
    """One registry of the lab: its names, rights, storage and what is wrong with it at the moment."""

    def __init__(self, config: dict[str, Any], signer: token_service.Signer):
        self.name: str = config["name"]
        self.hosts: list[str] = config["hosts"]
        self.token_host: str = config["token_host"]
        self.token_path: str = config["token_path"]
        self.service: str = config["service"]
        self.blob_host: str = config["blob_host"]
        self.backend: str = config["backend"]
        self.storage = Path(config["storage"])
        self.login: str = config["login"]
        self.first_rights = token_service.Rights(passwords=config["passwords"], private=config["private"])
        self.signer = signer
        self.reset()

    def reset(self) -> None:
        self.faults: list[Fault] = []
        self.used: list[int] = []
        self.redirects: Redirects | None = Redirects()
        self.token_lifetime_s = 300
        self.rights = self.first_rights

    def resource(self, method: str, host: str, path: str) -> Resource:
        if host == self.token_host and path == self.token_path:
            return "token"
        if BLOB_BYTES.match(path):
            return "bytes"
        if HOP.match(path):
            return "blob"
        if host not in self.hosts:
            return "other"
        if path in ("/v2/", "/v2"):
            return "ping"
        if BLOB.match(path) and method in ("GET", "HEAD"):
            return "bytes" if self.redirects is None and method == "GET" else "blob"
        return "manifest" if "/manifests/" in path else "other"

    def fault_for(self, resource: Resource, line: str) -> Fault | None:
        """The first fault that meets this request, counted as used."""
        for number, fault in enumerate(self.faults):
            if fault.on not in ("any", resource) or not re.search(fault.matching, line):
                continue
            self.used[number] += 1
            turn = self.used[number] - fault.skip
            if turn >= 1 and (fault.times is None or turn <= fault.times):
                return fault
        return None


class Front:
    def __init__(self, config: dict[str, Any]):
        identity = Identity(
            certificate=Path(config["token_certificate"]).read_bytes(),
            key=Path(config["token_key"]).read_bytes(),
        )
        signer = token_service.Signer(identity)
        self.sites = [Site(site, signer) for site in config["registries"]]
        self.by_host = {
            host: site for site in self.sites for host in (*site.hosts, site.token_host, site.blob_host)
        }
        self.by_name = {site.name: site for site in self.sites}
        self.tokens_file = Path(config["tokens"]).open("a", buffering=1)  # noqa: SIM115 (open as long as we run)
        self.log_file = Path(config["log"]).open("a", buffering=1)  # noqa: SIM115 (open as long as we run)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(config["certificate"], config["key"])
        self.tls.set_alpn_protocols(["http/1.1"])
        self.tls.sni_callback = _remember_sni
        self.secret = os.urandom(32)
        self.listeners: list[socket.socket] = []
        self.accepting: list[asyncio.Task[None]] = []
        self.refuse: Callable[[float], None] = lambda _: None
        self.refusing: asyncio.Task[None] | None = None
        self.connections: dict[tuple[str, int], int] = {}
        self.connected = 0
        self.requested = 0

    def log(self, event: str, **facts: object) -> None:
        print(json.dumps({"event": event, "at": time.time(), **facts}), file=self.log_file)

    # Connections

    async def serve(self, control: str) -> None:
        connector = TCPConnector(limit=0)
        async with (
            ClientSession(
                auto_decompress=False,
                timeout=ClientTimeout(total=None),
                connector=connector,
                cookie_jar=DummyCookieJar(),
            ) as self.client,
            asyncio.TaskGroup() as tasks,
        ):
            server = web.Server(
                self.handle, handler_cancellation=True, auto_decompress=False, access_log=None
            )

            def refuse(seconds: float) -> None:
                self.refusing = tasks.create_task(self.refuse_for(seconds, server, tasks))

            self.refuse = refuse
            listening = await asyncio.start_unix_server(self.control, control, limit=MOST_CONTROL_BYTES)
            tasks.create_task(listening.serve_forever())
            self.listen(server, tasks)

    def listen(self, server: web.Server, tasks: asyncio.TaskGroup) -> None:
        for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            listener = socket.create_server((wildcard, 443), family=family, backlog=1024)
            listener.setblocking(False)
            self.listeners.append(listener)
            self.accepting.append(tasks.create_task(self.accept(listener, server, tasks)))

    async def refuse_for(self, seconds: float, server: web.Server, tasks: asyncio.TaskGroup) -> None:
        """Nobody listens for so long: connecting is refused, what is connected goes on."""
        accepting, self.accepting = self.accepting, []
        for task in accepting:
            task.cancel()
        await asyncio.wait(accepting)
        while self.listeners:
            self.listeners.pop().close()
        await asyncio.sleep(seconds)
        self.listen(server, tasks)

    async def accept(self, listener: socket.socket, server: web.Server, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, peer = await loop.sock_accept(listener)
            self.connected += 1
            local = client.getsockname()
            self.log("connection", connection=self.connected, peer=list(peer[:2]), local=list(local[:2]))
            self.connections[peer[:2]] = self.connected
            tasks.create_task(self.shake_hands(client, self.connected, server))

    async def shake_hands(self, client: socket.socket, connection: int, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(
                server, client, ssl=self.tls, ssl_handshake_timeout=30
            )
        except (TimeoutError, OSError) as error:
            self.log("handshake", connection=connection, failed=str(error))
            client.close()
            return
        tls = transport.get_extra_info("ssl_object")
        sni = getattr(tls, "lab_sni", None)
        self.log(
            "handshake",
            connection=connection,
            sni=sni,
            alpn=tls.selected_alpn_protocol(),
            version=tls.version(),
        )

    # Requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requested += 1
        number = self.requested
        host = request.host.partition(":")[0]
        site = self.by_host.get(host)
        path, _, query = request.raw_path.partition("?")
        resource = site.resource(request.method, host, path) if site else "other"
        peer = request.transport.get_extra_info("peername")[:2] if request.transport else ("", 0)
        authorization = request.headers.get("Authorization", "")
        self.log(
            "request",
            request=number,
            connection=self.connections.get(tuple(peer)),
            peer=list(peer),
            registry=site.name if site else "",
            host=host,
            method=request.method,
            path=path,
            query=query,
            resource=resource,
            authorization=authorization.partition(" ")[0],  # the scheme: secrets stay out of logs, here too
            headers=[[name, value] for name, value in request.headers.items() if name != "Authorization"],
        )
        status, sent, fault = 0, 0, None
        try:
            if site is None:
                status = 404
                return web.Response(status=404, text=f"no such host in the lab: {host}\n")
            fault = site.fault_for(resource, f"{request.method} {host}{request.raw_path}")
            effect = fault or Fault()
            await asyncio.sleep(effect.delay_s)
            if effect.hang_up:
                return await hang_up(request, effect)
            if effect.status is not None:
                status = effect.status
                return web.Response(status=status, headers=effect.headers, text=effect.body)
            answer = await self.answer(request, site, host, path, query, resource, effect)
            status = answer.status
            if effect.refuse_s:
                self.refuse(effect.refuse_s)
                await asyncio.sleep(0.01)  # until nobody listens
            response, sent = await send(request, answer, effect)
            return response
        finally:
            self.log(
                "response",
                request=number,
                status=status,
                sent_bytes=sent,
                fault=fault and {**fault.as_json(), "body": fault.body[:200]},
            )

    async def answer(
        self,
        request: web.BaseRequest,
        site: Site,
        host: str,
        path: str,
        query: str,
        resource: Resource,
        fault: Fault,
    ) -> Answer:
        if resource == "token":
            return await self.token(request, site, query)
        if hop := HOP.match(path):
            return self.next_hop(site, int(hop[1]), hop[2], query)
        if blob := BLOB_BYTES.match(path):
            return self.blob_bytes(request, site, path, query, blob[1], fault)
        if host not in site.hosts:
            return _text(404, "nothing here")
        if site.login == "basic":
            user, password = token_service.basic_credentials(request.headers.get("Authorization", "")) or (
                "",
                "",
            )
            if not user or site.rights.passwords.get(user) != password:
                challenge = CIMultiDict({"WWW-Authenticate": 'Basic realm="lab"'})
                return Answer(status=401, headers=challenge, size=0)
        blob = BLOB.match(path)
        if blob and request.method == "GET" and site.redirects is not None:
            async with self.backend(request, site, "HEAD", None, without_range=True) as head:
                if head.status == 200:
                    return self.redirect_to_bytes(site, blob[1].removeprefix("sha256:"))
        return await self.pass_on(request, site, fault)

    async def token(self, request: web.BaseRequest, site: Site, query: str) -> Answer:
        """GET with Basic, or POST with a password grant (OAuth 2, as containerd does it)."""
        asked = parse_qs(query)
        credentials = token_service.basic_credentials(request.headers.get("Authorization", ""))
        if request.method == "POST":
            asked = parse_qs((await request.read()).decode())
            if asked.get("grant_type") == ["password"]:
                credentials = (asked.get("username", [""])[0], asked.get("password", [""])[0])
        status, body = token_service.answer(
            rights=site.rights,
            signer=site.signer,
            service=site.service,
            scopes=[scope for given in asked.get("scope", []) for scope in given.split()],
            credentials=credentials,
            now=int(time.time()),
            lifetime_s=site.token_lifetime_s,
            strict=site.login == "tokens for users",
        )
        if status == 200:
            print(body["token"], file=self.tokens_file)
        return _json(status, body)

    # Blobs

    def redirect_to_bytes(self, site: Site, encoded: str) -> Answer:
        assert site.redirects is not None
        path = f"/registry-v2/docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data"
        query = self.signed_query(path, int(time.time() + site.redirects.signature_lifetime_s))
        return self.redirect(site, site.redirects.hops - 1, path, query)

    def next_hop(self, site: Site, left: int, path: str, query: str) -> Answer:
        return self.redirect(site, left - 1, path, query)

    def redirect(self, site: Site, hops_left: int, path: str, query: str) -> Answer:
        redirects = site.redirects or Redirects()
        target = f"/hop/{hops_left}{path}?{query}" if hops_left > 0 else f"{path}?{query}"
        if not redirects.relative:
            target = f"https://{site.blob_host}{target}"
        return Answer(status=redirects.status, headers=CIMultiDict(Location=target))

    def signed_query(self, path: str, expires: int) -> str:
        """A query whose signature holds percent-encoded `+`, `/` and `=`: it must come back to the letter."""
        for salt in range(1000):
            signature = hmac.digest(self.secret, f"{path} {expires} {salt}".encode(), hashlib.sha256)
            encoded = base64.b64encode(signature).decode()
            if "/" in encoded and "+" in encoded:
                break
        return f"expires={expires}&salt={salt}&signature={quote(encoded, safe='')}&version=2"

    def blob_bytes(
        self, request: web.BaseRequest, site: Site, path: str, query: str, encoded: str, fault: Fault
    ) -> Answer:
        fields = parse_qs(query)
        expires = int(fields.get("expires", ["0"])[0])
        if query != self.signed_query(path, expires):
            return _text(403, "SignatureDoesNotMatch")
        if expires < time.time():
            return _text(403, "AccessDenied: Request has expired")
        file = site.storage / f"docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data"
        if not file.exists():
            return _text(404, "NoSuchKey")
        size = file.stat().st_size
        first, last, status = 0, size - 1, 200
        headers = CIMultiDict({"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"})
        headers["ETag"] = f'"{encoded[:32]}"'
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
        if asked and (asked[1] or asked[2]) and not fault.ignore_range:
            if asked[1]:
                first, last = int(asked[1]), min(int(asked[2] or last), last)
            else:
                first = max(0, size - int(asked[2]))
            if first > last:
                return Answer(status=416, headers=CIMultiDict({"Content-Range": f"bytes */{size}"}))
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        length = last - first + 1
        return Answer(status=status, headers=headers, size=length, chunks=_read(file, first, length))

    # The real registry

    def backend(
        self,
        request: web.BaseRequest,
        site: Site,
        method: str,
        body: StreamReader | None,
        *,
        without_range: bool = False,
    ) -> _RequestContextManager:
        dropped = HOP_BY_HOP | {"range"} if without_range else HOP_BY_HOP
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in dropped
        )
        headers["X-Forwarded-Proto"] = "https"  # upload URLs come back with the right scheme
        return self.client.request(
            method,
            URL(site.backend + request.raw_path, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def pass_on(self, request: web.BaseRequest, site: Site, fault: Fault) -> Answer:
        body = request.content if request.can_read_body else None
        upstream = await self.backend(request, site, request.method, body, without_range=fault.ignore_range)
        headers = CIMultiDict(
            (name, value) for name, value in upstream.headers.items() if name.lower() not in HOP_BY_HOP
        )
        length = upstream.headers.get("Content-Length")
        if request.method == "HEAD":
            upstream.release()

        async def chunks() -> AsyncGenerator[bytes, None]:
            async with upstream:
                async for chunk in upstream.content.iter_any():
                    yield chunk

        return Answer(
            status=upstream.status,
            headers=headers,
            size=None if length is None else int(length),
            chunks=chunks(),
        )

    # Control

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One command a line: {"registry", "reset" | "fault" | "heal" | "redirects" | "token_lifetime_s" |
        "readers"}.
        """
        while line := await reader.readline():
            command = json.loads(line)
            site = self.by_name[command["registry"]]
            if "reset" in command:
                site.reset()
            if "heal" in command:
                site.faults, site.used = [], []
                if self.refusing is not None:
                    await self.refusing
            if "fault" in command:
                site.faults.append(Fault(**command["fault"]))
                site.used.append(0)
            if "redirects" in command:
                given = command["redirects"]
                site.redirects = None if given is None else Redirects(**given)
            if "readers" in command:
                private = {**site.rights.private, **command["readers"]}
                site.rights = replace(site.rights, private=private)
            if "token_lifetime_s" in command:
                site.token_lifetime_s = command["token_lifetime_s"]
            writer.write(b"{}\n")
            await writer.drain()
        writer.close()


def _remember_sni(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
    tls.lab_sni = name  # type: ignore[attr-defined]  # the only place the name the client asked for is told


async def _read(file: Path, first: int, length: int) -> AsyncGenerator[bytes, None]:
    with file.open("rb") as source:
        source.seek(first)
        while length:
            chunk = source.read(min(length, CHUNK))
            length -= len(chunk)
            yield chunk


def _text(status: int, text: str) -> Answer:
    return _bytes(status, "text/plain", f"{text}\n".encode())


def _json(status: int, value: object) -> Answer:
    return _bytes(status, "application/json", json.dumps(value).encode())


def _bytes(status: int, content_type: str, body: bytes) -> Answer:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    return Answer(
        status=status, headers=CIMultiDict({"Content-Type": content_type}), size=len(body), chunks=chunks()
    )


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    uvloop.run(Front(config).serve(config["control"]))


if __name__ == "__main__":
    main()
