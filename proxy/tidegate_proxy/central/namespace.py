"""The containerd mirror protocol (docs/hosts.md): `?ns=` says which registry a request is for. Pure.

The parameter is ours: it is taken off before the request is read, and nothing of it reaches a registry.
dockerd's `registry-mirrors` send none and mean Docker Hub.
"""

from collections.abc import Hashable
from urllib.parse import unquote

from multidict import CIMultiDict

from tidegate_proxy.http.addressing import Addressed
from tidegate_proxy.oci.oci_error import OciError
from tidegate_proxy.registry.answer import Answer
from tidegate_proxy.site import DOCKER_HUB, Registries

_PARAMETER = "ns"


class ByNamespace:
    """Requests say themselves which registry they are for."""

    where: Hashable = "?ns="

    def __init__(self, registries: Registries) -> None:
        self._registries = registries

    def of(self, host: str, target: str) -> Addressed | Answer:
        """The site that `ns` names; a mirror has whatever name its clients have for it."""
        del host
        named, rest = without_namespace(target)
        if len(named) > 1:
            return refusal(OciError("NAME_INVALID", "the request has more than one ns"), status=400)
        namespace = named[0].lower().rstrip(".") if named else DOCKER_HUB
        site = self._registries.by_namespace(namespace)
        if site is not None:
            return Addressed(site, rest)
        message = (
            "no such registry is configured here" if named else "without ns this is a mirror of docker.io"
        )
        return refusal(OciError("NAME_UNKNOWN", message, {"ns": namespace[:256]}))


def without_namespace(target: str) -> tuple[list[str], str]:
    """The values of `ns`, decoded, and the target without them; the rest stays as it was written."""
    path, question, query = target.partition("?")
    if not question:
        return [], target
    parts = query.split("&")
    values = [unquote(part.partition("=")[2]) for part in parts if part.partition("=")[0] == _PARAMETER]
    if not values:
        return [], target
    rest = "&".join(part for part in parts if part.partition("=")[0] != _PARAMETER)
    return values, f"{path}?{rest}" if rest else path


def refusal(error: OciError, *, status: int | None = None) -> Answer:
    """An error answer; `status` where the code's own does not say it."""
    headers = CIMultiDict({"Content-Type": "application/json"})
    return Answer(status=error.status if status is None else status, headers=headers, body=error.body())
