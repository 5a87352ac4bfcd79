"""The operators' API: `/v1/cache/...` on the admin socket alone (docs/operations/api.md).

JSON in and out; a pull is answered by a line of JSON per step, an export by a tar, and an import's body is
one. What cannot be done is told as `{"cause", "next_step"}`: 400 where the request is wrong, 404 where there
is nothing of that name, 409 else. Thin: what is done is the proxy's `operating`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec
from aiohttp import web

from tidegate_agent.cache.operations import Operations
from tidegate_core.errors import TidegateError, UsageError
from tidegate_proxy.oci.digest import Digest, InvalidDigest
from tidegate_proxy.oci.image_name import ImageName, InvalidImageName
from tidegate_proxy.oci.platform import InvalidPlatform
from tidegate_proxy.operating.exporting import NotComplete, export_of, layout_of
from tidegate_proxy.operating.forms import PullEvent, PullOrder, PurgeOrder
from tidegate_proxy.operating.purging import NothingCached
from tidegate_proxy.storage.reading import BodyBroken

DEFAULT_PAGE = 100
MOST_REFS = 200
_TRANSFERS_AT_ONCE = 4
_UPLOAD_PIECE = 1 << 18
_WRONG = (UsageError, InvalidImageName, InvalidPlatform, InvalidDigest)

F = TypeVar("F")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def cache_routes(operations: Operations) -> tuple[web.RouteDef, ...]:
    """What the admin socket serves beside its own."""
    api = _Api(operations)
    return (
        web.get("/v1/cache/images", _told(api.images), allow_head=False),
        web.get("/v1/cache/stats", _told(api.stats), allow_head=False),
        web.get("/v1/cache/explain", _told(api.explain), allow_head=False),
        web.get("/v1/cache/export", _told(api.export), allow_head=False),
        web.post("/v1/cache/purge", _told(api.purge)),
        web.post("/v1/cache/pull", _told(api.pull)),
        web.post("/v1/cache/import", _told(api.import_)),
    )


class _Api:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._transfers = asyncio.Semaphore(_TRANSFERS_AT_ONCE)

    async def images(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        try:
            limit = int(query.get("limit", DEFAULT_PAGE))
        except ValueError as error:
            raise UsageError("limit is no number", next_step="leave it out, or give one") from error
        within = ImageName.parse(query["in"]) if query.get("in") else None
        return _json(
            await self._operations.images(
                within=within, untagged=_flag(request, "untagged"), after=query.get("after", ""), limit=limit
            )
        )

    async def stats(self, _: web.Request) -> web.StreamResponse:
        return _json(await self._operations.stats())

    async def explain(self, request: web.Request) -> web.StreamResponse:
        return _json(await self._operations.explaining.image(_name(request)))

    async def purge(self, request: web.Request) -> web.StreamResponse:
        order = await _decoded(request, PurgeOrder)
        if order.all == bool(order.ref):
            raise UsageError(
                "a purge names one reference, or all", next_step='{"ref": "docker.io/library/x"}'
            )
        purging = self._operations.purging
        if order.all:
            return _json(await purging.everything())
        if order.ref.startswith(("sha256:", "sha512:")):
            return _json(await purging.blob(Digest.parse(order.ref)))
        return _json(await purging.image(ImageName.parse(order.ref)))

    async def pull(self, request: web.Request) -> web.StreamResponse:
        order = await _decoded(request, PullOrder)
        if not 0 < len(order.refs) <= MOST_REFS:
            raise UsageError(f"a pull names 1 to {MOST_REFS} references", next_step="tidegate pull REF...")
        names = [ImageName.parse(ref) for ref in order.refs]
        wanted = self._operations.wanted(order.platforms, all_platforms=order.all_platforms)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        encode = msgspec.json.Encoder().encode

        async def tell(event: PullEvent) -> None:
            await response.write(encode(event) + b"\n")

        try:
            await self._operations.pulling.images(list(dict.fromkeys(names)), wanted, tell)
            await tell(PullEvent(event="end"))
        except* ConnectionError:
            pass  # whoever asked has left; fetches that run end by themselves
        return response

    async def export(self, request: web.Request) -> web.StreamResponse:
        wanted = self._operations.wanted(
            request.query.getall("platform", []), all_platforms=_flag(request, "all_platforms")
        )
        cache = self._operations.cache
        async with self._transfers:
            export = await export_of(cache, self._operations.registries, _name(request), wanted)
            headers = {"Content-Type": "application/x-tar", "Tidegate-Image": str(export.name)}
            if export.left_out:
                headers["Tidegate-Left-Out"] = ", ".join(export.left_out)
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            try:
                async for piece in layout_of(export, cache.store):
                    await response.write(piece)
            except (BodyBroken, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()  # cut: an archive that ends well is whole
            return response

    async def import_(self, request: web.Request) -> web.StreamResponse:
        name_as = ImageName.parse(request.query["as"]) if request.query.get("as") else None
        async with self._transfers:
            done = await self._operations.importing.archive(
                _body(request), name_as=name_as, public=_flag(request, "public")
            )
        return _json(done)


def _told(handler: Handler) -> Handler:
    """The handler, with what it refuses told in words."""

    async def telling(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except _WRONG as error:
            return _refusal(error, 400)
        except (NothingCached, NotComplete) as error:
            return _refusal(error, 404)
        except TidegateError as error:
            return _refusal(error, 409)

    return telling


def _refusal(error: TidegateError, status: int) -> web.Response:
    return web.json_response({"cause": error.cause, "next_step": error.next_step}, status=status)


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _name(request: web.Request) -> ImageName:
    if "ref" not in request.query:
        raise UsageError("no reference is given", next_step="?ref=docker.io/library/nginx:1.27")
    return ImageName.parse(request.query["ref"])


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "") in ("1", "true")


async def _decoded(request: web.Request, form: type[F]) -> F:
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=form)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"the request does not read: {error}", next_step="see docs/operations/api.md"
        ) from error


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_chunked(_UPLOAD_PIECE):
        yield piece
