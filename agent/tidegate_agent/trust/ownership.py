"""Working in a directory of somebody else's as that user, and not as root (setresuid(2)).

Under systemd the state directory belongs to the agent's user, and the trust store to root. The authority is
made as the former, so that the agent can read its key, and so that root follows no link and reads no file
that the agent's user could not have read: a data plane that was taken over must gain nothing by this.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """Have the directory's owner for effective user and group meanwhile; changes nothing without root.

    For one thread alone. A directory that does not exist yet is root's to make.
    """
    try:
        owner = directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        owner = None
    if owner is None or os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
