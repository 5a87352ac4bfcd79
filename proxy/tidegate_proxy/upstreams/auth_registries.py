"""docker-registry-proxy's AUTH_REGISTRIES: `host:user:password`, separated by spaces, delimiters as given.

A host is a registry's (`quay.io`) or its token service's (`auth.docker.io`); whose, `Credentials` finds out.
What follows the second delimiter is the password, whatever is in it. No error repeats an entry, because any
part of one may be the password when a delimiter is wrong. Pure.
"""

from dataclasses import dataclass, field

from tidegate_core.errors import UsageError
from tidegate_proxy.upstreams.credentials import Login, Share
from tidegate_proxy.upstreams.secret import GivenSecret, Secret

VARIABLE = "AUTH_REGISTRIES"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthRegistry:
    """One entry; equal entries have the same host and user."""

    host: str
    username: str
    password: Secret = field(repr=False, compare=False)

    def login(self, share: Share = Share.NODE) -> Login:
        """The login it stands for; docker-registry-proxy lets every client use it."""
        secret = GivenSecret(self.password, name=VARIABLE)
        return Login(host=self.host, username=self.username, secret=secret, share=share)


def parse_auth_registries(
    text: str, entries_delimiter: str = " ", delimiter: str = ":"
) -> tuple[AuthRegistry, ...]:
    """The entries in order; empty ones are skipped. UsageError says which entry is wrong, by its number."""
    if not entries_delimiter or not delimiter or entries_delimiter == delimiter:
        raise UsageError(
            "the two delimiters of AUTH_REGISTRIES must not be empty, and must differ",
            next_step="set AUTH_REGISTRIES_DELIMITER and AUTH_REGISTRY_DELIMITER",
        )
    entries = [entry.strip() for entry in text.strip().split(entries_delimiter)]
    read: dict[str, AuthRegistry] = {}
    for number, entry in enumerate((entry for entry in entries if entry), start=1):
        parts = entry.split(delimiter, 2)
        if len(parts) < 3 or not all(parts):
            raise _wrong(number, "is not host, user and password", entries_delimiter, delimiter)
        host, username, password = parts[0].lower().rstrip("."), parts[1], parts[2]
        if (
            username.startswith("//")
            or not host.isascii()
            or not all(c.isalnum() or c in ".-:_" for c in host)
        ):
            raise _wrong(number, "does not begin with a host name", entries_delimiter, delimiter)
        if ":" in username:
            raise _wrong(
                number, "has a colon in its user, which Basic cannot carry", entries_delimiter, delimiter
            )
        if host in read:
            raise _wrong(number, "is for the same host as an earlier one", entries_delimiter, delimiter)
        read[host] = AuthRegistry(host=host, username=username, password=Secret(password))
    return tuple(read.values())


def _wrong(number: int, what: str, entries_delimiter: str, delimiter: str) -> UsageError:
    return UsageError(
        f"AUTH_REGISTRIES: entry {number} {what}",
        next_step=f"write host{delimiter}user{delimiter}password, with {entries_delimiter!r} between entries",
    )
