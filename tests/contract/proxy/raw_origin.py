"""A registry on a real socket that writes what it is told to the byte: good answers, and any bad one.

It knows one image of a public repository (`lib/public`, tokens for everybody) and of a private one
(`lib/private`, the token `user`). Plain HTTP/1.1 with keep-alive unless a `Spoiled` answer says otherwise.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LAYER = bytes(range(256)) * 1024
TINY = b"tiny" * 1000


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _described(content: bytes) -> dict[str, object]:
    media_type = "application/vnd.oci.image.layer.v1.tar"
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _described(b"{}"),
        "layers": [_described(LAYER), _described(TINY)],
    }
).encode()
INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}).encode()
TAGS = b'{"name": "lib/public", "tags": ["1"]}'


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def first(self) -> int:
        """Where its Range begins."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


Spoiled = Callable[[Asked, bytes, asyncio.StreamWriter], Awaitable[bool]]
"""Told the request and the good answer, it writes what it likes, and says whether the connection goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a path has; without `digest` that of the body is told."""

    body: bytes
    media_type: str = "application/octet-stream"
    digest: str = ""


@dataclass
class RawOrigin:
    """`spoil(path, ...)` is for the next requests of a path, one each."""

    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    redirects: bool = False
    also: dict[str, "Content"] = field(default_factory=dict)
    """More that it has, by the end of its path."""
    _spoiled: dict[str, list[Spoiled]] = field(default_factory=dict)
    _server: asyncio.Server | None = None

    @classmethod
    async def start(cls) -> Self:
        origin = cls()
        origin._server = await asyncio.start_server(origin._serve, "127.0.0.1", 0)
        origin.port = origin._server.sockets[0].getsockname()[1]
        return origin

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def spoil(self, part_of_path: str, *answers: Spoiled, times: int = 1) -> None:
        """The next requests whose path holds this are answered so."""
        self._spoiled.setdefault(part_of_path, []).extend(answers * times)

    def requests(self, part_of_path: str, *methods: str) -> list[Asked]:
        return [
            asked
            for asked in self.asked
            if part_of_path in asked.path and asked.method in (methods or ("GET", "HEAD"))
        ]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                asked = await _request(reader)
                self.asked.append(asked)
                good = self._answer(asked)
                if asked.method == "HEAD":
                    good = good[: good.index(b"\r\n\r\n") + 4]
                spoiled = next(
                    (found for part, found in self._spoiled.items() if part in asked.path and found), None
                )
                if spoiled:
                    goes_on = await spoiled.pop(0)(asked, good, writer)
                    await writer.drain()
                    if not goes_on:
                        return
                    continue
                writer.write(good)
                await writer.drain()

    def _answer(self, asked: Asked) -> bytes:
        path = asked.path.partition("?")[0]
        if path == "/token":
            return http(200, b'{"token": "anonymous", "expires_in": 300}')
        if path.startswith("/elsewhere/"):
            return self._content(asked, LAYER, "application/octet-stream")
        allowed = ("Bearer user",) if "/private/" in path else ("Bearer user", "Bearer anonymous")
        if asked.headers.get("authorization") not in allowed:
            realm = f'Bearer realm="http://127.0.0.1:{self.port}/token",service="test"'
            return http(401, b"{}", **{"WWW-Authenticate": realm})
        if asked.method not in ("GET", "HEAD"):
            return http(202, b"", Location="/v2/lib/public/blobs/uploads/1")
        contents = {
            "/referrers/": INDEX,
            digest_of(LAYER): LAYER,
            digest_of(TINY): TINY,
            digest_of(MANIFEST): MANIFEST,
            "manifests/1": MANIFEST,
            "tags/list": TAGS,
        }
        if path == "/v2/":
            return http(200, b"{}")
        for end, has in self.also.items():
            if path.endswith(end):
                return self._content(asked, has.body, has.media_type, has.digest)
        content = next((found for name, found in contents.items() if name in path), None)
        if content is None:
            return http(404, b"{}")
        if self.redirects and content is LAYER:
            return http(307, b"", Location=f"http://127.0.0.1:{self.port}/elsewhere/{digest_of(LAYER)}")
        media_type = INDEX_TYPE if content is INDEX else MANIFEST_TYPE
        return self._content(asked, content, media_type)

    def _content(self, asked: Asked, content: bytes, media_type: str, digest: str = "") -> bytes:
        fields = {"Content-Type": media_type, "Docker-Content-Digest": digest or digest_of(content)}
        if asked.method == "HEAD":
            return http(200, b"", length=len(content), **fields)
        if asked.first >= len(content):
            return http(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        if asked.first:
            fields["Content-Range"] = f"bytes {asked.first}-{len(content) - 1}/{len(content)}"
            return http(206, content[asked.first :], **fields)
        return http(200, content, **fields)


def http(
    status: int, content: bytes, *, length: int | None = None, version: str = "1.1", **fields: str
) -> bytes:
    """One answer as bytes; `length` is what it claims, -1 for nothing."""
    claimed = len(content) if length is None else length
    lines = [f"HTTP/{version} {status} As told", *(f"{name}: {value}" for name, value in fields.items())]
    if claimed >= 0:
        lines.append(f"Content-Length: {claimed}")
    return "\r\n".join([*lines, "", ""]).encode() + content


async def _request(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers)
