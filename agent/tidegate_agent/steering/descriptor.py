"""Descriptors above all others: what the kernel closes first when this process dies.

A process that dies closes its descriptors from the highest to the lowest (measured, not promised). Of several
that are moved up, the first is the highest.
"""

import contextlib
import fcntl
import os
import resource

_HIGHEST = 16383  # the kernel's table of descriptors is as long as the highest needs it: 128 KiB
_TRIED = 16


def moved_up(descriptor: int) -> int:
    """The same open file under the highest descriptor that is free; the one given is closed."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    highest = _HIGHEST if limit == resource.RLIM_INFINITY else min(_HIGHEST, limit - 1)
    for wanted in range(highest, highest - _TRIED, -1):
        with contextlib.suppress(OSError):  # EMFILE: taken, and no room above
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, wanted)
            if moved == wanted:
                os.close(descriptor)
                return moved
            os.close(moved)
    return descriptor
