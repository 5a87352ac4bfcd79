"""What aiohttp would do by itself and may not: its time-outs, its cookies, its decoding."""

from aiohttp import DummyCookieJar

from tidegate_proxy.upstreams.direct import NameResolver
from tidegate_proxy.upstreams.exchange import Exchange


async def test_no_transfer_ends_for_having_taken_long() -> None:
    """C12: aiohttp's own default ends a body after 300 s; here only silence does."""
    exchange = Exchange(resolver=NameResolver(_nowhere), exempt=lambda _: None)
    sessions = (exchange._reading, exchange._writing)

    for session in sessions:
        assert session.timeout.total is None
        assert session.timeout.sock_read is not None
        assert session.timeout.connect is None
        assert not session.auto_decompress
        assert isinstance(session.cookie_jar, DummyCookieJar)
    await exchange.close()


async def _nowhere(_host: str) -> list[str]:
    return []
