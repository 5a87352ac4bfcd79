"""A daemon's own doors: HTTP on a unix socket for the command line, and on loopback for scrapers.

`GET /v1/status` (the JSON of `tidegate status --json`), `/metrics`, `/healthz` (the event loop turns),
`/readyz` (the agent: registry connections are steered; central: its doors are open). No upstream has a say in
either. On the unix socket alone, which only root may open, the agent has `POST /v1/pause` and
`POST /v1/resume`, answered with the `steering` part of the status, `POST /v1/reload`, answered with what
changed or, with 422, why nothing did, and what operates the cache (`cache.api`).
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web

from tidegate_agent.pause import LONGEST
from tidegate_agent.status import ReloadStatus, SteeringStatus
from tidegate_core.errors import StartRefused, TidegateError

_MAX_BODY_BYTES = 64 * 1024


class PauseOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/pause`; without `for_s` the pause has no end of its own."""

    for_s: Annotated[float, msgspec.Meta(ge=1, le=LONGEST.total_seconds())] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What an operator may want of the agent; `pause` is given how long, None meaning until `resume`.

    `reload` raises TidegateError when the configuration in effect stays.
    """

    pause: Callable[[timedelta | None], SteeringStatus]
    resume: Callable[[], Awaitable[SteeringStatus]]
    reload: Callable[[], Awaitable[ReloadStatus]]


class Admin:
    """Serves a daemon's state, and passes on what the operator wants, until closed."""

    def __init__(
        self,
        *,
        status: Callable[[], msgspec.Struct],
        exposition: Callable[[], bytes],
        readiness: Callable[[], tuple[bool, str]],
        orders: Orders | None = None,
        local_routes: Sequence[web.RouteDef] = (),
    ) -> None:
        """`readiness` tells whether the daemon does its work, in words too.

        `local_routes` are served on the unix socket alone.
        """
        self._local_routes = local_routes
        self._status = status
        self._exposition = exposition
        self._readiness = readiness
        self._orders = orders
        self._socket_path: Path | None = None
        self._open_ones = AsyncExitStack()

    async def open(self, *, socket_path: Path, host: str, port: int) -> None:
        """Listen on both; raises StartRefused naming the listener that is taken."""
        routes = () if self._orders is None else self._order_routes(self._orders)
        local = await self._runner(*routes, *self._local_routes)
        remote = await self._runner()
        self._socket_path = socket_path
        socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 (on a tmpfs, before anything is served)
        old_umask = os.umask(0o117)
        try:
            await web.UnixSite(local, str(socket_path)).start()
        finally:
            os.umask(old_umask)
        try:
            await web.TCPSite(remote, host, port).start()
        except OSError as error:
            raise StartRefused(
                f"the admin listener {host}:{port} cannot be opened: {error.strerror or error}",
                next_step="set [admin] listen to a free address, or TIDEGATE_ADMIN__LISTEN=127.0.0.1:0",
            ) from error

    async def close(self) -> None:
        """Stop listening, and take the unix socket's file away."""
        await self._open_ones.aclose()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)

    async def _runner(self, *more: web.RouteDef) -> web.AppRunner:
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/v1/status", self._get_status)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        app.router.add_routes(more)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        self._open_ones.push_async_callback(runner.cleanup)
        await runner.setup()
        return runner

    def _order_routes(self, orders: Orders) -> tuple[web.RouteDef, ...]:
        async def pause(request: web.Request) -> web.Response:
            try:
                order = msgspec.json.decode(await request.read() or b"{}", type=PauseOrder)
            except msgspec.DecodeError as error:
                return web.json_response({"error": str(error)}, status=400)
            return _json(orders.pause(None if order.for_s is None else timedelta(seconds=order.for_s)))

        async def resume(_: web.Request) -> web.Response:
            return _json(await orders.resume())

        async def reload(_: web.Request) -> web.Response:
            try:
                return _json(await orders.reload())
            except TidegateError as error:
                refusal = {"cause": error.cause, "next_step": error.next_step}
                return web.json_response(refusal, status=422)

        return (
            web.post("/v1/pause", pause),
            web.post("/v1/resume", resume),
            web.post("/v1/reload", reload),
        )

    async def _get_status(self, _: web.Request) -> web.Response:
        return _json(self._status())

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, _: web.Request) -> web.Response:
        is_ready, words = self._readiness()
        return web.Response(status=200 if is_ready else 503, text=f"{words}\n")


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
