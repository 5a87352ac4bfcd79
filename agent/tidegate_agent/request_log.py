"""One structured line per request, without anybody's credentials (FEATURES O4).

Requests come by the ten thousand a second, so on a machine-read log the lines are encoded here, in the
shape that structlog gives all others, and written together a few times a second.
"""

import asyncio
import sys
from datetime import UTC, datetime
from typing import TextIO

import msgspec
import structlog

from tidegate_proxy.http_server import Served

_FLUSH_S = 0.1
_FLUSH_LINES = 512


class RequestLog:
    """Writes what was served; a path is logged without its query, which may hold a signature or a state."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._pretty = structlog.get_logger() if self._stream.isatty() else None
        self._encoder = msgspec.json.Encoder()
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def served(self, served: Served) -> None:
        """A warning when something went wrong on our side, even if the client did not notice."""
        level = "info" if served.cause is None else "warning"
        fields = {
            "registry": served.site.registry,
            "method": served.method,
            "path": served.path,
            "status": served.status,
            "cache": served.cache.value,
            "bytes": served.sent_bytes,
            "ms": round(served.seconds * 1000, 1),
        }
        if served.cause is not None:
            fields["cause"] = str(served.cause) or repr(served.cause)
        if self._pretty is not None:
            getattr(self._pretty, level)("served", **fields)
            return
        fields["event"], fields["level"] = "served", level
        fields["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._lines.append(self._encoder.encode(fields))
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits; a log that cannot be written is no reason to fail a request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._stream.buffer.write(b"\n".join(lines) + b"\n")
            self._stream.buffer.flush()
        except OSError:
            return
