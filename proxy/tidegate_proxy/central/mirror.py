"""What a mirror adds to registry semantics: it is read only, and its ping asks for no login.

containerd sends the login of the registry to none of its mirrors, dockerd neither; whoever has rights of
its own sends them with each request, and then they count (docs/hosts.md; DESIGN, section 6).
"""

from multidict import CIMultiDict

from tidegate_proxy.central.namespace import refusal
from tidegate_proxy.http.http_server import Service
from tidegate_proxy.oci.oci_error import OciError
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.site import Site

_PONG = (("Content-Type", "application/json"), ("Docker-Distribution-Api-Version", "registry/2.0"))
_READ_ONLY = OciError("UNSUPPORTED", "this is a mirror: push to the registry itself")
_NOTHING_ELSE = OciError("NAME_UNKNOWN", "this is a mirror: it has nothing outside of /v2/")


class Mirror:
    """A service for reads below /v2/."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, incoming: Incoming) -> Answer:
        return _own(incoming) or await self._service.answer(incoming)

    async def pass_through(self, incoming: Incoming) -> Answer:
        return _own(incoming) or await self._service.pass_through(incoming)

    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        return self._service.at_hand(site, method, target)


def _own(incoming: Incoming) -> Answer | None:
    if not incoming.reads:
        return refusal(_READ_ONLY)
    if incoming.path in ("/v2/", "/v2"):
        return Answer(status=200, headers=CIMultiDict(_PONG), body=b"{}", cache=Cache.HIT)
    if not incoming.path.startswith("/v2/"):
        return refusal(_NOTHING_ELSE)
    return None
