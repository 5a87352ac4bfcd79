"""What stands before squid on a tier's port: `GET /ca.crt` is answered, all else is passed on as it is.

python -m lab.tier_front FOLDER, where FOLDER/ca.crt is the certificate; an empty one is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from .tier import PORT, SQUID_PORT

ASKED = b"GET /ca.crt "
_PIECE = 1 << 18


async def main(folder: Path) -> None:
    certificate = (folder / "ca.crt").read_bytes()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            first = await reader.readexactly(len(ASKED))
            if first == ASKED:
                status = "200 OK" if certificate else "404 Not Found"
                head = f"HTTP/1.1 {status}\r\nContent-Length: {len(certificate)}\r\nConnection: close\r\n\r\n"
                await reader.readuntil(b"\r\n\r\n")
                writer.write(head.encode() + certificate)
                await writer.drain()
                return
            squid_reader, squid_writer = await asyncio.open_connection("127.0.0.1", SQUID_PORT)
            with contextlib.closing(squid_writer):
                squid_writer.write(first)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pass(reader, squid_writer))
                    both.create_task(_pass(squid_reader, writer))

    server = await asyncio.start_server(serve, "0.0.0.0", PORT)
    await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
