"""What `tidegate agent` would do to this machine, as text; nothing is done."""

import os

from tidegate_agent.config import AgentConfig
from tidegate_agent.own_traffic import exemption
from tidegate_agent.resolvers import system_resolvers
from tidegate_agent.steering import EbpfSteering, NftSteering


def describe(config: AgentConfig) -> str:
    """The steered names, the resolvers they are learned from, and the rules in nft syntax."""
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
    if config.steering.backend == "none":
        return "\n".join([*lines, "no rules: steering.backend is none", ""])
    backend = EbpfSteering if config.steering.backend == "ebpf" else NftSteering
    steering = backend(
        port=config.steering.port,
        lease_s=config.steering.lease.total_seconds(),
        exemption=exemption(config.steering.mark, uid=os.geteuid()),
    )
    return "\n".join([*lines, steering.dry_run()])
