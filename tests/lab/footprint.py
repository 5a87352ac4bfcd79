"""What a host is made of besides its files: rules, addresses, routes, mounts, processes, ports.

Compare two readings to learn what was left behind in between; each field is text or sorted lines, so that
pytest's difference names the leftover. Files are `Host.changed_files`'s part.
"""

from __future__ import annotations

from dataclasses import dataclass

from .host import Host


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """One reading. `ipset` is empty where the program is missing, as then nobody can have made a set."""

    nft: str
    addresses: str
    rules: str
    routes: str
    ipset: str
    mounts: tuple[str, ...]
    processes: tuple[str, ...]
    ports: tuple[int, ...]

    @classmethod
    def of(cls, host: Host) -> Footprint:
        def told(*argv: str) -> str:
            return host.run(argv).or_raise().stdout

        return cls(
            nft=told("nft", "list", "ruleset"),
            addresses=told("ip", "-brief", "address"),
            rules=told("ip", "rule") + told("ip", "-6", "rule"),
            routes=_routes(told("ip", "route", "show", "table", "all"))
            + _routes(told("ip", "-6", "route", "show", "table", "all")),
            ipset=told("sh", "-c", "command -v ipset >/dev/null && ipset list || true"),
            mounts=tuple(told("cat", "/proc/self/mounts").splitlines()),
            processes=tuple(sorted(host.processes().values())),
            ports=tuple(sorted(host.listening())),
        )


def _routes(listed: str) -> str:
    """Without the link-local ones, which the kernel adds when it has found its address to be free."""
    return "\n".join(line for line in listed.splitlines() if "fe80::" not in line) + "\n"
