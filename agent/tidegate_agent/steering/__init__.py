"""Steering: how the host's registry connections and DNS queries reach the agent (DESIGN 4)."""

from tidegate_agent.steering.backend import NoSteering, Steering, SteeringFailed
from tidegate_agent.steering.choice import Backend, built, chosen
from tidegate_agent.steering.ebpf import EbpfSteering
from tidegate_agent.steering.exemption import DEFAULT_MARK, ByMark, ByUid, Exemption
from tidegate_agent.steering.iptables import IptablesSteering
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.steering.nft import NftSteering

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
