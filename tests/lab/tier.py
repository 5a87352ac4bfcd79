"""A foreign tier: squid set up as docker-registry-proxy is, a CONNECT proxy that intercepts by its own CA.

It listens on one port for CONNECT and, where it intercepts, offers its CA at /ca.crt there (`tier_front.py`;
squid has no such page). Without interception it is any company's proxy. What it caches does not matter here.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass

from .host import PYTHON_ENV
from .node import Node
from .pki import Authority
from .process import Process
from .waiting import until

PORT = 3128
SQUID_PORT = 3129
FOLDER = "/etc/tier"
LOG = "/run/tier/access.log"
CERTIFICATES = "/var/lib/tier-certificates"

_CONFIG = f"""
http_access allow all
via off
forwarded_for delete
cache_mem 256 MB
maximum_object_size 1 GB
maximum_object_size_in_memory 256 MB
tls_outgoing_options cafile=/etc/ssl/certs/ca-certificates.crt
logformat lab %>p %rm %ru %>Hs
access_log stdio:{LOG} lab
buffered_logs off
cache_log /run/tier/cache.log
pid_filename none
coredump_dir none
shutdown_lifetime 0 seconds
visible_hostname tier
pinger_enable off
"""
_INTERCEPTING = f"""
http_port 127.0.0.1:{SQUID_PORT} ssl-bump generate-host-certificates=on tls-cert={FOLDER}/ca.pem
sslcrtd_program /usr/lib/squid/security_file_certgen -s {CERTIFICATES} -M 4MB
sslcrtd_children 2 startup=1 idle=1
ssl_bump bump all
"""
_TUNNELLING = f"http_port 127.0.0.1:{SQUID_PORT}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A request that a tier answered or tunnelled: for CONNECT, `url` is `host:port`."""

    method: str
    url: str
    status: int


class Tier(Node):
    """A host on the LAN that runs such a proxy once it is started."""

    def __init__(self, name: str):
        super().__init__(name)
        self.authority = Authority(f"{name} CA")
        self._processes: list[Process] = []
        self._log_from = 0

    @property
    def url(self) -> str:
        """What `[[upstream]]` says."""
        return f"http://{self.interfaces[0].ip}:{PORT}"

    def start(self, *, intercepts: bool = True) -> Tier:
        """Start it, and wait until it would carry a request."""
        ca = self.authority.identity
        self.write(f"{FOLDER}/ca.pem", ca.certificate + ca.key)
        self.write(f"{FOLDER}/ca.crt", ca.certificate if intercepts else b"")
        self.write(f"{FOLDER}/squid.conf", _CONFIG + (_INTERCEPTING if intercepts else _TUNNELLING))
        self.run(["install", "-d", "-o", "proxy", "/run/tier", "/var/lib"]).or_raise()
        self.run(["chmod", "0755", FOLDER]).or_raise()
        self.run(["rm", "-rf", CERTIFICATES]).or_raise()
        self.run(["/usr/lib/squid/security_file_certgen", "-c", "-s", CERTIFICATES, "-M", "4MB"]).or_raise()
        self.run(["chown", "-R", "proxy", CERTIFICATES, FOLDER]).or_raise()
        self._processes = [
            self.spawn(["squid", "-N", "-f", f"{FOLDER}/squid.conf"], log="squid"),
            self.spawn([sys.executable, "-m", "lab.tier_front", FOLDER], env=PYTHON_ENV, log="tier-front"),
        ]
        until(lambda: {PORT, SQUID_PORT} <= self.listening(), f"{self.name} listens", within_s=20)
        return self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send every process of the proxy a signal: SIGKILL ends it, SIGSTOP freezes it."""
        for process in self._processes:
            process.kill(number)

    @property
    def carried(self) -> list[Carried]:
        """What it carried since the start or `forget`, in the order in which it ended."""
        path = self.path(LOG)
        if not path.exists():
            return []
        lines = path.read_bytes()[self._log_from :].decode().splitlines()
        fields = (line.split() for line in lines)
        return [Carried(method=method, url=url, status=int(status)) for _, method, url, status in fields]

    def forget(self) -> None:
        path = self.path(LOG)
        self._log_from = path.stat().st_size if path.exists() else 0
