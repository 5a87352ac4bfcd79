"""Passwords that came in environment variables do not stay there (C17).

environ(7) of a running process can be read by its user, and by every child it starts. The process becomes
itself anew, without the variables; what they held waits in a memory file without a name, which is read once
and closed. What started this process (a container's runtime, a shell) may still have them:
AUTH_REGISTRIES_FILE leaves none.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping

from tidegate_agent.central.config import HANDED_OVER


def become_without(environment: Mapping[str, str], is_secret: Callable[[str], bool]) -> None:
    """Start this very program anew where a secret variable is set; returns where none is."""
    secrets = {name: value for name, value in environment.items() if is_secret(name)}
    if not secrets:
        return
    memory = os.memfd_create("tidegate", 0)  # not closed on exec: that is the point
    os.write(memory, json.dumps(secrets).encode())
    os.lseek(memory, 0, os.SEEK_SET)
    rest = {name: value for name, value in environment.items() if name not in secrets}
    rest[HANDED_OVER] = str(memory)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], rest)


def taken_over(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that were handed over, once; none where there are none."""
    number = environment.get(HANDED_OVER, "")
    if not number.isdecimal():
        return {}
    try:
        with os.fdopen(int(number), "rb") as memory:
            found = json.loads(memory.read())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
