"""What both daemons keep on and learn from the machine that they run on."""

from pathlib import Path

import structlog

from tidegate_proxy.http.crash_journal import MEMORY_S, CrashJournal


def machine_id() -> str:
    """machine-id(5); empty where there is none."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


def open_journal(journal: CrashJournal) -> None:
    """With a word about the requests that it says to keep away from."""
    log = structlog.get_logger()
    try:
        journal.open()
    except OSError as error:
        log.warning("requests in flight are not written down", cause=str(error))
    for request in journal.bypassed:
        log.warning("passed through: the daemon died twice of it", request=request, for_s=MEMORY_S)
