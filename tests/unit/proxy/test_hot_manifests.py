"""The manifests used last, within a bound."""

from tidegate_proxy.oci.digest import Digest
from tidegate_proxy.registry.answer import Answer
from tidegate_proxy.registry.hot_manifests import LARGEST_BYTES, HotManifests

DIGESTS = [Digest.of(bytes([number])) for number in range(4)]


def test_the_one_used_longest_ago_goes_first() -> None:
    """C4, I8."""
    manifests = HotManifests(limit_bytes=30)
    for digest in DIGESTS[:3]:
        manifests.put(digest, Answer(status=200), b"0123456789")
    manifests.get(DIGESTS[0])
    manifests.put(DIGESTS[3], Answer(status=200), b"0123456789")

    assert [manifests.get(digest) is not None for digest in DIGESTS] == [True, False, True, True]


def test_large_manifests_are_not_held() -> None:
    """I8."""
    manifests = HotManifests()
    manifests.put(DIGESTS[0], Answer(status=200), bytes(LARGEST_BYTES + 1))

    assert manifests.get(DIGESTS[0]) is None


def test_what_comes_back_is_another_edition() -> None:
    """C4: what was remembered of the one before is not taken for this one's."""
    editions = set()
    for _ in range(3):
        manifests = HotManifests()
        manifests.put(DIGESTS[0], Answer(status=200), b"content")
        ready = manifests.get(DIGESTS[0])
        assert ready is not None
        editions.add(ready.edition)

    assert len(editions) == 3
