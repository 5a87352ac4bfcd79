"""The agent's own doors: HTTP on a unix socket for the command line, and on loopback for scrapers.

`GET /v1/status` (the JSON of `tidegate status --json`), `/metrics`, `/healthz` (the event loop turns),
`/readyz` (registry connections are steered). Nothing here changes anything.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from aiohttp import web

from tidegate_agent.status import Status
from tidegate_core.errors import StartRefused


class Admin:
    """Serves the agent's state until closed."""

    def __init__(self, *, status: Callable[[], Status], exposition: Callable[[], bytes]) -> None:
        self._status = status
        self._exposition = exposition
        self._socket_path: Path | None = None
        app = web.Application()
        app.router.add_get("/v1/status", self._get_status)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def open(self, *, socket_path: Path, host: str, port: int) -> None:
        """Listen on both; raises StartRefused naming the listener that is taken."""
        await self._runner.setup()
        self._socket_path = socket_path
        socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 (on a tmpfs, before anything is served)
        old_umask = os.umask(0o117)
        try:
            await web.UnixSite(self._runner, str(socket_path)).start()
        finally:
            os.umask(old_umask)
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise StartRefused(
                f"the admin listener {host}:{port} cannot be opened: {error.strerror or error}",
                next_step="set [admin] listen to a free address, or TIDEGATE_ADMIN__LISTEN=127.0.0.1:0",
            ) from error

    async def close(self) -> None:
        """Stop listening, and take the unix socket's file away."""
        await self._runner.cleanup()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)

    async def _get_status(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._status()), content_type="application/json")

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, _: web.Request) -> web.Response:
        steering = self._status().steering
        if steering.active:
            return web.Response(text="steering\n")
        return web.Response(status=503, text=f"not steering: {steering.reason}\n")
