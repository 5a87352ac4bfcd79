"""Logging: JSON lines away from a terminal, and no secret in either form."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from tidegate_core import log


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Logging is the process's own state: put back what pytest had."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def lines(out: io.StringIO) -> list[dict[str, object]]:
    """The events of a JSON log."""
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_away_from_a_terminal_every_event_is_one_json_line() -> None:
    """STYLE 20: one line per event, stable keys."""
    out = io.StringIO()
    log.configure(out)

    structlog.get_logger().info("served", digest="sha256:aa", cache="hit", ms=3)

    (event,) = lines(out)
    assert (
        event.items()
        >= {"event": "served", "level": "info", "digest": "sha256:aa", "cache": "hit", "ms": 3}.items()
    )
    assert str(event["timestamp"]).endswith("Z")


def test_on_a_terminal_an_event_is_a_readable_line() -> None:
    """DESIGN, issue 2: pretty on a terminal, JSON otherwise."""
    out = io.StringIO()
    log.configure(out, pretty=True)

    structlog.get_logger().info("served", cache="hit")

    assert "served" in out.getvalue()
    assert "cache=" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_warnings_of_libraries_end_in_the_same_stream() -> None:
    """One place to look; what libraries say below a warning is not heard."""
    out = io.StringIO()
    log.configure(out)

    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("aiohttp.server").warning("trouble with %s", "a socket")

    assert [event["event"] for event in lines(out)] == ["trouble with a socket"]


@pytest.mark.parametrize("pretty", [True, False])
def test_fields_that_hold_a_credential_are_masked(pretty: bool) -> None:
    """STYLE 20: never a credential, token or key, whatever a caller passes."""
    out = io.StringIO()
    log.configure(out, pretty=pretty)

    structlog.get_logger().info(
        "asked", Authorization="s3cret", headers={"Set-Cookie": "s3cret", "Host": "ghcr.io"}
    )
    structlog.get_logger().info("asked", hub_password="s3cret", access_token="s3cret")

    assert "s3cret" not in out.getvalue()
    assert "ghcr.io" in out.getvalue()


@pytest.mark.parametrize("pretty", [True, False])
def test_a_traceback_shows_no_local_variables(pretty: bool) -> None:
    """STYLE 20: the locals of a frame hold tokens and bodies."""
    out = io.StringIO()
    log.configure(out, pretty=pretty)

    def fails(bearer: str) -> None:
        raise LookupError(f"no entry of {len(bearer)} characters")

    try:
        fails("s3cret-" + "x" * 3)
    except LookupError:
        structlog.get_logger().exception("failed")

    assert "s3cret-xxx" not in out.getvalue()
    assert "no entry of 10 characters" in out.getvalue()
