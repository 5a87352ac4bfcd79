"""Asking a running daemon, or telling it: one HTTP request over its unix socket."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tidegate_core.errors import TidegateError, UsageError

TIMEOUT_S = 5.0
RELOAD_TIMEOUT_S = 30.0


def request_status(socket_path: Path, *, role: str = "agent") -> str:
    """The JSON text of `GET /v1/status`; TidegateError when nobody answers, saying what to type."""
    return _request(socket_path, "GET", "/v1/status", role=role)


def request_pause(socket_path: Path, duration: timedelta | None) -> str:
    """The JSON text that `POST /v1/pause` answers; raises as above."""
    order = {} if duration is None else {"for_s": duration.total_seconds()}
    return _request(socket_path, "POST", "/v1/pause", json.dumps(order))


def request_resume(socket_path: Path) -> str:
    """The JSON text that `POST /v1/resume` answers, once a probe has said whether to steer."""
    return _request(socket_path, "POST", "/v1/resume")


def request_reload(socket_path: Path) -> str:
    """The JSON text that `POST /v1/reload` answers; UsageError where the new configuration is refused."""
    return _request(socket_path, "POST", "/v1/reload", timeout_s=RELOAD_TIMEOUT_S)


def _request(
    socket_path: Path,
    method: str,
    path: str,
    body: str | None = None,
    *,
    role: str = "agent",
    timeout_s: float = TIMEOUT_S,
) -> str:
    connection = UnixConnection(socket_path, timeout_s)
    try:
        with explained(socket_path, role=role, timeout_s=timeout_s):
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read().decode()
    finally:
        connection.close()
    if answer.status == http.client.UNPROCESSABLE_ENTITY:
        refusal = json.loads(text)
        raise UsageError(refusal["cause"], next_step=refusal["next_step"])
    if answer.status != http.client.OK:
        raise TidegateError(f"the {role} answered {answer.status} {answer.reason}: {text[:500]}")
    return text


@contextmanager
def explained(socket_path: Path, *, role: str = "agent", timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """What goes wrong with the socket becomes a TidegateError that says what to type."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise TidegateError(
            f"no {role} is running: nothing listens on {socket_path}",
            next_step=f"start one with: tidegate {role}",
        ) from error
    except PermissionError as error:
        raise TidegateError(
            f"{socket_path} may not be opened by this user", next_step="run this command as root, with sudo"
        ) from error
    except TimeoutError as error:
        raise TidegateError(
            f"the {role} on {socket_path} did not answer within {timeout_s:g} s",
            next_step="one that hangs is restarted; try again",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise TidegateError(f"the {role} on {socket_path} could not be asked: {error}") from error


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))
