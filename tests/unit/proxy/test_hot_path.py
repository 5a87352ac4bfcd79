"""Connections that idle are closed by a sweep."""

import asyncio
from pathlib import Path

from tidegate_proxy.http.addressing import BySite
from tidegate_proxy.http.at_hand import AtHand
from tidegate_proxy.http.crash_journal import CrashJournal
from tidegate_proxy.http.hot_path import HotConnection, HotConnections
from tidegate_proxy.http.served import Tally
from tidegate_proxy.registry.hot_manifests import ReadyAnswer
from tidegate_proxy.site import Site


class Empty:
    def at_hand(self, site: Site, method: str, target: str) -> ReadyAnswer | None:
        return None


async def test_a_connection_that_idles_is_closed_and_one_that_was_handed_over_is_not() -> None:
    """I8: nobody holds a connection for ever; what was handed over is the full server's to close."""
    connections = HotConnections(idle_s=0.05, swept_every_s=0.02)
    at_hand = AtHand(service=Empty(), journal=CrashJournal(Path("/nonexistent")), tally=Tally([]))

    def protocol() -> HotConnection:
        return HotConnection(
            addressing=BySite(Site(registry="quay.io", host="quay.io")),
            at_hand=at_hand,
            full=lambda _ends: asyncio.StreamReaderProtocol(
                asyncio.StreamReader(), lambda _reader, _writer: None
            ),
            connections=connections,
        )

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    async with asyncio.timeout(5):
        handed_over, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: quay.io\r\n\r\n")
        for _ in range(3):
            idle, _ = await asyncio.open_connection(*address)
            assert await idle.read() == b""

    assert not handed_over.at_eof()
    writer.close()
    server.close()
