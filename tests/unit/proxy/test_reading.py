"""How a stored file is read: on the loop when the bytes are in memory."""

import os
from concurrent.futures import ThreadPoolExecutor

from tidegate_proxy.byte_range import Extent
from tidegate_proxy.reading import PIECE_BYTES, OpenFile, stream_file


async def test_a_file_on_a_memory_file_system_is_read_without_a_thread():
    """C4: tmpfs knows no RWF_NOWAIT, but there is nothing to wait for either."""
    content = os.urandom(2 * PIECE_BYTES + 7)
    file = OpenFile(os.memfd_create("blob"))
    os.write(file.fd, content)
    no_threads = ThreadPoolExecutor()
    no_threads.shutdown()  # whatever is handed to it raises RuntimeError

    pieces = [bytes(piece) async for piece in stream_file(file, Extent(1, len(content) - 1), no_threads)]

    assert b"".join(pieces) == content[1:]
