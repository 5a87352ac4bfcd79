"""Logging: one line per event, for people on a terminal and as JSON elsewhere.

`configure` is called once by each program; modules then use `structlog.get_logger()`. The functional cores
never log. Fields whose names say that they hold a credential are masked here as the last line of defence;
the first one is not to log them. The standard library's loggers (aiohttp, asyncio) end in the same stream.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import WrappedLogger

MASKED = "[not logged]"
SECRET_NAMES = ("authorization", "cookie", "password", "secret", "token", "credential", "private_key")

# Without local variables, which hold tokens and bodies. The pretty formatter is plain for the same reason.
_TRACEBACKS = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))


def configure(stream: TextIO | None = None, *, level: int = logging.INFO, pretty: bool | None = None) -> None:
    """Sends all logging to `stream` (standard error), pretty where that is a terminal or `pretty` says so."""
    out = sys.stderr if stream is None else stream
    renderer: structlog.typing.Processor
    if out.isatty() if pretty is None else pretty:
        renderer = structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        shown: list[structlog.typing.Processor] = [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        ]
    else:
        renderer = structlog.processors.JSONRenderer()
        shown = [structlog.processors.TimeStamper(fmt="iso"), _TRACEBACKS]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        mask_secrets,
        *shown,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))  # libraries are only heard when something is wrong


def mask_secrets(
    _logger: WrappedLogger,
    _method: str,
    event: MutableMapping[str, Any],  # Any: structlog's own type of an event
) -> MutableMapping[str, Any]:
    """Replaces every value whose field name contains one of SECRET_NAMES, also inside mappings."""
    for name, value in event.items():
        if any(secret in name.lower().replace("-", "_") for secret in SECRET_NAMES):
            event[name] = MASKED
        elif isinstance(value, dict):
            event[name] = mask_secrets(_logger, _method, dict(value))
    return event
