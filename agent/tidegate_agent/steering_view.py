"""What `tidegate pause` and `tidegate resume` read from the command line and print of the agent's answer."""

from datetime import timedelta

import msgspec

from tidegate_agent.pause import LONGEST, NEXT_STEP
from tidegate_agent.status import SteeringStatus
from tidegate_core.errors import TidegateError, UsageError
from tidegate_core.quantity import parse_duration

_SHORTEST = timedelta(seconds=1)


def pause_duration(text: str) -> timedelta:
    """How long to pause; raises UsageError."""
    try:
        duration = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--for: {error}", next_step="tidegate pause --for 10m") from error
    if not _SHORTEST <= duration <= LONGEST:
        raise UsageError(
            f"--for {text} is not between 1s and {LONGEST.days}d",
            next_step="leave --for out for a pause without an end",
        )
    return duration


def paused(answer: str) -> str:
    """The line to print; raises TidegateError when the agent steers all the same."""
    steering = _steering(answer)
    if steering.active:
        raise TidegateError("the agent steers all the same", next_step="tidegate status")
    return f"{steering.reason}: pulls go direct; to end that: {NEXT_STEP}"


def resumed(answer: str) -> str:
    """The line to print; raises TidegateError when the agent does not steer."""
    steering = _steering(answer)
    if not steering.active:
        raise TidegateError(
            f"not paused any more, but not steering: {steering.reason or 'no reason given'}",
            next_step="tidegate status",
        )
    return f"steering again, {steering.addresses} addresses"


def _steering(answer: str) -> SteeringStatus:
    try:
        return msgspec.json.decode(answer, type=SteeringStatus)
    except msgspec.DecodeError as error:
        raise TidegateError(
            f"the agent's answer is of another version's form: {error}", next_step="tidegate status --json"
        ) from error
