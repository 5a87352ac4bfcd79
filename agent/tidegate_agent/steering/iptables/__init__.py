"""The iptables back end: rules of table nat that match sets whose elements time out."""

from tidegate_agent.steering.iptables.steering import IptablesSteering

__all__ = ["IptablesSteering"]
