"""If-None-Match against a digest (RFC 9110, 13.1.2)."""

import pytest

from tidegate_proxy.oci.condition import entity_tag, is_known
from tidegate_proxy.oci.digest import Digest

DIGEST = Digest.of(b"content")
TAG = entity_tag(DIGEST)


@pytest.mark.parametrize(
    "fields",
    [
        [TAG],
        [f"W/{TAG}"],
        ["*"],
        [f'"other", {TAG}'],
        ['"other"', TAG],
        [f'"with,comma",W/{TAG}'],
        [f"  {TAG}  "],
    ],
)
def test_a_client_that_names_the_digest_has_the_content(fields: list[str]) -> None:
    """C22: in any place of a list, weakly compared, or by a star."""
    assert is_known(fields, DIGEST)


@pytest.mark.parametrize(
    "fields", [[], [""], ['"other"'], [str(DIGEST)], [TAG[:-1]], [f'"x{TAG[1:]}'], ['"*"'], ["*, "]]
)
def test_everything_else_gets_the_content(fields: list[str]) -> None:
    """C22: another digest, one without its quotes, and what is malformed."""
    assert not is_known(fields, DIGEST)
