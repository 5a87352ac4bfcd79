"""The steering back end that the configuration asks for, made of its values; and a word about the choice.

With `auto` it is the best that works here (`steering.choice`), found out when the agent starts: the log names
it, and why those before it were passed over. `--dry-run` tries nothing, and shows the first of the order.
"""

import os

import structlog

from tidegate_agent.config import AgentConfig
from tidegate_agent.own_traffic import exemption
from tidegate_agent.steering import Backend, IptablesSteering, Keeper, built, chosen
from tidegate_agent.steering.choice import Choice, is_tracked, order


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


def choose(config: AgentConfig, keeper: Keeper | None) -> Choice:
    """The configured back end, or the best; not open. Raises StartRefused where `auto` finds none."""
    return chosen(wanted(config), lambda name: backend_of(config, name, keeper))


def tell_of(choice: Choice) -> None:
    """Once it is open: what steers, why not another, and what of this host it cannot steer, in the log."""
    log, steering = structlog.get_logger(), choice.steering
    log.info("steering backend", backend=steering.backend)
    for name, cause in choice.passed_over.items():
        log.info("steering backend passed over", backend=name, cause=cause)
    if isinstance(steering, IptablesSteering):
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
