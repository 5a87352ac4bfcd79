"""Many clients that want one blob at once: `herd.py COUNT HOST PATH`.

Runs on a node as a program of its own, over TLS as the node trusts it. Prints how many of them got what: the
status, the digest of the body and X-Tidegate-Cache.
"""

import asyncio
import hashlib
import json
import resource
import ssl
import sys
from collections import Counter

import uvloop


async def read(host: str, path: str, tls: ssl.SSLContext) -> str:
    reader, writer = await asyncio.open_connection(host, 443, ssl=tls, server_hostname=host)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
        hashed, left = hashlib.sha256(), int(fields["content-length"])
        while left:
            piece = await reader.read(min(left, 1 << 18))
            if not piece:
                return "cut"
            hashed.update(piece)
            left -= len(piece)
        return f"{head.split(' ')[1]} {hashed.hexdigest()} {fields['x-tidegate-cache']}"
    finally:
        writer.close()


async def main(count: int, host: str, path: str) -> None:
    told: Counter[str] = Counter()
    tls = ssl.create_default_context()

    async def one() -> None:
        try:
            told[await read(host, path, tls)] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            told[f"{type(error).__name__}: {error}"] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(one())
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
