"""What `tidegate agent` would do to this machine, as text; nothing is done."""

import os

from tidegate_agent.backend import shown
from tidegate_agent.config import AgentConfig, tls_ports
from tidegate_agent.own_traffic import exemption
from tidegate_agent.resolvers import system_resolvers
from tidegate_agent.steering.listing import render
from tidegate_agent.steering.nflog import FIRST_GROUP
from tidegate_agent.steering.watch import watch_table


def describe(config: AgentConfig) -> str:
    """The steered names, the resolvers they are learned from, and the rules in their own syntax."""
    configured = config.dns.resolvers
    resolvers = system_resolvers().addresses if configured == "system" else configured
    lines = [
        f"steered names:   {', '.join(config.host_patterns)}",
        *([f"sinkholes:       {', '.join(config.sinkholed)}"] if config.sinkholed else []),
        f"resolvers:       {', '.join(map(str, resolvers)) or 'none'}",
        f"agent's port:    {config.steering.port} on 127.0.0.1 and ::1",
        f"state directory: {config.state_dir}",
        "",
    ]
    return "\n".join([*lines, *_watching(config), shown(config)])


def _watching(config: AgentConfig) -> list[str]:
    if config.steering.backend == "none":
        return []
    table = watch_table(
        exemption=exemption(config.steering.mark, uid=os.geteuid()),
        ports=tls_ports(config.registry),
        group=FIRST_GROUP,
    )
    return [render((table,))]
