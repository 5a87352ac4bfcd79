"""Containers behind a node's bridge, as container engines make them: namespaces, a veth, NAT to the outside.

Each is a lab host of its own, with its own trust store: pulls inside it are a node's pulls, but for the way
that their packets take.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from .host import Host
from .network import Address
from .node import Node

SUBNET4, SUBNET6 = "172.30.0", "2001:db8:30:"
NAT = """
table ip engine {
  chain post {
    type nat hook postrouting priority 100
    ip saddr 172.30.0.0/24 oifname != "%(bridge)s" masquerade
  }
}
table ip6 engine {
  chain post {
    type nat hook postrouting priority 100
    ip6 saddr 2001:db8:30::/64 oifname != "%(bridge)s" masquerade
  }
}
"""


class ContainerBridge:
    """A bridge on a node, and the containers behind it."""

    def __init__(self, node: Node, name: str = "docker0"):
        self.node = node
        self.name = name
        self.containers: list[Node] = []
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
        node.run(["sh", "-ec", forward]).or_raise()
        node.run(["ip", "link", "add", name, "type", "bridge", "forward_delay", "0"]).or_raise()
        node.run(["ip", "address", "add", f"{SUBNET4}.1/24", "dev", name]).or_raise()
        node.run(["ip", "address", "add", f"{SUBNET6}:1/64", "dev", name, "nodad"]).or_raise()
        node.run(["ip", "link", "set", name, "up"]).or_raise()
        node.run(["nft", "-f", "-"], stdin=(NAT % {"bridge": name}).encode()).or_raise()

    def add(self, name: str, *, resolvers: Sequence[Address], anchor: bytes) -> Node:
        """One more container, which trusts this anchor; it ends with `close`."""
        container = Node(name)
        self.containers.append(container)
        number = len(self.containers) + 1
        cable = f"veth{number}"
        # The two namespaces meet by the one pid that both know: that of this machine.
        create = ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0"]
        enter(self.node, [*create, "netns", str(container.init_pid)])
        self.node.run(["ip", "link", "set", cable, "master", self.name, "up"]).or_raise()
        inside = (
            "ip link set lo up; ip link set eth0 up;"
            f"ip address add {SUBNET4}.{number}/24 dev eth0;"
            f"ip address add {SUBNET6}:{number}/64 dev eth0 nodad;"
            f"ip route add default via {SUBNET4}.1; ip -6 route add default via {SUBNET6}:1"
        )
        container.run(["sh", "-ec", inside]).or_raise()
        container.furnish(resolvers=resolvers, anchor=anchor)
        return container

    def trust(self, container: Node, certificate: bytes) -> None:
        """Have the container's image hold one more anchor."""
        container.write("/usr/local/share/ca-certificates/tidegate-of-the-node.crt", certificate)
        container.run(["update-ca-certificates"]).or_raise()

    def close(self) -> None:
        for container in self.containers:
            container.close()


def enter(host: Host, argv: Sequence[str]) -> None:
    """Run a command in the host's network alone."""
    subprocess.run(
        ["nsenter", f"--net=/proc/{host.init_pid}/ns/net", *argv], check=True, capture_output=True, timeout=20
    )
