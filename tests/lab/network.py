"""The wires between lab hosts: one switch host that bridges the LAN and routes to the "internet" segment.

    node, resolver, ... --- bridge lan0 (10.77.0.1/24, 2001:db8:77::1/64)
                                 switch, which routes
    internet -------------- wan0 (203.0.113.1/24, 2001:db8:cd::1/64)

Every host has IPv4 and IPv6 addresses and a default route through the switch. IPv6 addresses skip duplicate
address detection (RFC 4862 5.4), or they would be unusable for the first second. The prefixes are those for
documentation (RFC 5737, RFC 3849): nobody's, and global unicast to the kernel and to resolvers (RFC 6724).

All of it is done through short-lived netlink sockets; call from a thread without a running event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from pyroute2 import IPRoute, NetlinkError

from .host import Host

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address

LAN_GATEWAYS: tuple[Interface, ...] = (IPv4Interface("10.77.0.1/24"), IPv6Interface("2001:db8:77::1/64"))
WAN_GATEWAYS: tuple[Interface, ...] = (IPv4Interface("203.0.113.1/24"), IPv6Interface("2001:db8:cd::1/64"))
BRIDGE = "lan0"
BRIDGE_MAC = "52:54:00:54:47:f0"
UPLINK = "eth0"  # the one interface a host has
IFA_F_NODAD = 0x02


def on_the_lan(number: int) -> tuple[Interface, ...]:
    """The addresses of the LAN host with this number (2 to 254)."""
    return IPv4Interface(f"10.77.0.{number}/24"), IPv6Interface(f"2001:db8:77::{number}/64")


def on_the_internet(number: int) -> tuple[Interface, ...]:
    return IPv4Interface(f"203.0.113.{number}/24"), IPv6Interface(f"2001:db8:cd::{number}/64")


class Network:
    """The switch and what is plugged into it."""

    def __init__(self, switch: Host):
        self._switch = switch
        self._ports: dict[str, str] = {}  # host name -> the switch's end of its cable
        self._gateways: dict[str, tuple[Interface, ...]] = {}
        # Set from inside: /proc/sys/net is that of whoever opens it, from here the machine's own.
        # A port that is unplugged keeps its IPv6 addresses, as it keeps its IPv4 ones anyway.
        ipv6 = "/proc/sys/net/ipv6/conf/all"
        route = f"echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > {ipv6}/forwarding"
        switch.run(["sh", "-ec", f"{route}; echo 1 > {ipv6}/keep_addr_on_down"]).or_raise()
        with _netlink(switch) as wire:
            _up(wire, "lo")
            # With an address of its own: else it has one of its ports', and when that one is unplugged every
            # host knows the gateway by an address that is gone, for half a minute.
            wire.link(
                "add", ifname=BRIDGE, kind="bridge", address=BRIDGE_MAC, br_forward_delay=0, br_stp_state=0
            )
            _address(wire, BRIDGE, LAN_GATEWAYS)
            _up(wire, BRIDGE)

    def plug_into_lan(self, host: Host, interfaces: Sequence[Interface]) -> None:
        """Join a host to the bridge, with these addresses and the switch as default router."""
        with _netlink(self._switch) as wire:
            self._add_cable(wire, host, host.name)
            wire.link("set", index=_index(wire, host.name), master=_index(wire, BRIDGE), state="up")
        self._set_up(host, interfaces, LAN_GATEWAYS)

    def plug_into_wan(self, host: Host, interfaces: Sequence[Interface]) -> None:
        """Put a host on the far side of the router; one host can hold many addresses there."""
        with _netlink(self._switch) as wire:
            self._add_cable(wire, host, "wan0")
            _address(wire, "wan0", WAN_GATEWAYS)
            _up(wire, "wan0")
        self._set_up(host, interfaces, WAN_GATEWAYS)

    def plug_machine_into_lan(self, name: str) -> None:
        """A tap interface of this name on the bridge, for a virtual machine that runs on the switch."""
        with _netlink(self._switch) as wire:
            wire.link("add", ifname=name, kind="tuntap", mode="tap")
            wire.link("set", index=_index(wire, name), master=_index(wire, BRIDGE), state="up")
        self._ports[name] = name

    def plug_machine_into_wan(self, name: str) -> None:
        """The same on the far side of the router."""
        with _netlink(self._switch) as wire:
            wire.link("add", ifname=name, kind="tuntap", mode="tap")
            _address(wire, name, WAN_GATEWAYS)
            _up(wire, name)
        self._ports[name] = name

    def _add_cable(self, wire: IPRoute, host: Host, port: str) -> None:
        for leftover in wire.link_lookup(ifname=port):
            # Of a node that has ended: the kernel takes its time over a namespace with sockets in it.
            with contextlib.suppress(NetlinkError):
                wire.link("del", index=leftover)
        peer = {"ifname": UPLINK, "net_ns_pid": host.init_pid}
        wire.link("add", ifname=port, kind="veth", peer=peer)
        self._ports[host.name] = port

    def _set_up(self, host: Host, interfaces: Sequence[Interface], gateways: Sequence[Interface]) -> None:
        with _netlink(host) as wire:
            _up(wire, "lo")
            _address(wire, UPLINK, interfaces)
            _up(wire, UPLINK)
            _default_routes(wire, gateways)
        host.interfaces = tuple(interfaces)
        self._gateways[host.name] = tuple(gateways)

    def unplug(self, host: Host) -> None:
        """Take the host's cable out: its interface loses its carrier, packets to it find nobody."""
        self._set_port(host, "down")

    def plug_back(self, host: Host) -> None:
        """Undo `unplug`, and wait for the carrier."""
        self._set_port(host, "up")
        self.restore_default_route(host)

    def remove_default_route(self, host: Host) -> None:
        with _netlink(host) as wire:
            for gateway in self._gateways[host.name]:
                wire.route("del", dst="default", gateway=str(gateway.ip))

    def restore_default_route(self, host: Host) -> None:
        with _netlink(host) as wire:
            _default_routes(wire, self._gateways[host.name])

    def _set_port(self, host: Host, state: str) -> None:
        with _netlink(self._switch) as wire:
            wire.link("set", index=_index(wire, self._ports[host.name]), state=state)


def _netlink(host: Host) -> IPRoute:
    return IPRoute(netns=f"/proc/{host.init_pid}/ns/net")


def _index(wire: IPRoute, ifname: str) -> int:
    (index,) = wire.link_lookup(ifname=ifname)
    return int(index)


def _up(wire: IPRoute, ifname: str) -> None:
    wire.link("set", index=_index(wire, ifname), state="up")


def _address(wire: IPRoute, ifname: str, interfaces: Sequence[Interface]) -> None:
    index = _index(wire, ifname)
    for interface in interfaces:
        flags = {"flags": IFA_F_NODAD} if interface.version == 6 else {}
        wire.addr(
            "add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags
        )


def _default_routes(wire: IPRoute, gateways: Sequence[Interface]) -> None:
    for gateway in gateways:
        wire.route("replace", dst="default", gateway=str(gateway.ip))
