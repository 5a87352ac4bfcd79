"""Which daemon a configuration file, or this machine, is about: the agent or the central tier.

A file tells by the tables that only one of them has; where it has none of these, by its name:
`central.toml` is the central tier's, any other the agent's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tidegate_agent import config as agent
from tidegate_agent.central import config as central
from tidegate_core.settings import read_toml

Role = Literal["agent", "central"]
_OF_AGENT = frozenset({"steering", "dns"})
_OF_CENTRAL = frozenset({"mirror", "connect", "access", "ipv6"})


def role_of(file: Path | None) -> Role:
    """Whose file it is; the agent's where there is none. UsageError for one that cannot be read."""
    if file is None:
        return "agent"
    tables = read_toml(file).keys()
    if tables & _OF_CENTRAL and not tables & _OF_AGENT:
        return "central"
    return "central" if file.stem == "central" and not tables & _OF_AGENT else "agent"


def role_that_runs(file: Path | None, *, environment: Mapping[str, str]) -> Role:
    """Whose state is meant: the file's, or else the agent's, unless only a central tier runs here."""
    if file is not None:
        return role_of(file)
    try:
        if socket_of("agent", None, environment=environment).exists():
            return "agent"
        return "central" if socket_of("central", None, environment=environment).exists() else "agent"
    except OSError:  # a folder that this user may not look into: asking the agent says so
        return "agent"


def load_config_of(
    role: str,
    file: Path | None,
    *,
    environment: Mapping[str, str],
    command_line: Mapping[str, str] | None = None,
) -> agent.AgentConfig | central.CentralConfig:
    """The configuration of that daemon from all its sources; raises UsageError."""
    if role == "central":
        return central.load_config(file, environment=environment, command_line=command_line)
    return agent.load_config(file, environment=environment, command_line=command_line)


def socket_of(role: str, file: Path | None, *, environment: Mapping[str, str]) -> Path:
    """Where that daemon is asked."""
    return load_config_of(role, file, environment=environment).socket_path
