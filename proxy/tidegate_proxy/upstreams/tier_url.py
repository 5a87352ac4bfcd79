"""Where a tier listens, as the configuration writes it: `http://[user:password@]host:port[/path]`.

The login is kept apart: no text made of the value has it, so that it reaches no log, status or metric.
"""

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class TierUrl:
    """`str()` gives the URL without the login, which `parse` would read back without one."""

    scheme: str
    host: str
    port: int
    path: str = ""
    login: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> "TierUrl":
        """Raises ValueError, with a reason that does not repeat the text."""
        parts = urlsplit(text)
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError("it must begin with http:// or https://")
        if not parts.hostname or parts.query or parts.fragment:
            raise ValueError("it must name a host, and have no query")
        login = None
        if parts.username is not None:
            login = (unquote(parts.username), unquote(parts.password or ""))
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=parts.port or DEFAULT_PORTS[parts.scheme],
            path=parts.path.rstrip("/"),
            login=login,
        )

    @property
    def origin(self) -> str:
        """`scheme://host:port`, the port always there."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def name(self) -> str:
        """Fit for a file."""
        return f"{self.host.replace(':', '_')}-{self.port}"

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"
