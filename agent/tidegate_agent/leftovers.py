"""What a service manager runs after the agent has ended: `python -m tidegate_agent.leftovers`.

Tables that processes own go with them, however those end; what other back ends leave is taken out here. What
else can be left when the supervisor was killed is its agent, which then drains for up to 30 s and ends by
itself, or is stopped or hung and never will, and the lock and the socket in the runtime directory. A
successor would be refused until that agent has ended, so this waits for it, and kills it when it is late. A
process that lingers for connections of others holds no lock, and is left alone.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tidegate_agent.config import AgentConfig, load_config
from tidegate_agent.steering import remains
from tidegate_core.errors import TidegateError

_WAIT_S = 35.0
_POLL_S = 0.1


def clean_up(runtime_dir: Path, *, within_s: float = _WAIT_S) -> list[str]:
    """Wait for an agent without its supervisor, remove what both left; says what it did. Idempotent."""
    lock = runtime_dir / "agent.lock"
    done = []
    deadline = time.monotonic() + within_s
    while orphans := _orphans(lock):
        if time.monotonic() > deadline:
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            done.append(f"killed what had lost its supervisor and did not end: {orphans}")
            deadline += within_s  # a killed process takes a moment
        time.sleep(_POLL_S)
    if lock.exists() and not any(_holders(lock)):
        for path in (lock, runtime_dir / "agent.sock"):
            path.unlink(missing_ok=True)
        done.append("removed the lock of an agent that was killed")
    return done


def _orphans(lock: Path) -> list[int]:
    """Who holds the lock, unless the supervisor, which wrote its number there, is one of them."""
    holders = list(_holders(lock))
    try:
        supervisor = int(lock.read_text())
    except (OSError, ValueError):
        return []
    return [] if supervisor in holders else holders


def _holders(lock: Path) -> Iterator[int]:
    """The processes of this user that have the very file open."""
    try:
        file = lock.stat()
    except OSError:
        return
    for entry in Path("/proc").iterdir():
        # Gone, or another user's: nothing of ours either way.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.geteuid():
                for descriptor in (entry / "fd").iterdir():
                    if os.path.samestat(descriptor.stat(), file):
                        yield int(entry.name)
                        break


def main() -> None:
    """For ExecStopPost=: never fails, because the end of the agent is what counts."""
    try:
        config: AgentConfig = load_config(environment=os.environ)
        for line in (*clean_up(config.runtime_dir), *remains.clean_up()):
            sys.stderr.write(f"tidegate: {line}\n")
    except (TidegateError, OSError) as error:
        sys.stderr.write(f"tidegate: nothing was cleaned up: {error}\n")


if __name__ == "__main__":
    main()
