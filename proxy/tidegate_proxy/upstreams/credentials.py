"""Configured logins: which one is for a site, whether it works, and who may read what it fetched (DESIGN 6).

A login that was refused is left alone for a while, longer each time, because accounts get locked; a password
that changed is tried at once. This module sends nothing, and never tells a password but as the Authorization
of one request (RFC 7617).
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.realm import TokenService, is_relative, may_have_password
from tidegate_proxy.upstreams.secret import Complaint, Secret, SecretSource

FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
SERVICE_PAUSE_S = 10.0
_TOKEN_HOSTS = {"auth.docker.io": "docker.io", "gitlab.com": "registry.gitlab.com"}
"""Whose token service a host is, where that is known before the registry says so."""


class Share(StrEnum):
    """Who may read what a login can read: every client of the node, or only those with their own right."""

    NODE = "node"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A login as it was configured.

    `registry` is the registry's name. Where only a host is known, `host` is it: the registry's or its token
    service's. `token_host` is a token service that may have the password although its name is no relative.
    """

    registry: str = ""
    host: str = ""
    username: str
    secret: SecretSource = field(repr=False)
    share: Share
    token_host: str = ""


def identity_of(login: Login) -> tuple[str, ...]:
    """Equal for logins that say the same, by the name of the password's source."""
    return (login.registry, login.host, login.username, login.secret.name, login.share, login.token_host)


class Unusable(Exception):
    """The login cannot be used now; `complaint` says why."""

    def __init__(self, complaint: Complaint) -> None:
        super().__init__(complaint.cause)
        self.complaint = complaint


class Credential:
    """One login and how it fares."""

    def __init__(
        self, login: Login, *, clock: Callable[[], float], say: Callable[["Credential"], None]
    ) -> None:
        """`say` is called whenever `complaint` has changed."""
        self.identity = identity_of(login)
        self.name = login.registry or login.host
        self.username = login.username
        self.share = login.share
        self.host = login.host
        self.key = f"{login.username}@{self.name}"
        """Tells it from other logins, in memory and in the index."""
        self.complaint = Complaint()
        self.trial = asyncio.Lock()
        """Held while a password is tried that was never accepted: a wrong one is then tried only once."""
        self._token_host = login.token_host
        self._secret = login.secret
        self._clock = clock
        self._say = say
        self._version: int | None = None
        self._reading_complaint = Complaint()
        self._readable = False
        self._proven = False
        self._refusals = 0
        self._not_before = 0.0
        self._service_not_before = 0.0

    def __repr__(self) -> str:
        return f"<Credential {self.key}>"

    @property
    def working(self) -> bool:
        """Whether nothing is known that keeps it from being used."""
        return not self.complaint or self.complaint.harmless

    @property
    def waits(self) -> bool:
        """Whether there is no password, or it was refused and is not tried again yet."""
        return not self._readable or self._clock() < self._not_before

    @property
    def proven(self) -> bool:
        """Whether the password, as it is now, was accepted at least once."""
        return self._proven

    async def authorization(self) -> str:
        """`Basic ...` with the password as it is now; raises Unusable."""
        secret = await self.look()
        if secret is None or self._clock() < self._not_before:
            raise Unusable(self.complaint)
        plain = f"{self.username}:{secret.reveal()}"
        return f"Basic {b64encode(plain.encode()).decode()}"

    async def look(self) -> Secret | None:
        """Read the password if it changed; what is wrong with it goes to `complaint`."""
        reading = await self._secret.read()
        if reading.version != self._version:
            self._version = reading.version
            self._proven, self._refusals, self._not_before = False, 0, 0.0
            self._reading_complaint, self._readable = reading.complaint, reading.secret is not None
            self._complain(reading.complaint)
        return reading.secret

    def accepted(self) -> None:
        """Somebody accepted the password."""
        self._proven, self._refusals, self._not_before = True, 0, 0.0
        self._complain(self._reading_complaint)

    def doubted(self, by: str, status: int) -> None:
        """The registry itself refused the password. Once it may mean the repository, twice in a row not."""
        if self._proven:
            self._proven = False
        else:
            self.refused(by, status)

    def refused(self, by: str, status: int) -> None:
        """The host `by` refused the password."""
        pause_s = min(FIRST_PAUSE_S * 2**self._refusals, LONGEST_PAUSE_S)
        self._refusals += 1
        self._not_before = self._clock() + pause_s
        self._proven = False
        cause = f"{self.name}: the password of {self.username} from {self._secret.name} is refused"
        self._complain(
            Complaint(
                cause=f"{cause} ({by} answers {status})",
                next_step=f"write the right one into {self._secret.name}: it is then tried at once",
            )
        )

    def is_for_registry(self, site: Site) -> bool:
        """Whether the registry itself may have the password; not so when it is its token service's login."""
        return not self.host or self.host in (site.host, site.registry)

    def is_for(self, site: Site, service: TokenService) -> bool:
        """Whether that token service of the site may have the password; if not, somebody is told."""
        if self.is_for_registry(site):
            allowed = may_have_password(site, service, named=self._token_host)
        else:
            allowed = service.site.scheme == "https" and service.site.host == self.host
        if not allowed:
            self._misdirected(service)
        return allowed

    def _misdirected(self, service: TokenService) -> None:
        host = service.site.authority if service.site.scheme == "https" else service.site.origin
        cause = (
            f"{self.name} sends logins to {host}, which is not known to belong to it: the password stays here"
        )
        step = f'if it does: token_host = "{service.site.host}" in its [[credential]]'
        self._complain(Complaint(cause=cause, next_step=step if service.site.scheme == "https" else ""))

    def service_failed(self, cause: str) -> None:
        """The token service gave no usable answer: it is not asked again for a moment."""
        self._service_not_before = self._clock() + SERVICE_PAUSE_S
        self._complain(Complaint(cause=f"{self.name}: {cause}", next_step="tidegate status"))

    @property
    def service_failing(self) -> bool:
        """Whether its token service failed a moment ago."""
        return self._clock() < self._service_not_before

    def _complain(self, complaint: Complaint) -> None:
        if complaint != self.complaint:
            self.complaint = complaint
            self._say(self)


class Credentials:
    """The configured logins, by the site that they are for."""

    def __init__(
        self,
        logins: Iterable[Login] = (),
        *,
        clock: Callable[[], float],
        say: Callable[[Credential], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._say = say
        self._all: tuple[Credential, ...] = ()
        self._take(logins)

    def _take(self, logins: Iterable[Login]) -> None:
        """These from now on; what is known of one that stays the same is kept."""
        known = {credential.identity: credential for credential in self._all}
        self._all = tuple(
            known.get(identity_of(login)) or Credential(login, clock=self._clock, say=self._say)
            for login in logins
        )
        self._by_registry: dict[str, Credential] = {}
        self._by_host: dict[str, Credential] = {}
        for credential in self._all:
            if credential.host:
                self._by_host.setdefault(credential.host, credential)
                if registry := _TOKEN_HOSTS.get(credential.host):
                    self._by_registry.setdefault(registry, credential)
            else:
                self._by_registry.setdefault(credential.name, credential)
        self._bound: dict[str, Credential] = {}

    async def replace(self, logins: Iterable[Login]) -> None:
        """Follow another configuration."""
        self._take(logins)
        await self.look()

    @property
    def all(self) -> Sequence[Credential]:
        """Every login, in the order configured."""
        return self._all

    def of(self, site: Site) -> Credential | None:
        """The login for a site."""
        return (
            self._by_registry.get(site.registry)
            or self._by_host.get(site.host)
            or self._by_host.get(site.registry)
            or self._bound.get(site.authority)
        )

    def shared(self, site: Site) -> Credential | None:
        """The login for a site whose rights every client of the node has."""
        credential = self.of(site)
        return credential if credential is not None and credential.share is Share.NODE else None

    def challenged(self, site: Site, service: TokenService) -> None:
        """The site names its token service: a login that was configured for that host is the site's."""
        credential = self._by_host.get(service.site.host)
        if credential is not None and self.of(site) is None and is_relative(site.host, service.site.host):
            self._bound[site.authority] = credential

    async def look(self) -> None:
        """Read every password, so that what is wrong with one is told now."""
        for credential in self._all:
            await credential.look()
