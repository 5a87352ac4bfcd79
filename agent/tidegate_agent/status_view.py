"""The agent's state for people: what it does now, what it saved, and what to do where something is off."""

from collections.abc import Iterable
from datetime import timedelta

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate_agent.pause import NEXT_STEP
from tidegate_agent.status import (
    BypassedStatus,
    CacheStatus,
    CredentialStatus,
    RateLimitStatus,
    Status,
    UpstreamStatus,
)
from tidegate_core.errors import TidegateError

_BYPASSES_SHOWN = 5


def print_status(text: str, console: Console | None = None) -> None:
    """Prints the JSON of `GET /v1/status` as a table; TidegateError when it is of another form."""
    try:
        status = msgspec.json.decode(text.encode(), type=Status)
    except msgspec.DecodeError as error:
        raise TidegateError(
            f"the agent's answer is of another version's form: {error}", next_step="tidegate status --json"
        ) from error
    (console or Console()).print(status_table(status))


def status_table(status: Status) -> Table:
    """One row per part of the agent, in the order in which a pull passes through them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    up = timedelta(seconds=int(status.uptime_s))
    table.add_row("agent", f"version {status.version}, pid {status.pid}, up {up}")
    table.add_row("steering", _steering(status))
    table.add_row("hosts", ", ".join(status.hosts))
    table.add_row("resolvers", _resolvers(status))
    dns = status.dns
    table.add_row("dns", f"{dns.queries} queries, {dns.forwarded} forwarded, {dns.learned} addresses learned")
    if dns.sinkholes:
        table.add_row("sinkholes", ", ".join(dns.sinkholes))
    for found in dns.unsteerable:
        remark = Text(f"{found.what}: {found.why}; {found.next_step}", style="yellow")
        table.add_row("not steered", remark)
    add_requests_and_cache(table, status.cache)
    add_upstreams(table, status.upstreams)
    add_logins(table, status.credentials)
    add_rate_limits(table, status.rate_limits)
    for trust in status.trust:
        table.add_row("trust", _judged(trust.runtime, trust.trusts, trust.action))
    for client in status.clients_spliced:
        table.add_row("spliced", f"{client.exe} (pid {client.pid}): {client.reason}, until {client.until}")
    for bridge in status.forwarded:
        text = f"{bridge.bridge}: {', '.join(bridge.networks) or 'no network'}"
        table.add_row("containers", _judged(text, bridge.steered, f"{bridge.reason}; {bridge.action}"))
    _add_bypassed(table, status.bypassed)
    return table


def add_requests_and_cache(table: Table, cache: CacheStatus) -> None:
    table.add_row("requests", f"{cache.hits} hits, {cache.misses} misses, {cache.stale} stale")
    table.add_row("cache", f"{cache.blobs} blobs, {_bytes(cache.bytes)} of {_bytes(cache.max_bytes)}")
    table.add_row("saved", f"{_bytes(cache.saved_bytes)} not asked of a registry")


def add_upstreams(table: Table, upstreams: Iterable[UpstreamStatus]) -> None:
    for upstream in upstreams:
        table.add_row(
            "upstream", _judged(f"{upstream.kind} {upstream.url}".strip(), upstream.healthy, upstream.reason)
        )


def add_logins(table: Table, logins: Iterable[CredentialStatus]) -> None:
    for login in logins:
        remark = f"{login.reason}; to end that: {login.action}" if login.action else login.reason
        name = f"{login.username} at {login.registry} (share: {login.share})"
        table.add_row("login", _judged(name, not login.reason, remark))


def add_rate_limits(table: Table, limits: Iterable[RateLimitStatus]) -> None:
    for limit in limits:
        name = f"{limit.registry}, {limit.name or 'without a login'}"
        of = f" of {limit.limit}" if limit.limit is not None else ""
        window = f" in {timedelta(seconds=limit.window_s)}" if limit.window_s is not None else ""
        left = "not told" if limit.remaining is None else f"{limit.remaining}{of} left{window}"
        remark = f"not to be asked before {limit.not_before}"
        table.add_row("rate limit", _judged(f"{name}: {left}", limit.not_before is None, remark))


def _add_bypassed(table: Table, bypassed: BypassedStatus) -> None:
    counted = [f"{count} {cause}" for cause, count in sorted(bypassed.causes.items()) if count]
    text = ", ".join(counted) or "nothing noticed"
    table.add_row("bypassed", _judged(text, not bypassed.blind, f"not watched now: {bypassed.blind}"))
    for each in bypassed.recent[:_BYPASSES_SHOWN]:
        who = f"{each.exe or 'unknown'} (pid {each.pid})" if each.pid else each.exe or "unknown"
        where = f"{each.host} at {each.address}" if each.host else each.address
        table.add_row("", f"{each.at} {each.cause}: {who} to {where}")


def _steering(status: Status) -> Text:
    steering = status.steering
    if not steering.active:
        remedy = f"; to end that: {NEXT_STEP}" if steering.paused else ""
        reason = steering.reason or "no reason given"
        return Text(f"off: {reason}{remedy} ({steering.backend})", style="yellow")
    text = f"on ({steering.backend}), {steering.addresses} addresses, lease {steering.lease_s:g} s"
    return Text(text, style="green")


def _resolvers(status: Status) -> Text:
    names = ", ".join(status.dns.resolvers) or "none found"
    return _judged(f"{names} ({status.dns.mode})", status.dns.resolver_reachable, "not answering")


def _judged(text: str, is_well: bool, remark: str) -> Text:
    return Text(text) if is_well else Text(f"{text}: {remark}", style="yellow")


def _bytes(count: int) -> str:
    """Rounded for reading, in binary units."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
