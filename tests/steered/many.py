"""Resolves many fresh names and connects to each address at once: `many.py RESOLVER COUNT`.

Runs inside a network namespace as a program of its own. Prints who answered: `{"agent": N, "world": N, ...}`;
an agent that names another address than the one connected to is `wrong`, and nobody at all `nobody`.
"""

import asyncio
import json
import socket
import struct
import sys
from collections import Counter

AT_ONCE = 100
TRIES = 5
TRY_S = 2.0


async def resolve(name: str, resolver: str) -> str:
    """The address in the answer's last four octets."""
    loop = asyncio.get_running_loop()
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!6H", hash(name) & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    for _ in range(TRIES):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((resolver, 53))
            await loop.sock_sendall(sock, query)
            try:
                async with asyncio.timeout(TRY_S):
                    return socket.inet_ntoa((await loop.sock_recv(sock, 512))[-4:])
            except (TimeoutError, OSError):
                continue
    return ""


async def answered_by(name: str, resolver: str) -> str:
    loop = asyncio.get_running_loop()
    address = await resolve(name, resolver)
    if not address:
        return "unresolved"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            async with asyncio.timeout(10):
                await loop.sock_connect(sock, (address, 443))
                said = (await loop.sock_recv(sock, 100)).decode().split()
        except (TimeoutError, OSError) as error:
            return type(error).__name__
    if said[:1] == ["agent"] and said[1:] != [f"{address}:443"]:
        return "wrong"
    return said[0] if said else "nobody"


async def main(resolver: str, count: int) -> None:
    names = iter([f"n-{number >> 8}-{number & 0xFF}.many.example" for number in range(count)])
    told: Counter[str] = Counter()

    async def one_after_the_other() -> None:
        for name in names:
            told[await answered_by(name, resolver)] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(one_after_the_other())
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
