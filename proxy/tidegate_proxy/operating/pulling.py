"""Warming the cache: images are pulled by the agent as a client would, and their bytes dropped.

Each request goes to the same service that answers clients, without a login of its own: what is public or
opened by a shared login is fetched once, shared with clients that pull the same, and verified; what is here
already costs what a client's pull would cost, one HEAD for the tag. Bounded in images and blobs at a time.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from multidict import CIMultiDict, CIMultiDictProxy

from tidegate_core.errors import TidegateError
from tidegate_proxy.oci.descriptor import MANIFEST_TYPES, Descriptor, MalformedManifest, referenced_by
from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.oci.image_name import ImageName
from tidegate_proxy.oci.platform import Platform, platforms_of
from tidegate_proxy.operating.forms import PullEvent
from tidegate_proxy.operating.named import site_of
from tidegate_proxy.registry.answer import Answer, Cache, Incoming
from tidegate_proxy.registry.registry import RegistryService
from tidegate_proxy.site import Registries, Site
from tidegate_proxy.storage.reading import BodyBroken
from tidegate_proxy.upstreams.credentials import Credentials

IMAGES_AT_ONCE = 3
BLOBS_AT_ONCE = 4
_TOLD_EVERY_S = 0.2
_DEEPEST = 4
_ACCEPT = ", ".join(MANIFEST_TYPES)

Tell = Callable[[PullEvent], Awaitable[None]]


class PullFailed(TidegateError):
    """The image could not be had, or not cached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which manifests of an index: those of `platforms`, or all."""

    platforms: tuple[Platform, ...]
    all_platforms: bool = False

    def chosen(self, known: dict[Digest, Platform | None]) -> list[Digest]:
        """Raise PullFailed where there is none of one of them."""
        if self.all_platforms:
            return list(known)
        chosen = []
        for wanted in self.platforms:
            found = [digest for digest, each in known.items() if each is not None and each.serves(wanted)]
            if not found:
                there = ", ".join(sorted({str(each) for each in known.values() if each is not None}))
                raise PullFailed(
                    f"it has nothing for {wanted}, only for {there or 'no named platform'}",
                    next_step="tidegate pull --platform OS/ARCHITECTURE REF, or --all-platforms",
                )
            chosen.append(found[0])
        return list(dict.fromkeys(chosen))


class Pulling:
    """Pulls images into the cache."""

    def __init__(self, *, service: RegistryService, registries: Registries, credentials: Credentials) -> None:
        self._service = service
        self._registries = registries
        self._credentials = credentials
        self._images = asyncio.Semaphore(IMAGES_AT_ONCE)
        self._blobs = asyncio.Semaphore(IMAGES_AT_ONCE * BLOBS_AT_ONCE)

    async def images(self, names: Sequence[ImageName], wanted: Wanted, tell: Tell) -> None:
        """Pull them all; one that fails is told of, and the others go on."""
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(self._image(name.or_latest, wanted, tell))

    async def _image(self, name: ImageName, wanted: Wanted, tell: Tell) -> None:
        async with self._images:
            try:
                site = site_of(self._registries, name)
                pull = _OnePull(self, site, name, tell)
                cached = await pull.manifest(str(name.reference), wanted, depth=_DEEPEST)
            except (TidegateError, BodyBroken, MalformedManifest) as error:
                cause = error.cause if isinstance(error, TidegateError) else str(error)
                step = getattr(error, "next_step", "") or f"tidegate cache explain {name}"
                await tell(PullEvent(event="failed", ref=str(name), cause=cause, next_step=step))
            else:
                state = "cached" if cached else "done"
                await tell(PullEvent(event="done", ref=str(name), state=state))  # type: ignore[arg-type] # widened

    async def ask(self, site: Site, target: str, accept: str) -> Answer:
        """One GET as a client sends it."""
        headers = CIMultiDictProxy(CIMultiDict({"Host": site.authority, "Accept": accept}))
        return await self._service.answer(Incoming(site=site, method="GET", target=target, headers=headers))

    def refusal(self, site: Site, name: ImageName, status: int) -> PullFailed:
        """What an answer that is no 200 means, and what to type."""
        if status in (401, 403):
            credential = self._credentials.of(site)
            if credential is None:
                cause, step = (
                    "it is private, which this node has no login for, or there is no such image",
                    (
                        f'add [[credential]] with registry = "{name.registry}" and share = "node", '
                        "then: tidegate reload"
                    ),
                )
            elif self._credentials.shared(site) is None:
                cause, step = (
                    f"it is private, and the login {credential.username} is shared with nobody",
                    (
                        'set share = "node" in its [[credential]], then: tidegate reload; '
                        "or have each client log in"
                    ),
                )
            else:
                cause = f"it is private, and the registry refuses the login {credential.username}"
                step = "tidegate status"
            return PullFailed(f"{cause} (the registry answers {status})", next_step=step)
        if status == 404:
            return PullFailed(f"{name.registry} has no such image", next_step="look at its name and tag")
        return PullFailed(f"{name.registry} answers {status}", next_step="tidegate doctor")

    @property
    def blobs(self) -> asyncio.Semaphore:
        return self._blobs


class _OnePull:
    def __init__(self, pulling: Pulling, site: Site, name: ImageName, tell: Tell) -> None:
        self._pulling = pulling
        self._site = site
        self._name = name
        self._tell = tell
        self._seen: set[Digest] = set()

    async def manifest(self, reference: str, wanted: Wanted, *, depth: int) -> bool:
        """Pull a manifest and what it names; whether all of it was here before."""
        answer = await self._pulling.ask(
            self._site, f"/v2/{self._name.repository}/manifests/{reference}", _ACCEPT
        )
        body = await _whole(answer)
        if answer.status != 200:
            raise self._pulling.refusal(self._site, self._name, answer.status)
        if answer.cache is Cache.BYPASS:
            raise PullFailed(
                "its manifest came, but could not be cached",
                next_step=f"tidegate cache explain {self._name}",
            )
        digest = answer.headers.get("Docker-Content-Digest", "")
        media_type = answer.headers.get("Content-Type", "")
        await self._tell(
            PullEvent(event="manifest", ref=str(self._name), digest=digest, size_bytes=len(body))
        )
        parts = referenced_by(body, media_type)
        platforms = platforms_of(body, media_type)
        cached = answer.cache is not Cache.MISS
        if any(part.media_type in MANIFEST_TYPES for part in parts):
            if not depth:
                raise PullFailed("its indexes name each other too deeply", next_step="pull it by digest")
            for child in wanted.chosen(platforms):
                cached = await self.manifest(str(child), wanted, depth=depth - 1) and cached
            return cached
        return await self._blobs(parts) and cached

    async def _blobs(self, parts: Sequence[Descriptor]) -> bool:
        fresh = [part for part in parts if part.digest not in self._seen]
        self._seen.update(part.digest for part in fresh)
        here: list[bool] = []
        for part in fresh:
            await self._tell(self._blob_event(part, 0, "waiting"))
        try:
            async with asyncio.TaskGroup() as group:
                for part in fresh:
                    group.create_task(self._blob(part, here))
        except BaseExceptionGroup as failed:
            # One cause is enough to know: the others ended by it or for the same reason.
            raise _first(failed) from failed
        return all(here)

    async def _blob(self, part: Descriptor, here: list[bool]) -> None:
        async with self._pulling.blobs:
            target = f"/v2/{self._name.repository}/blobs/{part.digest}"
            answer = await self._pulling.ask(self._site, target, "*/*")
            if answer.status != 200:
                await _dropped(answer)
                raise self._pulling.refusal(self._site, self._name, answer.status)
            if answer.cache is Cache.HIT:
                await _dropped(answer)
                here.append(True)
                await self._tell(self._blob_event(part, part.size_bytes, "cached"))
                return
            here.append(False)
            await self._follow(part, answer)
            if answer.cache is Cache.BYPASS:
                raise PullFailed(f"{part.digest} came, but could not be cached", next_step="tidegate doctor")
            await self._tell(self._blob_event(part, part.size_bytes, "done"))

    async def _follow(self, part: Descriptor, answer: Answer) -> None:
        clock = asyncio.get_running_loop().time
        came, told_at = 0, clock()
        async for piece in _pieces(answer):
            came += len(piece)
            if clock() - told_at >= _TOLD_EVERY_S:
                told_at = clock()
                await self._tell(self._blob_event(part, came, "fetching"))

    def _blob_event(self, part: Descriptor, came: int, state: str) -> PullEvent:
        return PullEvent(
            event="blob",
            ref=str(self._name),
            digest=str(part.digest),
            bytes=came,
            size_bytes=part.size_bytes,
            state=state,  # type: ignore[arg-type] # one of the literals, all of them written in this module
        )


async def _pieces(answer: Answer) -> AsyncIterator[bytes | memoryview]:
    if isinstance(answer.body, bytes):
        yield answer.body
        return
    async for piece in answer.body:
        yield piece


async def _whole(answer: Answer) -> bytes:
    return b"".join([bytes(piece) async for piece in _pieces(answer)])


async def _dropped(answer: Answer) -> None:
    if isinstance(answer.body, AsyncGenerator):
        with suppress(BodyBroken):
            await answer.body.aclose()


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
