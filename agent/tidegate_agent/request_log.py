"""One structured line per request, without anybody's credentials (FEATURES O4)."""

import structlog

from tidegate_proxy.http_server import Served


class RequestLog:
    """Writes what was served; a path is logged without its query, which may hold a signature or a state."""

    def __init__(self) -> None:
        self._log = structlog.get_logger()

    def served(self, served: Served) -> None:
        """A warning when something went wrong on our side, even if the client did not notice."""
        write = self._log.info if served.cause is None else self._log.warning
        cause = {} if served.cause is None else {"cause": str(served.cause) or repr(served.cause)}
        write(
            "served",
            registry=served.site.registry,
            method=served.method,
            path=served.path,
            status=served.status,
            cache=served.cache.value,
            bytes=served.sent_bytes,
            ms=round(served.seconds * 1000, 1),
            **cause,
        )
