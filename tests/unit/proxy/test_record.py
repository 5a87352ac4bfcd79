"""A partial blob's record: what it says is read back, and what cannot be read is not there."""

import pytest

from tidegate_proxy.storage.record import Claim, Record, extent_line, head_line, prefix_line

HASH = "ab" * 32
WHOLE = head_line(1000) + prefix_line(100, HASH) + extent_line(500, 700, HASH) + prefix_line(200, HASH)


def test_a_record_says_what_was_noted() -> None:
    """C13: prefixes in the order in which they grew, and extents."""
    record = Record.parse(WHOLE)

    assert record == Record(
        size_bytes=1000,
        prefixes=(Claim(0, 100, HASH), Claim(0, 200, HASH)),
        extents=(Claim(500, 700, HASH),),
    )
    assert record.prefix_end == 200


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_torn_record_claims_no_more_than_was_noted(cut: int) -> None:
    """C13: wherever the machine stopped writing it."""
    whole, torn = Record.parse(WHOLE), Record.parse(WHOLE[:cut])

    assert whole is not None
    if torn is not None:
        assert torn.size_bytes == whole.size_bytes
        assert torn.prefixes == whole.prefixes[: len(torn.prefixes)]
        assert torn.extents == whole.extents[: len(torn.extents)]


@pytest.mark.parametrize(
    "line",
    [
        "prefix 1001 " + HASH,
        "extent 5 5 " + HASH,
        "extent 7 3 " + HASH,
        "prefix 10 xyz",
        "\0" * 40,
        "extent 1",
    ],
)
def test_what_follows_nonsense_is_not_believed(line: str) -> None:
    """C13: a page of zeros, or a claim about bytes that the blob cannot have."""
    record = Record.parse(head_line(1000) + prefix_line(100, HASH) + line + "\n" + prefix_line(200, HASH))

    assert record == Record(size_bytes=1000, prefixes=(Claim(0, 100, HASH),))


@pytest.mark.parametrize(
    "text", ["", "tidegate-partial 1 10", "tidegate-partial 2 10\n", "prefix 1 " + HASH + "\n"]
)
def test_a_record_without_a_head_is_none(text: str) -> None:
    assert Record.parse(text) is None
