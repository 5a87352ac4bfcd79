"""What `tidegate reload` prints of the agent's answer."""

import msgspec

from tidegate_agent.status import ReloadStatus
from tidegate_core.errors import TidegateError


def reloaded(answer: str) -> str:
    """The lines to print; raises TidegateError for an answer of another form."""
    try:
        done = msgspec.json.decode(answer, type=ReloadStatus)
    except msgspec.DecodeError as error:
        raise TidegateError(
            f"the agent's answer is of another version's form: {error}", next_step="tidegate status --json"
        ) from error
    lines = ["reloaded" if done.changed else "reloaded: nothing has changed"]
    lines += [f"  changed  {key}" for key in done.changed]
    lines += [f"  added    {host}" for host in done.added]
    lines += [f"  removed  {host}" for host in done.removed]
    if done.waiting:
        hosts = ", ".join(done.waiting)
        lines.append(f"  waiting  {hosts}: until the trust store holds the reissued certificate")
        lines.append(f"  to do    {done.next_step}")
    return "\n".join(lines)
