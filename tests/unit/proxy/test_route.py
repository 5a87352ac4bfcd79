"""Which upstreams a request may go to, in which order, and which of several equal ones has it."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.upstreams.rendezvous import ranked
from tidegate_proxy.upstreams.route import Errand, errand, route

DIGEST = f"sha256:{'ab' * 32}"


@dataclass(frozen=True)
class Place:
    kind: str
    url: str = ""


DIRECT = Place("direct")
PROXY, PROXY2 = Place("connect", "http://proxy:3128"), Place("connect", "http://proxy2:3128")
CENTRAL, CENTRAL2 = Place("central", "https://central"), Place("central", "https://central2")


@pytest.mark.parametrize(
    ("method", "target", "proven", "expected"),
    [
        ("GET", f"/v2/library/a/blobs/{DIGEST}", True, (Errand.CONTENT, DIGEST)),
        ("HEAD", f"/v2/library/a/manifests/{DIGEST}", True, (Errand.CONTENT, DIGEST)),
        ("HEAD", "/v2/library/a/manifests/1", True, (Errand.CONTENT, "/v2/library/a/manifests/1")),
        ("HEAD", "/v2/library/a/manifests/1", False, (Errand.JUDGED, "/v2/library/a/manifests/1")),
        ("GET", "/v2/library/a/tags/list?n=9", False, (Errand.JUDGED, "/v2/library/a/tags/list")),
        ("GET", "/v2/", False, (Errand.PING, "/v2/")),
        ("GET", "/token?scope=repository%3Aa%3Apull", False, (Errand.OTHER, "/token")),
        ("PUT", "/v2/library/a/manifests/1", False, (Errand.OTHER, "/v2/library/a/manifests/1")),
        ("POST", "/v2/library/a/blobs/uploads/", False, (Errand.OTHER, "/v2/library/a/blobs/uploads/")),
        ("DELETE", f"/v2/library/a/blobs/{DIGEST}", False, (Errand.OTHER, f"/v2/library/a/blobs/{DIGEST}")),
    ],
)
def test_what_a_request_is_for_is_read_from_its_line(
    method: str, target: str, proven: bool, expected: tuple[Errand, str]
) -> None:
    """T2, T6: a digest is the same blob under every repository, so it alone is the key."""
    assert errand(method, target, proven=proven) == expected


@pytest.mark.parametrize(
    ("upstreams", "what", "expected"),
    [
        ([CENTRAL, PROXY, DIRECT], Errand.CONTENT, [CENTRAL, PROXY, DIRECT]),
        ([DIRECT, PROXY], Errand.CONTENT, [DIRECT, PROXY]),
        ([CENTRAL, PROXY, DIRECT], Errand.JUDGED, [DIRECT, CENTRAL]),
        ([CENTRAL, PROXY], Errand.JUDGED, [CENTRAL, PROXY]),
        ([CENTRAL, PROXY, DIRECT], Errand.PRIVATE, [CENTRAL, DIRECT]),
        ([PROXY, DIRECT, CENTRAL], Errand.PRIVATE, [DIRECT, CENTRAL]),
        ([CENTRAL, PROXY], Errand.PRIVATE, [CENTRAL, PROXY]),
        ([CENTRAL, PROXY, DIRECT], Errand.OTHER, [DIRECT]),
        ([CENTRAL, PROXY, DIRECT], Errand.PING, [DIRECT]),
        ([CENTRAL, PROXY], Errand.OTHER, [PROXY]),
        ([CENTRAL, PROXY], Errand.PING, [PROXY]),
        ([CENTRAL], Errand.OTHER, []),
    ],
)
def test_a_request_goes_where_it_may_in_the_order_configured(
    upstreams: list[Place], what: Errand, expected: list[Place]
) -> None:
    """T2, T6, I6: only what may be read by whoever asks goes to a cache that ignores credentials."""
    assert route(upstreams, what, "key") == expected


def test_those_of_a_kind_are_ranked_anew_for_each_digest() -> None:
    """T6: kinds keep their order, whichever of a kind comes first."""
    upstreams = [CENTRAL, PROXY, CENTRAL2, PROXY2, DIRECT]
    firsts = Counter()
    for at in range(64):
        found = route(upstreams, Errand.CONTENT, f"sha256:{at}")
        assert [each.kind for each in found] == ["central", "central", "connect", "connect", "direct"]
        firsts[found[0]] += 1

    assert set(firsts) == {CENTRAL, CENTRAL2}


NAMES = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=8, unique=True)


@given(names=NAMES, key=st.text(max_size=80), data=st.data())
def test_without_one_tier_only_its_own_share_moves(names: list[str], key: str, data: st.DataObject) -> None:
    """T6: the ranking of the others stays, so their caches stay warm; the order listed does not matter."""
    gone = data.draw(st.sampled_from(names))
    shuffled = data.draw(st.permutations(names))

    before = ranked(key, names)
    after = ranked(key, [name for name in shuffled if name != gone])
    assert after == [name for name in before if name != gone]


def test_equal_tiers_get_equal_shares() -> None:
    """T6: within a tenth, of 3000 digests over three."""
    names = ["https://a:5443", "https://b:5443", "https://c:5443"]
    homes = Counter(ranked(f"sha256:{at:064x}", names)[0] for at in range(3000))

    assert all(900 < homes[name] < 1100 for name in names)
