"""The rows of the matrix: what goes wrong at the registry, its blob host or its token service.

Places in a body are shares of the large layer, so that small layers do. What takes long by its nature has a
short form for CI and its full one for the slow ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lab import Fault

Client = Literal["skopeo", "podman", "ctr", "cri", "dockerd"]
CLIENTS: tuple[Client, ...] = ("skopeo", "podman", "ctr", "cri", "dockerd")
LAYERS = (3_000_000, 20_000)  # one of many chunks, one smaller than the tail that is held back

NOT_OURS = "the client asks the token service itself: its name is not steered"
REGISTRYS_WORD = "every request is answered so, and nothing is cached"
BYTES_ARE_OUT = "the wrong byte has left before anybody can know; the body never ends, and is not kept"

Faults = Callable[[str, int], Sequence[Fault]]
"""What the registry does, told the digest of the large layer and its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that goes wrong.

    `hopeless` says why the agent cannot help; empty where every client's pull ends well. Clients in `spared`
    do not meet it: they never ask for that. `turn` is the client that plays it in CI; `takes_long` leaves it
    to the slow ring. A `private` image is pulled by a user who may.
    """

    name: str
    turn: Client
    faults: Faults = field(repr=False)
    hopeless: str = ""
    spared: frozenset[Client] = frozenset()
    registry: Literal["docker.io", "quay.io"] = "docker.io"
    layers: tuple[int, ...] = LAYERS
    takes_long: bool = False
    private: bool = False

    def __str__(self) -> str:
        return self.name


def every(fault: Fault) -> Faults:
    """Of whatever kind of request the fault says."""
    return lambda _layer, _size: [fault]


def of_layer(*faults: Fault, **shares: float) -> Faults:
    """Faults that meet the large layer alone, one after another; `cut_at` and `stall_at` as shares of it."""

    def placed(layer: str, size: int) -> list[Fault]:
        places = {name: int(share * size) for name, share in shares.items()}
        about = layer.removeprefix("sha256:")
        first, *others = (replace(fault, matching=about) for fault in faults)
        return [replace(first, **places), *others]  # type: ignore[arg-type]  # names of places

    return placed


def answered(on: Literal["manifest", "token", "ping"], status: int, **more: object) -> Faults:
    return every(Fault(on=on, status=status, **more))  # type: ignore[arg-type]  # fields of Fault


def layer_answered(on: Literal["blob", "bytes"], status: int, **more: object) -> Faults:
    return of_layer(Fault(on=on, status=status, **more))  # type: ignore[arg-type]  # fields of Fault


def body(*, cut_at: float = 0.5, **effects: object) -> Faults:
    """The large layer's body ends early, once."""
    return of_layer(Fault(on="bytes", **effects), cut_at=cut_at)  # type: ignore[arg-type]  # fields of Fault


NO_PING: frozenset[Client] = frozenset({"ctr", "cri"})
"""They begin with the manifest, which the agent answers without a login, so they never want a token."""
LATER = {"Retry-After": "1"}
CHALLENGE = {
    "WWW-Authenticate": 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/any:pull",error="invalid_token"'
}
WHOLE = Fault(on="bytes", ignore_range=True, times=None)
STALLED = Fault(on="bytes", stall_s=2)
GZIPPED = Fault(on="bytes", gzip=True, times=None)


def rows() -> list[Row]:
    return [*answers(), *bodies(), *framings()]


def private_rows() -> list[Row]:
    """What happens to images that need a login: another way through the agent (not in the table)."""
    get = "^GET"
    faults: dict[str, tuple[Client, Faults]] = {
        "503 once, manifest GET": ("podman", answered("manifest", 503, matching=get)),
        "429 once, manifest": ("ctr", answered("manifest", 429, headers=LATER)),
        "503 once, blob": ("dockerd", layer_answered("blob", 503)),
        "403 once, CDN": ("skopeo", layer_answered("bytes", 403)),
        "reset at 50 %": ("podman", body(cut="reset")),
        "gzip on the way": ("skopeo", of_layer(GZIPPED)),
    }
    return [
        Row(name=f"{name}, private", turn=turn, faults=fault, private=True)
        for name, (turn, fault) in faults.items()
    ]


def answers() -> list[Row]:
    """What is answered instead."""
    get = "^GET"
    return [
        Row(name="429 once, manifest", turn="ctr", faults=answered("manifest", 429, headers=LATER)),
        Row(
            name="429 once, manifest GET",
            turn="podman",
            faults=answered("manifest", 429, headers=LATER, matching=get),
        ),
        Row(
            name="429 always, manifest",
            turn="dockerd",
            faults=answered("manifest", 429, headers=LATER, times=None),
            hopeless=REGISTRYS_WORD,
        ),
        Row(name="429 once, blob", turn="dockerd", faults=layer_answered("blob", 429, headers=LATER)),
        Row(
            name="429 always, blob",
            turn="ctr",
            faults=layer_answered("blob", 429, headers=LATER, times=None),
            hopeless=REGISTRYS_WORD,
        ),
        Row(name="503 once, manifest", turn="ctr", faults=answered("manifest", 503)),
        Row(name="503 once, manifest GET", turn="dockerd", faults=answered("manifest", 503, matching=get)),
        Row(name="500 once, manifest GET", turn="cri", faults=answered("manifest", 500, matching=get)),
        Row(name="503 once, blob", turn="skopeo", faults=layer_answered("blob", 503)),
        Row(name="500 once, blob", turn="ctr", faults=layer_answered("blob", 500)),
        Row(name="503 once, CDN", turn="podman", faults=layer_answered("bytes", 503)),
        Row(
            name="503 always, CDN",
            turn="cri",
            faults=layer_answered("bytes", 503, times=None),
            hopeless=REGISTRYS_WORD,
        ),
        Row(name="403 once, CDN", turn="cri", faults=layer_answered("bytes", 403)),
        Row(name="401 once, blob", turn="skopeo", faults=layer_answered("blob", 401, headers=CHALLENGE)),
        Row(
            name="404, blob",
            turn="podman",
            faults=layer_answered("blob", 404, times=None),
            hopeless=REGISTRYS_WORD,
        ),
        Row(
            name="503 once, token",
            turn="skopeo",
            faults=answered("token", 503),
            hopeless=NOT_OURS,
            spared=NO_PING,
        ),
        Row(
            name="429 once, token",
            turn="podman",
            faults=answered("token", 429, headers=LATER),
            hopeless=NOT_OURS,
            spared=NO_PING,
        ),
        Row(
            name="503 once, token at the registry's own name",
            turn="podman",
            faults=answered("token", 503),
            registry="quay.io",
            spared=NO_PING,
        ),
        Row(name="503 once, ping", turn="dockerd", faults=answered("ping", 503), spared=NO_PING),
        Row(
            name="hung up without an answer, CDN",
            turn="podman",
            faults=of_layer(Fault(on="bytes", hang_up=True)),
        ),
    ]


def bodies() -> list[Row]:
    """What happens to the large layer's bytes."""
    return [
        Row(name="cut at 50 %, Content-Length", turn="podman", faults=body()),
        Row(name="cut at 50 %, chunked", turn="skopeo", faults=body(chunked=True)),
        Row(
            name="cut at every third",
            turn="dockerd",
            faults=of_layer(Fault(on="bytes", times=None), cut_at=1 / 3),
        ),
        Row(
            name="cut, then Range is ignored",
            turn="dockerd",
            faults=of_layer(Fault(on="bytes"), WHOLE, cut_at=0.5),
        ),
        Row(name="cut, then refused for 0.5 s", turn="ctr", faults=body(refuse_s=0.5)),
        Row(name="reset at 1 %", turn="skopeo", faults=body(cut_at=0.01, cut="reset")),
        Row(name="reset at 50 %", turn="cri", faults=body(cut="reset")),
        Row(name="reset at 99.9 %", turn="podman", faults=body(cut_at=0.999, cut="reset")),
        Row(
            name="cut without close_notify, no length",
            turn="ctr",
            faults=body(cut="unannounced", chunked=True),
        ),
        Row(
            name="stall, then cut",
            turn="skopeo",
            faults=of_layer(STALLED, cut_at=0.5, stall_at=0.5),
        ),
        Row(
            name="stall of 40 s, then cut",
            turn="podman",
            faults=of_layer(replace(STALLED, stall_s=40), cut_at=0.5, stall_at=0.5),
            takes_long=True,
        ),
        Row(
            name="a corrupt byte",
            turn="skopeo",
            faults=of_layer(Fault(on="bytes", corrupt="middle", times=None)),
            hopeless=BYTES_ARE_OUT,
        ),
        Row(
            name="a corrupt byte, once, in a small layer",
            turn="ctr",
            faults=of_layer(Fault(on="bytes", corrupt="middle")),
            layers=(20_000,),
        ),
        Row(name="first byte after 2 s", turn="cri", faults=of_layer(Fault(on="bytes", delay_s=2))),
        Row(name="manifest after 3 s", turn="skopeo", faults=every(Fault(on="manifest", delay_s=3))),
        Row(
            name="first byte after 35 s",
            turn="ctr",
            faults=of_layer(Fault(on="bytes", delay_s=35)),
            takes_long=True,
        ),
        Row(
            name="manifest after 35 s",
            turn="podman",
            faults=every(Fault(on="manifest", delay_s=35)),
            takes_long=True,
        ),
        Row(
            name="10 KB/s",
            turn="skopeo",
            faults=of_layer(Fault(on="bytes", bytes_per_s=10_000)),
            layers=(20_000,),
        ),
    ]


def framings() -> list[Row]:
    """What is said of the large layer's bytes."""
    return [
        Row(name="chunked", turn="dockerd", faults=of_layer(Fault(on="bytes", chunked=True, times=None))),
        Row(
            name="Content-Length 7 too long",
            turn="podman",
            faults=of_layer(Fault(on="bytes", content_length_off_by=7)),
        ),
        Row(
            name="Content-Length 7 too short",
            turn="cri",
            faults=of_layer(Fault(on="bytes", content_length_off_by=-7)),
        ),
        Row(name="gzip on the way, layer", turn="skopeo", faults=of_layer(GZIPPED)),
        Row(
            name="gzip on the way, layer cut",
            turn="podman",
            faults=of_layer(replace(GZIPPED, times=1), cut_at=0.5),
        ),
        Row(
            name="gzip on the way, manifest",
            turn="ctr",
            faults=every(Fault(on="manifest", gzip=True, times=None)),
        ),
    ]
