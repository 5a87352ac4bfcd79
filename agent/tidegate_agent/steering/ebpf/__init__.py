"""Steering by eBPF programs at connect(2) (DESIGN 4, N14)."""

from tidegate_agent.steering.ebpf.steering import EbpfSteering

__all__ = ["EbpfSteering"]
