"""Messages in a TCP stream: each behind two octets of length (RFC 1035 section 4.2.2, RFC 7766 section 8)."""

import asyncio


def framed(message: bytes) -> bytes:
    """The message as it is sent over TCP."""
    return len(message).to_bytes(2, "big") + message


async def read_message(reader: asyncio.StreamReader) -> bytes | None:
    """The next message, however it arrives; None at a clean end. Raises EOFError inside a message."""
    try:
        length = await reader.readexactly(2)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    return await reader.readexactly(int.from_bytes(length, "big"))
