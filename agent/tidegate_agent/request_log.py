"""One structured line per request, without anybody's credentials (FEATURES O4).

Requests come by the ten thousand a second and in batches, so on a machine-read log the lines are encoded
here, in the shape that structlog gives all others, and what is alike in a batch is encoded once.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import structlog

from tidegate_proxy.http.served import Moment, Served

Fields = dict[str, str | int | float]


class RequestLog:
    """Writes what was served; a path is logged without its query, which may hold a signature or a state."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._pretty = structlog.get_logger() if self._stream.isatty() else None
        self._encoder = msgspec.json.Encoder()

    def served(self, moments: Sequence[Moment]) -> None:
        """A warning when something went wrong on our side, even if the client did not notice.

        A log that cannot be written is no reason to fail anything.
        """
        if self._pretty is not None:
            for served, _, seconds in moments:
                getattr(self._pretty, _level(served))(
                    "served", **_before(served), ms=_ms(seconds), **_cause(served)
                )
            return
        try:
            self._stream.buffer.write(b"".join(self._lines(moments)))
            self._stream.buffer.flush()
        except OSError:
            return

    def _lines(self, moments: Sequence[Moment]) -> list[bytes]:
        lines = []
        around: dict[Served, tuple[bytes, bytes]] = {}
        second, second_of = b"", -1
        for served, ended, seconds in moments:
            if served not in around:
                around[served] = self._around(served)
            before, after = around[served]
            whole, fraction = divmod(int(ended * 1e6), 1_000_000)
            if whole != second_of:
                second_of = whole
                second = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
            lines.append(b'%b%a%b%b.%06dZ"}\n' % (before, _ms(seconds), after, second, fraction))
        return lines

    def _around(self, served: Served) -> tuple[bytes, bytes]:
        """What a line has before its `ms`, and from there to its timestamp."""
        before = self._encoder.encode(_before(served))
        after = self._encoder.encode(_cause(served) | {"event": "served", "level": _level(served)})
        return before[:-1] + b',"ms":', b"," + after[1:-1] + b',"timestamp":"'


def _level(served: Served) -> str:
    return "info" if served.cause is None else "warning"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _before(served: Served) -> Fields:
    return {
        "registry": served.site.registry,
        "method": served.method,
        "path": _encodable(served.path),
        "status": served.status,
        "cache": served.cache.value,
        "bytes": served.sent_bytes,
    }


def _cause(served: Served) -> Fields:
    return {} if served.cause is None else {"cause": _encodable(str(served.cause) or repr(served.cause))}


def _encodable(text: str) -> str:
    """Bytes of a client that are no UTF-8 come as surrogates, and must not cost the lines of others."""
    return text.encode("utf-8", "backslashreplace").decode()
