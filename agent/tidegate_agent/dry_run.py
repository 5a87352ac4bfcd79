"""What `tidegate agent` would do to this machine, as text; nothing is done."""

from tidegate_agent.backend import shown
from tidegate_agent.config import AgentConfig
from tidegate_agent.resolvers import system_resolvers


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
    return "\n".join([*lines, shown(config)])
