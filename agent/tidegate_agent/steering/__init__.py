"""Steering: how the host's registry connections and DNS queries reach the agent (DESIGN 4).

What a name stands for is imported when it is first used: the supervisor needs the keeper and what dead agents
leave, and none of the back ends, which would cost it 25 MiB.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate_agent.steering.backend import NoSteering, Steering, SteeringFailed
    from tidegate_agent.steering.choice import Backend, built, chosen
    from tidegate_agent.steering.ebpf import EbpfSteering
    from tidegate_agent.steering.exemption import DEFAULT_MARK, ByMark, ByUid, Exemption
    from tidegate_agent.steering.iptables.steering import IptablesSteering
    from tidegate_agent.steering.keeper import Keeper
    from tidegate_agent.steering.nft import NftSteering

_MODULES = {
    "DEFAULT_MARK": "exemption",
    "Backend": "choice",
    "ByMark": "exemption",
    "ByUid": "exemption",
    "EbpfSteering": "ebpf",
    "Exemption": "exemption",
    "IptablesSteering": "iptables.steering",
    "Keeper": "keeper",
    "NftSteering": "nft",
    "NoSteering": "backend",
    "Steering": "backend",
    "SteeringFailed": "backend",
    "built": "choice",
    "chosen": "choice",
}

__all__ = [
    "DEFAULT_MARK",
    "Backend",
    "ByMark",
    "ByUid",
    "EbpfSteering",
    "Exemption",
    "IptablesSteering",
    "Keeper",
    "NftSteering",
    "NoSteering",
    "Steering",
    "SteeringFailed",
    "built",
    "chosen",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
