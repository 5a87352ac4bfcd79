"""A registry on loopback with users and private repositories: a small working one that tells what it was
asked.

`Bearer alice-1` is a token of alice's; anybody gets `Bearer nobody` from its token service. A repository
that names no readers is everyone's. Errors have the specification's form, with the digest that was asked
for.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
ROBOT = "Basic " + base64.b64encode(b"robot:pw").decode()
"""A login that may be configured; its token is `Bearer robot-1`."""
_LIST = re.compile(r"/v2/(?P<repository>.+)/(?:tags/list|referrers/[^/]+)")
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)")


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def described(content: bytes, media_type: str = LAYER_TYPE, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **more}


def manifest_of(*layers: bytes, config: bytes = b"{}", **more: object) -> bytes:
    parts = [described(layer) for layer in layers]
    return json.dumps(
        {"schemaVersion": 2, "config": described(config, "a/b"), "layers": parts, **more}
    ).encode()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; `authorization` as it came."""

    method: str
    path: str
    authorization: str
    range: str


@dataclass
class PrivateOrigin:
    """`readers` by repository, who is missing there is public; `contents` by repository and reference.

    `lists` by path and query, with whatever headers.
    """

    readers: dict[str, set[str]] = field(default_factory=dict)
    contents: dict[str, dict[str, tuple[bytes, str]]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    lists: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    heads_fail: int = 0
    lists_fail: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def holds(self, repository: str, content: bytes, media_type: str = LAYER_TYPE, tag: str = "") -> None:
        kept = self.contents.setdefault(repository, {})
        kept[digest_of(content)] = (content, media_type)
        if tag:
            kept[tag] = (content, media_type)

    def sent(self, method: str) -> list[str]:
        """The paths asked for by that method, without the token service."""
        return [asked.path for asked in self.asked if asked.method == method and asked.path != "/token"]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        authorization = ", ".join(request.headers.getall("Authorization", []))
        self.asked.append(
            Asked(request.method, request.path, authorization, request.headers.get("Range", ""))
        )
        if request.path == "/token":
            token = "robot-1" if authorization == ROBOT else "nobody"
            return web.json_response({"token": token, "expires_in": 300})
        if listed := _LIST.fullmatch(request.path):
            return self._list(request, listed["repository"], authorization)
        found = _PATH.fullmatch(request.path)
        user = authorization.rpartition(" ")[2].partition("-")[0]
        if found is None:
            return web.Response(text="{}") if user else self._challenge("ping")
        repository, reference = found["repository"], found["reference"]
        readers = self.readers.get(repository)
        if not user or (readers is not None and user not in readers):
            return self._challenge(reference)
        if request.method == "HEAD" and self.heads_fail:
            return web.Response(status=self.heads_fail)
        if request.method == "DELETE":
            self.contents[repository].pop(reference)
            return web.Response(status=202)
        kept = self.contents.get(repository, {}).get(reference)
        if kept is None:
            return _error(404, "BLOB_UNKNOWN", reference)
        return await self._give(request, *kept)

    def _list(self, request: web.BaseRequest, repository: str, authorization: str) -> web.Response:
        user = authorization.rpartition(" ")[2].partition("-")[0]
        readers = self.readers.get(repository)
        if not user or (readers is not None and user not in readers):
            return self._challenge("list")
        if self.lists_fail:
            return web.Response(status=self.lists_fail)
        kept = self.lists.get(request.path_qs)
        if kept is None:
            return web.Response(status=404, text="404 page not found\n")
        return web.Response(body=kept[0], headers=kept[1])

    async def _give(self, request: web.BaseRequest, content: bytes, media_type: str) -> web.StreamResponse:
        headers = {"Docker-Content-Digest": digest_of(content), "Content-Type": media_type}
        if first := request.http_range.start:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return web.Response(status=206, body=content[first:], headers=headers)
        if request.method == "HEAD" or self.gate.is_set():
            return web.Response(body=content, headers=headers)

        async def gated() -> AsyncIterator[bytes]:
            yield content[: len(content) // 2]
            await self.gate.wait()
            yield content[len(content) // 2 :]

        headers["Content-Length"] = str(len(content))
        return web.Response(body=gated(), headers=headers)

    def _challenge(self, about: str) -> web.Response:
        response = _error(401, "UNAUTHORIZED", about)
        response.headers["WWW-Authenticate"] = (
            f'Bearer realm="http://127.0.0.1:{self.port}/token",service="test"'
        )
        return response


def _error(status: int, code: str, about: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "detail": {"digest": about}}]}, status=status)
