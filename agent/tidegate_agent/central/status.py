"""The central tier's state as `tidegate status --json` prints it, and for people."""

from datetime import timedelta

import msgspec
from rich.console import Console
from rich.table import Table

from tidegate_agent.status import CacheStatus, CredentialStatus, RateLimitStatus, UpstreamStatus
from tidegate_agent.status_view import add_logins, add_rate_limits, add_requests_and_cache, add_upstreams
from tidegate_core.errors import TidegateError


class DoorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two doors: where it listens, and how many connections it has now."""

    listen: list[str]
    connections: int


class CentralStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`names` are those that the mirror's own certificate is for; empty where one is given."""

    role: str = "central"
    version: str
    pid: int
    uptime_s: float
    hosts: list[str]
    mirror: DoorStatus
    names: list[str]
    mutual_tls: bool
    connect: DoorStatus
    others: str
    allow: list[str]
    pushes: bool
    cache: CacheStatus
    upstreams: list[UpstreamStatus]
    credentials: list[CredentialStatus]
    rate_limits: list[RateLimitStatus] = []


def print_status(text: str, console: Console | None = None) -> None:
    """Prints the JSON of `GET /v1/status` as a table; TidegateError when it is of another form."""
    try:
        status = msgspec.json.decode(text.encode(), type=CentralStatus)
    except msgspec.DecodeError as error:
        raise TidegateError(
            f"the answer is of another version's form: {error}", next_step="tidegate status --json"
        ) from error
    (console or Console()).print(status_table(status))


def status_table(status: CentralStatus) -> Table:
    """One row per part."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    up = timedelta(seconds=int(status.uptime_s))
    table.add_row("central", f"version {status.version}, pid {status.pid}, up {up}")
    certificate = f"as {', '.join(status.names)}" if status.names else "with the certificate given"
    client = ", client certificates demanded" if status.mutual_tls else ""
    table.add_row("mirror", f"{_door(status.mirror)}, {certificate}{client}")
    table.add_row("connect", f"{_door(status.connect)}, other hosts: {status.others}")
    table.add_row("allowed", ", ".join(status.allow))
    table.add_row("pushes", "pass through" if status.pushes else "refused")
    table.add_row("hosts", ", ".join(status.hosts))
    add_requests_and_cache(table, status.cache)
    add_upstreams(table, status.upstreams)
    add_logins(table, status.credentials)
    add_rate_limits(table, status.rate_limits)
    return table


def _door(door: DoorStatus) -> str:
    return f"{' '.join(door.listen)}, {door.connections} connections"
