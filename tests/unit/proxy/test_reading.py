"""How a stored file is read: on the loop when the bytes are in memory."""

import os
from concurrent.futures import ThreadPoolExecutor

from tidegate_proxy.oci.byte_range import Extent
from tidegate_proxy.storage.reading import PIECE_BYTES, OpenFile, stream_file


async def test_a_file_on_a_memory_file_system_is_read_without_a_thread():
    """C4: tmpfs knows no RWF_NOWAIT, but there is nothing to wait for either."""
    file, content = blob(pieces=2)
    no_threads = ThreadPoolExecutor()
    no_threads.shutdown()  # whatever is handed to it raises RuntimeError

    pieces = [bytes(piece) async for piece in stream_file(file, Extent(1, len(content) - 1), no_threads)]

    assert b"".join(pieces) == content[1:]


async def test_a_piece_that_somebody_still_has_is_never_read_over():
    """I2: a slow client's pieces wait in its transport while the file is read on."""
    file, content = blob(pieces=9)

    pieces = [piece async for piece in stream_file(file, Extent(0, len(content) - 1))]

    assert b"".join(pieces) == content


async def test_pieces_that_nobody_has_any_more_share_their_memory():
    """C4: what was sent makes room for what comes next."""
    file, content = blob(pieces=9)

    buffers = {id(piece.obj) async for piece in stream_file(file, Extent(0, len(content) - 1))}

    assert len(buffers) <= 2


def blob(*, pieces: int) -> tuple[OpenFile, bytes]:
    """A file in memory of so many pieces and a bit, and what is in it."""
    content = os.urandom(pieces * PIECE_BYTES + 7)
    file = OpenFile(os.memfd_create("blob"))
    os.write(file.fd, content)
    return file, content
