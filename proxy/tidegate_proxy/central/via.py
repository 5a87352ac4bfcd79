"""Requests that come round in a circle are found by the name that each tier leaves in Via (RFC 9110, 7.6.3).

A circle is a mistake of configuration: a tier that is its own upstream, or two that are each other's. The
name travels with the task that asks, so also with a fetch that was begun for one request and serves many.
"""

from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar

from multidict import CIMultiDict

from tidegate_proxy.central.namespace import refusal
from tidegate_proxy.http.http_server import Service
from tidegate_proxy.oci.oci_error import OciError
from tidegate_proxy.registry.answer import Answer, Incoming
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.upstream import Upstream, UpstreamResponse

LOOP_DETECTED = 508  # RFC 5842, 7.2

_passed: ContextVar[str] = ContextVar("who passed the request on before it came here", default="")


def passed_by(via: str, name: str) -> bool:
    """Whether `name` is among those that a Via field tells."""
    return any(name in entry.split() for entry in via.split(","))


class Marked:
    """An upstream that every request reaches with our name in Via."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.kind = upstream.kind
        self._upstream = upstream
        self._name = name

    def dark(self, site: Site) -> bool:
        return self._upstream.dark(site)

    async def request(
        self,
        site: Site,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[bytes] | None = None,
        follow_redirects: bool = False,
        patience_s: float | None = None,
        own_authorization: str | None = None,
        proven: bool = False,
        private: bool = False,
    ) -> UpstreamResponse:
        marked = CIMultiDict(headers)
        marked.popall("Via", None)
        marked["Via"] = ", ".join(filter(None, (_passed.get(), f"1.1 {self._name}")))
        return await self._upstream.request(
            site,
            method,
            target,
            marked,
            body=body,
            follow_redirects=follow_redirects,
            patience_s=patience_s,
            own_authorization=own_authorization,
            proven=proven,
            private=private,
        )


class Guarded:
    """A service that refuses what it was asked for by itself."""

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self._name = name

    async def answer(self, incoming: Incoming) -> Answer:
        return self._refused(incoming) or await self._service.answer(incoming)

    async def pass_through(self, incoming: Incoming) -> Answer:
        return self._refused(incoming) or await self._service.pass_through(incoming)

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        return self._service.at_hand(site, method, target)

    def _refused(self, incoming: Incoming) -> Answer | None:
        via = ", ".join(incoming.headers.getall("Via", ()))
        if not passed_by(via, self._name):
            _passed.set(via)
            return None
        message = (
            "this request came through this very tier already: an [[upstream]] or a proxy leads back to it"
        )
        return refusal(OciError("UNAVAILABLE", message, {"via": via[:256]}), status=LOOP_DETECTED)
