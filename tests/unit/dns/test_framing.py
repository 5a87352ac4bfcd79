"""Messages in a TCP stream."""

import asyncio

import pytest

from tidegate_dns.framing import framed, read_message

MESSAGES = [b"", b"\0", b"a message", bytes(65535)]
STREAM = b"".join(map(framed, MESSAGES[:3]))
ENDS = [0, 2, 5]
"""Where each of the first three begins."""


async def read(stream: bytes) -> list[bytes]:
    """All messages of a stream that ends."""
    reader = asyncio.StreamReader()
    reader.feed_data(stream)
    reader.feed_eof()
    messages = []
    while (message := await read_message(reader)) is not None:
        messages.append(message)
    return messages


async def test_messages_of_every_length_are_read() -> None:
    """N13, RFC 1035 section 4.2.2."""
    assert await read(b"".join(map(framed, MESSAGES))) == MESSAGES


async def test_an_end_between_messages_is_one_and_within_a_message_is_not() -> None:
    """N13: half a message must not pass for the end of a connection."""
    for cut in range(len(STREAM)):
        if cut in ENDS:
            assert await read(STREAM[:cut]) == MESSAGES[: ENDS.index(cut)]
        else:
            with pytest.raises(EOFError):
                await read(STREAM[:cut])
