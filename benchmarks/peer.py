"""The peers that Tidegate is measured against, on hosts of the tests' lab; what is missing is said at once.

Everything runs in namespaces that end with the benchmark. Peers are Debian's packages with the settings an
administrator would choose for speed, in the configuration below; one worker process, as the agent is one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# The lab lives with the tests; both are only ever run from the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lab import Agent, Host, Lab, Node, Process, until
from lab.requirements import missing as missing_in_the_lab

__all__ = ["Agent", "Dnsmasq", "Host", "Lab", "Nginx", "Node", "Process", "cpu_seconds", "require", "until"]

PACKAGES = {
    "nginx": "nginx-light",
    "openssl": "openssl",
    "wrk": "wrk",
    "ab": "apache2-utils",
    "dnsperf": "dnsperf",
    "dnsmasq": "dnsmasq-base",
}
_TICKS = os.sysconf("SC_CLK_TCK")

NGINX = """
worker_processes 1;
daemon off;
pid /srv/nginx.pid;
error_log /srv/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    types {{ }}
    default_type application/octet-stream;
    server {{
        listen {listen} ssl;
        ssl_certificate /srv/nginx.crt;
        ssl_certificate_key /srv/nginx.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        root /srv/www;
    }}
}}
"""


def require(*programs: str) -> None:
    """End with what to type when the lab or one of these programs is missing."""
    if reason := missing_in_the_lab():
        raise SystemExit(reason)
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = sorted({PACKAGES[name] for name in programs if not shutil.which(name, path=search)})
    if packages:
        raise SystemExit(f"this benchmark needs Debian packages; run: apt install {' '.join(packages)}")


class Nginx:
    """nginx with a P-256 certificate, serving the files put below it."""

    def __init__(self, host: Host, listen: str) -> None:
        self._host = host
        identity = ["-subj", "/CN=nginx", "-keyout", "/srv/nginx.key", "-out", "/srv/nginx.crt"]
        p256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
        host.run(["openssl", "req", "-x509", "-days", "3", *p256, *identity]).or_raise()
        host.path("/srv/www").mkdir()
        host.write("/srv/nginx.conf", NGINX.format(listen=listen))
        self._process = host.spawn(["nginx", "-c", "/srv/nginx.conf"])
        port = int(listen.rpartition(":")[2])
        until(lambda: port in host.listening(), f"nginx listens: {self._process.log}")

    def put(self, name: str, content: bytes) -> None:
        self._host.write(f"/srv/www/{name}", content)

    @property
    def pids(self) -> list[int]:
        return [pid for pid, command in self._host.processes().items() if command.startswith("nginx")]


class Dnsmasq:
    """dnsmasq as a forwarder to one resolver, with or without a cache."""

    def __init__(self, host: Host, *, listen: str, port: int, upstream: str, cache_size: int) -> None:
        self.address = listen
        self.port = port
        process = host.spawn(
            [
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--user=root",
                "--pid-file=",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
                f"--listen-address={listen}",
                f"--port={port}",
                f"--server={upstream}",
                f"--cache-size={cache_size}",
                "--log-facility=-",
            ]
        )
        until(lambda: "started, version" in process.log, "dnsmasq listens")


def cpu_seconds(host: Host, pids: Sequence[int]) -> float:
    """CPU time these processes have used so far, user and kernel, all threads."""
    used = 0.0
    for pid in pids:
        fields = host.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / _TICKS
    return used
