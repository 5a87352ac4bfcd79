"""Configured logins between configuration, log and status; central uses the same.

A password that is missing, refused or open to everybody is no reason not to start: pulls go on without that
login (I1), and log and `status` say what to type.
"""

import time
from collections.abc import Iterable

import structlog

from tidegate_agent.config import CredentialConfig
from tidegate_agent.status import CredentialStatus
from tidegate_proxy.upstreams.credentials import Credential, Credentials, Login, Share
from tidegate_proxy.upstreams.secret import PasswordFile


def login_of(entry: CredentialConfig) -> Login:
    """The login of one `[[credential]]`."""
    return Login(
        registry=entry.registry,
        username=entry.username,
        secret=PasswordFile(entry.password_file),
        share=Share(entry.share),
        token_host=entry.token_host or "",
    )


async def open_credentials(logins: Iterable[Login]) -> Credentials:
    """The logins, their passwords read once, so that what is wrong with a file is logged at the start."""
    credentials = Credentials(logins, clock=time.monotonic, say=log_change)
    await credentials.look()
    return credentials


def log_change(credential: Credential) -> None:
    """One line when something is wrong with a login, and one when it is well again."""
    log, complaint = structlog.get_logger(), credential.complaint
    fields = {"registry": credential.name, "login": credential.username}
    if complaint:
        log.warning("configured login", **fields, cause=complaint.cause, next_step=complaint.next_step)
    else:
        log.info("configured login is well", **fields)


def credentials_status(credentials: Credentials) -> list[CredentialStatus]:
    """What `tidegate status` tells of each login."""
    return [
        CredentialStatus(
            registry=credential.name,
            username=credential.username,
            share=credential.share.value,
            working=credential.working,
            reason=credential.complaint.cause,
            action=credential.complaint.next_step,
        )
        for credential in credentials.all
    ]
