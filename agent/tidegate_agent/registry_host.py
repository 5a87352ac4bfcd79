"""A host name of a registry as a configuration gives it: `ghcr.io`, `*.pkg.dev` or `registry.local:5000`.

Names follow RFC 1123 section 2.1 (letters, digits and hyphens), in lower case and without a final dot; names
beyond ASCII must be given in their A-label form (RFC 5890). A wildcard is a whole first label and stands for
exactly one. An IP address is not a name: nothing resolves it, so nothing could steer it.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

HOST_FORM = 'a host name such as "ghcr.io", "*.pkg.dev" or "registry.local:5000"'

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """`pattern` is a name or `*.name`; `port` is None where the protocol's own port is meant."""

    pattern: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError, saying what is wrong, for anything that is no host of a registry."""
        if _is_address(text):
            raise ValueError(f"{text!r} is an IP address: only names can be steered")
        name, colon, port = text.partition(":")
        if colon and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"{text!r} has no port number between 1 and 65535 after its colon")
        pattern = name.lower().removesuffix(".")
        labels = pattern.removeprefix("*.").split(".")
        if "*" in pattern.removeprefix("*."):
            raise ValueError(f"{text!r}: a wildcard can only be the whole first label, as in *.pkg.dev")
        if _is_address(name) or labels[-1].isdecimal():
            raise ValueError(f"{text!r} is an IP address: only names can be steered")
        if not all(_LABEL.fullmatch(label) for label in labels) or len(pattern) > 253:
            raise ValueError(f"{text!r} is not a host name")
        if pattern.startswith("*.") and len(labels) < 2:
            raise ValueError(f"{text!r} would vouch for a whole top-level domain")
        return cls(pattern, int(port) if colon else None)

    @property
    def is_wildcard(self) -> bool:
        return self.pattern.startswith("*.")

    def __str__(self) -> str:
        return self.pattern if self.port is None else f"{self.pattern}:{self.port}"


def _is_address(text: str) -> bool:
    try:
        ip_address(text.removeprefix("[").partition("]")[0])
    except ValueError:
        return False
    return True
