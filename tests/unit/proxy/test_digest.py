"""Digests: the image specification's grammar, and no other spelling."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_proxy.oci.digest import Digest, InvalidDigest, UnverifiableDigest

# As the image specification writes it, apart from how the module under test does.
GRAMMAR = r"[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+"
HEX = "0123456789abcdef"

verifiable = st.one_of(
    st.text(HEX, min_size=64, max_size=64).map("sha256:{}".format),
    st.text(HEX, min_size=128, max_size=128).map("sha512:{}".format),
)


@given(verifiable)
def test_str_and_parse_of_a_digest_are_inverse(text: str) -> None:
    """C2: one digest has one spelling."""
    digest = Digest.parse(text)

    assert str(digest) == text
    assert Digest.parse(str(digest)) == digest


@given(st.binary())
def test_a_digest_of_bytes_is_their_sha256(data: bytes) -> None:
    """C3: what verifies content is the standard library's hash."""
    digest = Digest.of(data)

    assert str(digest) == "sha256:" + hashlib.sha256(data).hexdigest()
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_hasher_of_a_digest_is_of_its_algorithm(algorithm: str) -> None:
    """C3: content named by sha512 is verified by sha512."""
    digest = Digest.parse(f"{algorithm}:{hashlib.new(algorithm, b'tide').hexdigest()}")
    hasher = digest.hasher()
    hasher.update(b"ti")
    hasher.update(b"de")

    assert hasher.hexdigest() == digest.encoded


@given(st.one_of(st.text(), st.from_regex(GRAMMAR, fullmatch=True), st.from_regex(r"sha(256|512):\w*")))
def test_any_text_is_a_digest_or_refused_as_the_grammar_says(text: str) -> None:
    """C3: parse raises nothing but its own error, and calls unverifiable only what is well-formed."""
    try:
        digest = Digest.parse(text)
    except UnverifiableDigest:
        assert re.fullmatch(GRAMMAR, text, re.ASCII)
        assert not text.startswith(("sha256:", "sha512:"))
    except InvalidDigest:
        assert (
            not re.fullmatch(GRAMMAR, text, re.ASCII)
            or text.startswith(("sha256:", "sha512:"))
            or len(text) > 255
        )
    else:
        assert str(digest) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 63 + "\n",
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "a" * 63 + "\0",
        "sha256:" + "٣" * 64,
        "sha256:../../../../etc/passwd",
        "SHA256:" + "a" * 64,
        " sha256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "sha256:" + "a" * 1_000_000,
        "sha384:" + "a" * 300,
        "+sha384:" + "a" * 96,
    ],
)
def test_a_malformed_digest_is_invalid_and_not_merely_unknown(text: str) -> None:
    """C3: a wrong length, another case, a path, or a text without end names nothing."""
    with pytest.raises(InvalidDigest) as refusal:
        Digest.parse(text)

    assert not isinstance(refusal.value, UnverifiableDigest)


@pytest.mark.parametrize(
    "text", ["sha384:" + "a" * 96, "blake3:abc", "multihash+base58:QmRZxt2b1FVZPNqd8hsiyki"]
)
def test_a_well_formed_digest_of_another_algorithm_is_unverifiable(text: str) -> None:
    """C3, I1: it can be passed through, but nothing can be stored under it."""
    with pytest.raises(UnverifiableDigest):
        Digest.parse(text)
