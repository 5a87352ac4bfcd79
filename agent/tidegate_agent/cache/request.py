"""Asking a running agent to operate its cache: HTTP over its unix socket, streamed where it may be large."""

import http.client
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from tidegate_agent.admin_request import UnixConnection, explained
from tidegate_core.errors import TidegateError, UsageError
from tidegate_proxy.operating.forms import Imported, PullEvent

TIMEOUT_S = 600.0
"""A purge reads many manifests, and a slow registry sends nothing for minutes."""
_PIECE = 1 << 20
_LONGEST_LINE = 1 << 16

T = TypeVar("T")
Query = Mapping[str, str | list[str]]


def get(socket_path: Path, path: str, query: Query, form: type[T]) -> T:
    """The answer to a GET, decoded; TidegateError when nobody answers, or as the agent tells it."""
    with _answer(socket_path, "GET", _target(path, query)) as answer:
        return _decoded(answer.read(), form)


def post(socket_path: Path, path: str, order: msgspec.Struct, form: type[T]) -> T:
    """The same of a POST."""
    with _answer(socket_path, "POST", path, msgspec.json.encode(order)) as answer:
        return _decoded(answer.read(), form)


def pull_events(socket_path: Path, order: msgspec.Struct) -> Iterator[PullEvent]:
    """What a pull tells, as it happens; raises TidegateError when the agent ends in between."""
    with _answer(socket_path, "POST", "/v1/cache/pull", msgspec.json.encode(order)) as answer:
        while line := answer.readline(_LONGEST_LINE):
            yield _decoded(line, PullEvent)


@contextmanager
def export(socket_path: Path, query: Query) -> Iterator[http.client.HTTPResponse]:
    """The answer whose body is the archive."""
    with _answer(socket_path, "GET", _target("/v1/cache/export", query)) as answer:
        yield answer


def send_archive(socket_path: Path, query: Query, pieces: Iterable[bytes]) -> Imported:
    """Import an archive as its pieces come."""
    connection = UnixConnection(socket_path, TIMEOUT_S)
    try:
        with explained(socket_path, timeout_s=TIMEOUT_S):
            connection.putrequest("POST", _target("/v1/cache/import", query))
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            _send(connection, pieces)
            answer = connection.getresponse()
            text = answer.read()
        _raise_for(answer.status, text)
        return _decoded(text, Imported)
    finally:
        connection.close()


def _send(connection: UnixConnection, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        try:
            connection.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it was refused already: the answer says why
    try:
        connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return


@contextmanager
def _answer(
    socket_path: Path, method: str, target: str, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    connection = UnixConnection(socket_path, TIMEOUT_S)
    try:
        with explained(socket_path, timeout_s=TIMEOUT_S):
            connection.request(method, target, body)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                _raise_for(answer.status, answer.read())
            yield answer
    finally:
        connection.close()


def _raise_for(status: int, text: bytes) -> None:
    if status == http.client.OK:
        return
    try:
        refusal = json.loads(text)
        cause, next_step = str(refusal["cause"]), str(refusal["next_step"])
    except (ValueError, KeyError, TypeError):
        if status == http.client.NOT_FOUND:
            raise TidegateError(
                "the running agent is of an older version, which cannot do this",
                next_step="restart it: systemctl restart tidegate-agent",
            ) from None
        raise TidegateError(f"the agent answered {status}: {text[:500].decode(errors='replace')}") from None
    raise (UsageError if status == http.client.BAD_REQUEST else TidegateError)(cause, next_step=next_step)


def _decoded(text: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=form)
    except msgspec.DecodeError as error:
        raise TidegateError(
            f"the agent's answer is of another version's form: {error}",
            next_step="restart the agent, so that it is of this version",
        ) from error


def _target(path: str, query: Query) -> str:
    return f"{path}?{urlencode(query, doseq=True)}" if query else path
