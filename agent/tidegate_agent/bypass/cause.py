"""Why a connection to a registry went past the cache; pure."""

from enum import StrEnum

from tidegate_agent.clients import Reason


class Cause(StrEnum):
    """Of a connection that no rule redirected: a metric label, and what `status` says."""

    PAUSED = "paused"
    NOT_STEERING = "not_steering"
    RESOLVED_ELSEWHERE = "resolved_elsewhere"
    NOT_LEARNED = "not_learned"
    NOT_REDIRECTED = "not_redirected"
    FORWARDED = "forwarded"


CAUSES = (*(cause.value for cause in Cause), *(reason.value for reason in Reason))
"""The second are those of connections that were redirected, and left alone all the same."""

_HELLO_WITHIN_S = 10.0


def why_bypassed(
    *, paused: bool, steering: bool, known: bool, steered_for_s: float | None, forwarded: bool
) -> Cause:
    """The first thing that would have to change for such a connection to be redirected.

    `known`: an answer that the agent saw has named this address for a registry. `steered_for_s`: since when
    the address is steered, None where it is not. `forwarded`: another host's, and those are not steered.
    A connection is noticed by its first words: what is steered only since then came too late for it.
    """
    if paused:
        return Cause.PAUSED
    if not steering:
        return Cause.NOT_STEERING
    if forwarded:
        return Cause.FORWARDED
    if not known:
        return Cause.RESOLVED_ELSEWHERE
    if steered_for_s is None or steered_for_s < _HELLO_WITHIN_S:
        return Cause.NOT_LEARNED
    return Cause.NOT_REDIRECTED
