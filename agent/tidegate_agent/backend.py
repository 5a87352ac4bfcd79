"""The steering back end that the configuration asks for, made of its values; and a word about the choice.

With `auto` it is the best that works here (`steering.choice`), found out when the agent starts: the log names
it, and why those before it were passed over. `--dry-run` tries nothing, and shows the first of the order.
"""

import os

import structlog

from tidegate_agent.config import AgentConfig
from tidegate_agent.own_traffic import exemption
from tidegate_agent.steering import Backend, IptablesSteering, Keeper, Steering, built, chosen
from tidegate_agent.steering.choice import is_tracked, order


def backend_of(config: AgentConfig, name: str, keeper: Keeper | None = None) -> Backend:
    """The back end of this name, with the configured values."""
    return built(
        name,
        port=config.steering.port,
        keeper=keeper,
        lease_s=config.steering.lease.total_seconds(),
        exemption=exemption(config.steering.mark, uid=os.geteuid()),
        forwarded=config.steering.forwarded,
    )


def steering_of(config: AgentConfig, keeper: Keeper | None) -> Steering:
    """The configured back end, or the best; not open. Raises StartRefused where `auto` finds none."""
    choice = chosen(wanted(config), lambda name: backend_of(config, name, keeper))
    log = structlog.get_logger()
    log.info("steering backend", backend=choice.steering.backend, configured=config.steering.backend)
    for name, cause in choice.passed_over.items():
        log.info("steering backend passed over", backend=name, cause=cause)
    return choice.steering


def tell_of(steering: Steering) -> None:
    """After `open`: what of this host the back end cannot steer, in the log."""
    if isinstance(steering, IptablesSteering):
        log = structlog.get_logger()
        log.info("rules are put in by", program=steering.program)
        if steering.without_ipv6:
            log.warning(
                "IPv6 is not steered: its connections and queries go direct",
                cause=steering.without_ipv6,
                next_step="install or load what is missing: apt install iptables; modprobe ip6table_nat",
            )


def shown(config: AgentConfig) -> str:
    """What would go in, as text."""
    name = wanted(config)
    if name == "none":
        return "no rules: steering.backend is none\n"
    if name != "auto":
        return backend_of(config, name).dry_run()
    names = order(connections_are_tracked=is_tracked())
    return f"backend:         auto, the first that works of {', '.join(names)}; this is {names[0]}\n\n" + (
        backend_of(config, names[0]).dry_run()
    )


def wanted(config: AgentConfig) -> str:
    """The configured name; traffic of others is steered by the nft table alone."""
    name = config.steering.backend
    return "nft" if name == "auto" and config.steering.forwarded else name
