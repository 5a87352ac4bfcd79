"""Where a TCP connection goes: an IP address and a port, as one value."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, order=False)
class Endpoint:
    """An address and a TCP port; `str` gives `192.0.2.1:443` or `[2001:db8::1]:443`."""

    address: IPAddress
    port: int

    @classmethod
    def of(cls, address: str, port: int) -> "Endpoint":
        """From what the socket module returns; raises ValueError for anything but an IP address."""
        return cls(ip_address(address), port)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"
