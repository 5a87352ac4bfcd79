"""The lab's resolver: a real dnsmasq with the registries' names and a zone of test records.

dnsmasq never answers SERVFAIL by itself, so one name is forwarded to a 15-line server that always does.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Literal

from .host import Host
from .network import Address, Network
from .process import Process
from .waiting import until

CONFIG = "/etc/lab-dnsmasq.conf"
SERVFAIL_PORT = 5399
SERVFAIL_SERVER = f"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", {SERVFAIL_PORT}))
while True:
    query, client = server.recvfrom(4096)
    # The question comes back, without the additional section: QR, RD and RA set, rcode 2 (RFC 1035 4.1.1).
    end = 12
    while query[end]:
        end += query[end] + 1
    server.sendto(query[:2] + b"\\x81\\x82\\0\\1\\0\\0\\0\\0\\0\\0" + query[12 : end + 5], client)
"""

# Names of the test zone, for scenarios about names that are nobody's registry.
HOST = "www.example.org"  # A, and AAAA when dual stack; its AAAA is NODATA otherwise
DOMAIN = "example.org"  # MX, and a TXT of one string
LARGE_TXT = "large.example.org"  # TXT of 4 KB: truncated over UDP, whole over TCP
MISSING = "missing.example.org"  # NXDOMAIN
SERVFAIL = "servfail.example.org"

Darkness = Literal["refused", "silent", "hung"]
"""`refused`: the process is gone, ICMP says so. `silent`: its link is down, nothing answers."""


class Resolver:
    """dnsmasq on its own host; restarted in some ten milliseconds whenever it is told to answer otherwise."""

    def __init__(
        self,
        host: Host,
        network: Network,
        names: Mapping[str, Sequence[Address]],
        elsewhere: Sequence[Address],
    ):
        self.host = host
        self.addresses: tuple[Address, ...] = tuple(interface.ip for interface in host.interfaces)
        self._network = network
        self._names = names
        self._elsewhere = elsewhere  # where the test zone's host lives
        self._process: Process | None = None
        self._log_from = 0
        self._unplugged = False
        self._defaults()
        self._servfail = host.spawn(["python3", "-c", SERVFAIL_SERVER], log="servfail")
        self.start()

    def _defaults(self) -> None:
        self._dual_stack = False
        self._ttl_s = 60
        self._records: dict[str, tuple[Address, ...]] = {}

    @property
    def names(self) -> Mapping[str, Sequence[Address]]:
        """The addresses of the registries' names."""
        return self._names

    @property
    def records(self) -> Mapping[str, Sequence[Address]]:
        """The addresses that `answer` gave names."""
        return self._records

    @property
    def address(self) -> Address:
        """Its IPv4 address: what hosts have in resolv.conf."""
        return self.addresses[0]

    # What it answers

    def answer(
        self,
        *,
        dual_stack: bool | None = None,
        ttl_s: int | None = None,
        records: Mapping[str, Sequence[Address]] | None = None,
    ) -> None:
        """Change what is answered from now on.

        `dual_stack` gives names their AAAA records, `ttl_s` is every record's TTL, `records` are addresses of
        more names, or other ones for known names.
        """
        self._dual_stack = self._dual_stack if dual_stack is None else dual_stack
        self._ttl_s = self._ttl_s if ttl_s is None else ttl_s
        self._records = self._records if records is None else {name: tuple(a) for name, a in records.items()}
        self.stop()
        self.start()

    def _config(self) -> str:
        names = {**self._names, HOST: self._elsewhere, **self._records}
        lines = [
            "no-resolv",
            "no-hosts",
            "bind-interfaces",
            "listen-address=127.0.0.1," + ",".join(str(address) for address in self.addresses),
            "log-queries=extra",
            "log-facility=-",
            "user=root",
            "cache-size=0",
            f"local-ttl={self._ttl_s}",
            "local=/#/",  # what is not below is NXDOMAIN
            f"server=/{SERVFAIL}/127.0.0.1#{SERVFAIL_PORT}",
            f"mx-host={DOMAIN},mail.{DOMAIN},10",
            f'txt-record={DOMAIN},"v=spf1 -all"',
        ]
        for name, addresses in names.items():
            for address in addresses:
                if address.version == 4 or self._dual_stack:
                    lines.append(f"host-record={name},{address}")
        return "\n".join(lines) + "\n"

    # What it was asked

    @property
    def queries(self) -> list[tuple[str, str]]:
        """(qtype, qname) of every query since the last `forget`, as dnsmasq's log has them."""
        found = []
        for line in self._log()[self._log_from :].splitlines():
            words = line.split()
            for number, word in enumerate(words):
                if word.startswith("query["):
                    found.append((word[6:-1], words[number + 1].lower()))
        return found

    def forget(self) -> None:
        self._log_from = len(self._log())

    def _log(self) -> str:
        return "".join(text for name, text in self.host.logs().items() if "dnsmasq" in name)

    # What is wrong with it

    def goes_dark(self, how: Darkness = "refused") -> None:
        if how == "refused":
            self.stop()
        elif how == "hung":
            self._signal(signal.SIGSTOP)  # what it is asked meanwhile, it answers when it comes back
        else:
            self._network.unplug(self.host)
            self._unplugged = True

    def comes_back(self) -> None:
        if self._unplugged:
            self._network.plug_back(self.host)
            self._unplugged = False
        self._signal(signal.SIGCONT)
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.running:
            self._process.kill(number)

    def start(self) -> None:
        """Start dnsmasq if it does not run, and wait until it listens."""
        if self._process is not None and self._process.running:
            return
        self.host.write(CONFIG, self._config())
        # A line of its configuration file cannot hold 4 KB; an argument can.
        large = f"--txt-record={LARGE_TXT}," + ",".join(f"{number:02}{'x' * 248}" for number in range(16))
        process = self.host.spawn(["dnsmasq", "--keep-in-foreground", f"--conf-file={CONFIG}", large])
        self._process = process

        def started() -> bool:
            if not process.running:
                raise RuntimeError(f"dnsmasq ended: {process.log}")
            return "started, version" in process.log

        until(started, "dnsmasq listens")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill(signal.SIGKILL)
            self._process.wait()
            self._process.close()
            self._process = None

    def reset(self) -> None:
        """As new: running, reachable, IPv4 only, nothing logged."""
        changed = (self._dual_stack, self._ttl_s, self._records) != (False, 60, {})
        self._defaults()
        if changed:
            self.stop()
        self.comes_back()
        self.forget()
