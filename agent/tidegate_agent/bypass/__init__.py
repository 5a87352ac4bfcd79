"""The bypass detector: registry connections that did not go through the cache, by cause (N10)."""

from tidegate_agent.bypass.cause import CAUSES, Cause, why_bypassed
from tidegate_agent.bypass.packet import Segment, parse_segment
from tidegate_agent.bypass.watch import Bypass, BypassWatch

__all__ = ["CAUSES", "Bypass", "BypassWatch", "Cause", "Segment", "parse_segment", "why_bypassed"]
