"""The zone of steered names: exact host names, and `*.x` for exactly one label below x.

Names compare without regard to case (RFC 4343). A wildcard here is not RFC 4592's: it never matches
two labels and never the parent itself. A pattern may have a sinkhole: an address of this host that is told
for its names without asking a resolver. The zone does not know ports or registries.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address

from tidegate_core.errors import UsageError

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Which names are steered; all names inside are lower case and without the final dot."""

    exact_names: frozenset[str]
    wildcard_parents: frozenset[str]
    sinkholes: Mapping[str, IPv4Address] = field(default_factory=dict, hash=False)
    """Pattern -> the address told for its names; what is not in it is asked of the resolver and learned."""

    @classmethod
    def of(cls, patterns: Iterable[str], sinkholes: Mapping[str, IPv4Address] | None = None) -> "Zone":
        """From host patterns such as `ghcr.io` and `*.gcr.io`; raises UsageError for anything else.

        The patterns of `sinkholes` belong to the zone, too.
        """
        exact: set[str] = set()
        parents: set[str] = set()
        told = {normal(pattern): address for pattern, address in (sinkholes or {}).items()}
        for pattern in (*patterns, *told):
            name = normal(pattern)
            wildcard = name.startswith("*.")
            if wildcard:
                name = name[2:]
            _check(name, pattern)
            (parents if wildcard else exact).add(name)
        return cls(exact_names=frozenset(exact), wildcard_parents=frozenset(parents), sinkholes=told)

    def covers(self, qname: str) -> bool:
        """Whether a look-up of `qname` is one of a registry; any case, with or without the final dot."""
        name = normal(qname)
        if name in self.exact_names:
            return True
        label, dot, parent = name.partition(".")
        return bool(dot and label) and parent in self.wildcard_parents

    def sinkhole(self, qname: str) -> IPv4Address | None:
        """The address to tell for `qname`; None when its resolver is to be asked. Exact names go first."""
        if not self.sinkholes:
            return None
        name = normal(qname)
        if name in self.exact_names:
            return self.sinkholes.get(name)
        return self.sinkholes.get("*." + name.partition(".")[2])


def normal(qname: str) -> str:
    return qname.removesuffix(".").lower()


def is_host_name(name: str) -> bool:
    """Whether a normal name fits RFC 1123 section 2.1 (underscores are taken, too) and RFC 1035's lengths."""
    return len(name) <= 253 and all(_LABEL.match(label) for label in name.split("."))


def _check(name: str, pattern: str) -> None:
    try:
        ip_address(name)
    except ValueError:
        pass
    else:
        raise UsageError(
            f"{pattern!r} is an IP address: it is never looked up, so it cannot be steered",
            next_step="name the registry by its host name",
        )
    if not is_host_name(name):
        raise UsageError(
            f"{pattern!r} is not a host name",
            next_step='write a name such as "ghcr.io", or "*.gcr.io" for exactly one label below gcr.io',
        )
