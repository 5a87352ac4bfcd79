"""Which credentials a registry accepted for which repository, a moment ago (DESIGN, 6; I6).

A right is remembered under an HMAC (RFC 2104) of the Authorization, with a key that this process alone
has: no credential is kept. It is believed for a minute, never past the end that a token says of itself
(RFC 7519, `exp`), and no longer than until the registry refuses it. Only what the registry answered makes
one; this module asks nobody.
"""

import hmac
import secrets
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

import msgspec

from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.site import Site

BELIEVED_FOR_S = 60.0
LIMIT = 16_384


class Rights:
    """Rights that were proven, the oldest forgotten first."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        believed_for_s: float = BELIEVED_FOR_S,
        limit: int = LIMIT,
    ) -> None:
        """`clock` never goes back; `now` is what a token's end is compared with."""
        self._clock = clock
        self._now = now
        self._believed_for_s = believed_for_s
        self._limit = limit
        self._secret = secrets.token_bytes(32)
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def holds(self, site: Site, repository: Repository, authorization: str) -> bool:
        """Whether the registry accepted this credential for the repository, and that still counts."""
        return self._clock() < self._until.get(self._key(site, repository, authorization), 0.0)

    def accepted(self, site: Site, repository: Repository, authorization: str) -> None:
        """The registry just answered a read of the repository in this name."""
        key = self._key(site, repository, authorization)
        lasts_s = self._believed_for_s
        if (ends := _end_of(authorization)) is not None:
            lasts_s = min(lasts_s, ends - self._now().timestamp())
        self._until.pop(key, None)
        self._until[key] = self._clock() + lasts_s
        if len(self._until) > self._limit:
            self._until.popitem(last=False)

    def refused(self, site: Site, repository: Repository, authorization: str) -> None:
        """The registry just refused a read of the repository in this name."""
        self._until.pop(self._key(site, repository, authorization), None)

    def _key(self, site: Site, repository: Repository, authorization: str) -> bytes:
        message = "\n".join((site.origin, site.namespace, repository.name, authorization))
        return hmac.digest(self._secret, message.encode("utf-8", "surrogateescape"), "sha256")


class _Claims(msgspec.Struct):
    exp: float | None = None


def _end_of(authorization: str) -> float | None:
    """When a bearer token says that it ends, in seconds since the epoch; None for one that says nothing."""
    parts = authorization.partition(" ")[2].strip().split(".")
    if len(parts) != 3:
        return None
    try:
        claims = urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(claims, type=_Claims).exp
    except (ValueError, msgspec.DecodeError):
        return None
