"""Configured logins over real sockets: a registry and its token service that do as they are told.

Expiry, refusals, failures and lies of a token service, Basic at the registry, and the password file.
"""

import asyncio
import base64
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web

from tidegate_proxy.oci.reference import Repository
from tidegate_proxy.site import Site
from tidegate_proxy.upstreams.credentials import FIRST_PAUSE_S, Credential, Credentials, Login, Share
from tidegate_proxy.upstreams.direct import DirectUpstream, NameResolver
from tidegate_proxy.upstreams.secret import PasswordFile
from tidegate_proxy.upstreams.signed_in import NotSignedIn, SignedIn

PASSWORD = "correct horse"
APP = Repository.parse("team/app")
TOOL = Repository.parse("team/tool")


@dataclass
class Registry:
    """A registry on loopback with its token service at /token; every field is a way to misbehave."""

    port: int = 0
    password: str = PASSWORD
    expires_in: object = 300
    token_status: int = 200
    scoped_status: int = 0
    token_body: bytes | None = None
    failing_first: int = 0
    realm: str = ""
    basic: bool = False
    takes_tokens: bool = True
    forbidden: frozenset[str] = frozenset()
    given: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    passwords: list[str] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        scheme = authorization.partition(" ")[0] or "nothing"
        self.seen[f"{'token' if request.path == '/token' else 'registry'} {scheme}"] += 1
        if scheme == "Basic":
            self.passwords.append(base64.b64decode(authorization.split()[1]).decode())
        return self.token(request) if request.path == "/token" else self.registry(request, authorization)

    def right(self, authorization: str) -> bool:
        return authorization == "Basic " + base64.b64encode(f"robot:{self.password}".encode()).decode()

    def token(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.failing_first:
            self.failing_first -= 1
            return web.Response(status=503)
        if self.token_status != 200:
            return web.Response(status=self.token_status, text="a body that echoes a secret: s3cret")
        if not self.right(request.headers.get("Authorization", "")):
            return web.Response(status=401)
        if self.scoped_status and "scope" in request.query_string:
            return web.Response(status=self.scoped_status)
        if self.token_body is not None:
            return web.Response(body=self.token_body)
        self.given += 1
        return web.json_response({"token": f"token-{self.given}", "expires_in": self.expires_in})

    def registry(self, request: web.BaseRequest, authorization: str) -> web.StreamResponse:
        self.during()
        repository = request.path.removeprefix("/v2/").partition("/manifests/")[0]
        if self.basic:
            if self.right(authorization):
                return web.Response(status=401 if repository in self.forbidden else 200)
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if self.takes_tokens and authorization == f"Bearer token-{self.given}":
            return web.Response(status=403 if repository in self.forbidden else 200)
        realm = self.realm or f"http://registry.test:{self.port}/token"
        challenge = f'Bearer realm="{realm}",service="s"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})


@dataclass
class World:
    registry: Registry
    site: Site
    signed_in: SignedIn
    credential: Credential
    file: Path
    said: list[str]
    now: list[float]

    async def head(self, repository: Repository = APP) -> int:
        """The status of a HEAD in the login's name, or 0 when it was not signed in."""
        target = f"/v2/{repository}/manifests/1"
        try:
            response = await self.signed_in.request(
                self.credential, self.site, repository, "HEAD", target, {"Accept": "*/*"}
            )
        except NotSignedIn:
            return 0
        await response.close()
        return response.status


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    registry = Registry()
    server = web.Server(registry.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    registry.port = listening.sockets[0].getsockname()[1]
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    file.chmod(0o600)
    now, said = [1000.0], []

    async def loopback(_host: str) -> list[str]:
        return ["127.0.0.1"]

    upstream = DirectUpstream(
        resolver=NameResolver(loopback), exempt=lambda _: None, tls=ssl.create_default_context()
    )
    login = Login(
        registry="r",
        username="robot",
        secret=PasswordFile(file, clock=lambda: now[0]),
        share=Share.NODE,
    )
    credentials = Credentials(
        [login], clock=lambda: now[0], say=lambda credential: said.append(credential.complaint.cause)
    )
    signed_in = SignedIn(upstream, credentials, clock=lambda: now[0])
    yield World(
        registry=registry,
        site=Site(registry="r", host="registry.test", port=registry.port, scheme="http"),
        signed_in=signed_in,
        credential=credentials.all[0],
        file=file,
        said=said,
        now=now,
    )
    await signed_in.close()
    await upstream.close()
    listening.close()
    await server.shutdown(0.01)


async def test_a_token_is_kept_by_repository_until_shortly_before_it_expires(world: World) -> None:
    """C17: one token for many requests, another one for another repository, a new one in time."""
    assert [await world.head(), await world.head()] == [200, 200]
    assert world.registry.given == 1
    assert await world.head(TOOL) == 200
    assert world.registry.given == 2

    world.registry.takes_tokens = True
    world.now[0] += 250
    assert await world.head(TOOL) == 200

    assert world.registry.given == 3
    assert set(world.registry.passwords) == {f"robot:{PASSWORD}"}


async def test_a_refused_token_is_replaced_once_and_no_more(world: World) -> None:
    """C17: a registry that refuses every token is not asked in a loop, and not again for a minute."""
    assert await world.head() == 200
    world.registry.takes_tokens = False
    world.registry.seen.clear()

    assert [await world.head(), await world.head()] == [0, 0]

    assert world.registry.seen == {"registry Bearer": 2, "token Basic": 1}
    world.registry.takes_tokens = True
    world.now[0] += 61
    assert await world.head() == 200


async def test_a_wrong_password_is_tried_once_however_many_ask(world: World) -> None:
    """C17, I1: accounts get locked. It says which file, and a corrected one is tried at once."""
    world.registry.password = "another"

    assert set(await asyncio.gather(*(world.head(Repository.parse(f"team/{n}")) for n in range(8)))) == {0}

    assert world.registry.seen["token Basic"] == 1
    complaint = world.credential.complaint
    assert f"the password of robot from {world.file} is refused" in complaint.cause
    assert str(world.file) in complaint.next_step
    world.now[0] += FIRST_PAUSE_S / 2
    assert await world.head() == 0
    assert world.registry.seen["token Basic"] == 1
    world.file.write_text("another")
    world.now[0] += 2
    assert await world.head() == 200
    assert world.said[-1] == ""


async def test_a_password_that_stays_wrong_is_tried_ever_more_rarely(world: World) -> None:
    """C17: 1, 2, 4 ... minutes, an hour at most."""
    world.registry.password = "another"
    tried = []
    for _ in range(6 * 60):
        before = world.registry.seen["token Basic"]
        await world.head()
        if world.registry.seen["token Basic"] > before:
            tried.append(world.now[0])
        world.now[0] += 60

    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses[:4] == [60, 120, 240, 480]
    assert max(pauses) == 3600


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_token_service_is_asked_again_and_then_left_alone(world: World, status: int) -> None:
    """C17, I1: once is not noticed; for longer, nobody waits for it, and the password is not to blame."""
    world.registry.failing_first = 1
    assert await world.head() == 200
    world.registry.token_status = status
    with pytest.raises(NotSignedIn) as caught:
        await world.signed_in.request(
            world.credential, world.site, TOOL, "HEAD", "/v2/team/tool/manifests/1", {}
        )
    assert caught.value.passing
    asked = world.registry.seen.total()

    assert await world.head(TOOL) == 0

    assert world.registry.seen.total() == asked
    assert "is refused" not in world.credential.complaint.cause
    assert await world.head() == 200, "a token at hand is still good"
    world.registry.token_status = 200
    world.now[0] += 11
    assert await world.head(TOOL) == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"token": 5}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nX-Injected: 1"}',
        json.dumps({"token": "x" * 40_000}).encode(),
        b'{"token": "' + b"x" * 300_000 + b'"}',
        b'{"token": "token-1", "expires_in": "soon"}',
    ],
)
async def test_what_is_no_token_is_a_failure_and_nothing_else(world: World, body: bytes) -> None:
    """C17, I8: huge answers, header injection, another form."""
    world.registry.token_body = body

    assert await world.head() == 0

    assert world.registry.seen["registry Bearer"] == 0


@pytest.mark.parametrize("expires_in", [0, -5, 1e300, None])
async def test_any_life_of_a_token_is_lived_with(world: World, expires_in: object) -> None:
    """C17."""
    world.registry.expires_in = expires_in

    assert [await world.head(), await world.head()] == [200, 200]


async def test_a_realm_of_strangers_gets_no_password(world: World) -> None:
    """C17, I6: nothing connects there; who it was and how to allow it is told."""
    stranger = Registry()
    server = web.Server(stranger.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    for realm in (f"http://stranger.example:{port}/token", f"https://stranger.example:{port}/token"):
        world.registry.realm = realm
        assert await world.head() == 0

    assert stranger.seen.total() == 0
    assert f"stranger.example:{port}" in world.credential.complaint.cause
    assert 'token_host = "stranger.example"' in world.credential.complaint.next_step
    listening.close()
    await server.shutdown(0.01)


async def test_a_repository_out_of_reach_is_not_the_passwords_fault(world: World) -> None:
    """C17: GitLab's token service refuses the scope; the login stays good for others."""
    world.registry.scoped_status = 403
    assert await world.head() == 0
    assert not world.credential.complaint
    world.registry.scoped_status = 0

    assert await world.head(TOOL) == 200


async def test_basic_at_the_registry_itself(world: World) -> None:
    """C17: asked for once, then sent at once; a repository out of reach does not end the others."""
    world.registry.basic = True
    world.registry.forbidden = frozenset({str(TOOL)})

    assert [await world.head(), await world.head()] == [200, 200]

    assert world.registry.seen == {"registry nothing": 1, "registry Basic": 2}
    assert await world.head(TOOL) == 0
    assert await world.head() == 200
    assert not world.credential.complaint


async def test_a_wrong_password_at_the_registry_is_not_repeated(world: World) -> None:
    """C17: Basic, with the same back-off."""
    world.registry.basic, world.registry.password = True, "another"

    await asyncio.gather(*(world.head(Repository.parse(f"team/{n}")) for n in range(8)))
    await world.head()

    assert world.registry.seen["registry Basic"] == 1
    assert "is refused" in world.credential.complaint.cause


async def test_a_json_key_is_one_password_with_its_newlines(world: World) -> None:
    """C17: GCR's `_json_key`; the file is the password, but for the line end behind it."""
    key = '{\n  "type": "service_account",\n  "private_key": "-----BEGIN-----\\nx\\n"\n}'
    world.file.write_text(f"{key}\n")
    world.registry.password = key

    assert await world.head() == 200


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda file: file.unlink(), "does not exist"),
        (lambda file: file.write_text("\n"), "is empty"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda file: file.write_text("x" * 70_000), "too large"),
        (lambda file: (file.unlink(), file.mkdir()), "not a file"),
    ],
)
async def test_a_file_without_a_password_is_told_and_read_when_it_is_there(
    world: World, make: Callable[[Path], object], told: str
) -> None:
    """C17, I1: no reason not to start; nothing is sent meanwhile."""
    make(world.file)

    assert await world.head() == 0

    assert told in world.credential.complaint.cause
    assert world.credential.complaint.next_step
    assert world.registry.seen.total() == 0
    if world.file.is_dir():
        world.file.rmdir()
    world.file.write_text(PASSWORD)
    world.now[0] += 2
    assert await world.head() == 200


async def test_a_password_that_everybody_can_read_is_used_with_a_warning(world: World) -> None:
    """C17."""
    world.file.chmod(0o644)

    assert await world.head() == 200

    assert world.credential.complaint.next_step == f"chmod o-rwx {world.file}"
    assert world.credential.working


async def test_no_error_of_a_login_tells_a_secret(world: World) -> None:
    """O4: neither the password, its encoding, nor a token service's body."""
    world.registry.token_status = 401
    errors = []
    for _ in range(2):
        try:
            await world.signed_in.request(
                world.credential, world.site, APP, "HEAD", "/v2/team/app/manifests/1", {}
            )
        except NotSignedIn as error:
            errors.append(
                f"{error} {error!r} {error.__cause__} {world.credential!r} {world.credential.complaint}"
            )

    told = " ".join(errors + world.said)
    encoded = base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
    assert len(errors) == 2
    assert not any(secret in told for secret in (PASSWORD, encoded, "s3cret"))
