"""Why pulls are not cached, and what to type: from the agent's state and a few facts of the machine; pure.

What is in order is not mentioned. Bypasses count for an hour. Nothing here asks, or changes, anything.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from tidegate_agent.firewall_mark import ByMark
from tidegate_agent.pause import NEXT_STEP
from tidegate_agent.status import BypassedConnection, Status
from tidegate_core.errors import TidegateError

_LATELY = timedelta(hours=1)
_NEARLY_FULL = 0.9


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that keeps pulls from the cache, or soon will."""

    cause: str
    next_step: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What `tidegate doctor --json` prints; `ok` when there is no finding."""

    ok: bool
    findings: list[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the agent does not tell: `mark` is how it exempts its own sockets, None where by its user."""

    mark: ByMark | None
    forwarded: bool
    """As configured."""
    policy_marks: tuple[tuple[int, int], ...]
    """(value, mask) of each rule that routes by mark (ip-rule(8))."""
    tracked: int
    trackable: int
    """Connections, now and at most; 0 where they are not tracked."""


def diagnosis(findings: Iterable[Finding]) -> Diagnosis:
    found = list(dict.fromkeys(findings))
    return Diagnosis(ok=not found, findings=found)


def nobody_answers(error: TidegateError) -> Finding:
    """The agent does not run, or does not say a word."""
    return Finding(cause=error.cause, next_step=error.next_step or "tidegate status")


def findings(status: Status, machine: Machine, *, now: datetime) -> Iterator[Finding]:
    """All that is wrong, what matters most first."""
    yield from _steering(status)
    for trust in status.trust[1:]:  # the first is the system's store, of which the probe speaks
        if not trust.trusts:
            cause = (
                f"{trust.runtime} (pid {trust.pid}) does not trust this node's CA: its pulls are not cached"
            )
            yield Finding(cause=cause, next_step=trust.action)
    if not status.dns.resolver_reachable:
        cause = f"no resolver answers: {', '.join(status.dns.resolvers) or 'none is configured'}"
        yield Finding(cause=cause, next_step="resolvectl status; cat /etc/resolv.conf")
    for found in status.dns.unsteerable:
        yield Finding(cause=f"{found.what}: {found.why}", next_step=found.next_step)
    for bridge in status.forwarded:
        if not bridge.steered:
            cause = f"containers behind {bridge.bridge} are not steered: {bridge.reason}"
            yield Finding(cause=cause, next_step=bridge.action)
    for upstream in status.upstreams:
        if not upstream.healthy:
            where = f"{upstream.kind} {upstream.url}".strip()
            yield Finding(
                cause=f"upstream {where}: {upstream.reason}", next_step="see docs/operations/upstreams.md"
            )
    for login in status.credentials:
        if not login.working:
            cause = f"login {login.username} at {login.registry}: {login.reason}"
            yield Finding(cause=cause, next_step=login.action or "see docs/operations/credentials.md")
    yield from _bypasses(status, machine, now)
    yield from _machine(machine)


def _steering(status: Status) -> Iterator[Finding]:
    steering = status.steering
    if steering.backend == "none":
        cause = 'steering.backend is "none": nothing is redirected to the agent'
        yield Finding(cause=cause, next_step='set [steering] backend = "auto" and restart the agent')
        return
    if steering.paused:
        yield Finding(cause=steering.reason, next_step=NEXT_STEP)
    elif not steering.active:
        cause = f"the agent does not steer: {steering.reason or 'it gives no reason'}"
        yield Finding(
            cause=cause, next_step=steering.action or "look at its log: journalctl -u tidegate-agent"
        )
    if status.bypassed.blind:
        cause = f"connections that go past the agent are not noticed: {status.bypassed.blind}"
        yield Finding(cause=cause, next_step="modprobe -a nfnetlink_log nft_log nft_limit; restart the agent")


_PAST = {
    "resolved_elsewhere": (
        "no look-up of this host's resolvers told their address (DNS over TLS or HTTPS, a fixed address)",
        "have the client use the resolvers in /etc/resolv.conf",
    ),
    "not_learned": (
        "their address was learned too late, or is used for longer than its record allows",
        "nothing if it was once; else restart the client, which keeps an old address",
    ),
    "not_redirected": (
        "their address is steered, but something else took them first",
        "look for NAT before ours: nft list ruleset; or for sockets bound to an interface: ss -tnpe",
    ),
    "forwarded": (
        "they came from containers or hosts behind this one",
        "set [steering] forwarded = true and restart the agent, if these are containers of yours",
    ),
    "other_store": (
        "their clients have a trust store of their own",
        "mount this host's /etc/ssl/certs there, or leave them",
    ),
    "relay": ("a relay carries them for others, whose trust is not known", "nothing"),
    "distrusted": (
        "their clients refused this node's certificate",
        "restart them, or have them read the system's trust store",
    ),
    "node_login": (
        "containers do not get what this node's own login opens",
        'nothing, or remove the login, or its share = "node"',
    ),
}
"""What is said of a cause, and what to type; of the others something else here speaks."""


def _bypasses(status: Status, machine: Machine, now: datetime) -> Iterator[Finding]:
    since = now - _LATELY
    lately = [each for each in status.bypassed.recent if datetime.fromisoformat(each.at) >= since]
    for cause, count in Counter(each.cause for each in lately).items():
        if cause not in _PAST:
            continue
        why, next_step = _PAST[cause]
        if cause == "forwarded" and machine.forwarded:
            next_step = "nothing, unless they are containers: see the bridges in tidegate status"
        last = next(each for each in lately if each.cause == cause)
        times = f"{count} registry connection{'s' if count > 1 else ''}"
        yield Finding(
            cause=f"{times} past the cache in the last hour: {why}; the last: {_told(last)}",
            next_step=next_step,
        )


def _told(bypass: BypassedConnection) -> str:
    who = f"{bypass.exe or 'an unknown program'}{f' (pid {bypass.pid})' if bypass.pid else ''}"
    return f"{who} to {bypass.host} at {bypass.address}, {bypass.at}"


def _machine(machine: Machine) -> Iterator[Finding]:
    ours = machine.mark
    for value, mask in machine.policy_marks if ours is not None else ():
        if ours is not None and mask & ours.mask:
            cause = f"a routing rule goes by the mark {value:#x}/{mask:#x}, which overlaps ours, {ours}"
            yield Finding(cause=cause, next_step="set [steering] mark to bits that nobody uses: ip rule")
    if machine.trackable and machine.tracked > _NEARLY_FULL * machine.trackable:
        cause = f"{machine.tracked} of {machine.trackable} connections are tracked: new ones will be dropped"
        more = f"sysctl -w net.netfilter.nf_conntrack_max={2 * machine.trackable}"
        yield Finding(cause=cause, next_step=more)


def text_of(found: Diagnosis) -> Sequence[str]:
    """The lines to print."""
    if found.ok:
        return ["nothing is wrong: registry pulls of this host are steered and cached"]
    return [line for each in found.findings for line in (each.cause, f"  {each.next_step}")]
