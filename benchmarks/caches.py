"""Other pull-through caches, on nodes of their own: nginx with a cache lock, docker-registry as a mirror.

Both are set up as their documentation has it for this purpose. Each answers the registry's own paths over
TLS on a loopback port.
"""

from __future__ import annotations

import json

from origin import REGISTRY
from peer import Node, until

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
    proxy_cache_path /srv/cache levels=1:2 keys_zone=blobs:1m max_size=10g use_temp_path=off;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate /srv/server.crt;
        ssl_certificate_key /srv/server.key;
        location / {{
            proxy_pass https://{registry};
            proxy_http_version 1.1;
            proxy_ssl_server_name on;
            proxy_set_header Host {registry};
            proxy_set_header Connection "";
            proxy_cache blobs;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 300s;
            proxy_cache_lock_age 300s;
            proxy_max_temp_file_size 0;
        }}
    }}
}}
"""


class CachingNginx:
    """One transfer upstream at a time for each blob: whoever asks meanwhile waits for its end."""

    name = "nginx"

    def __init__(self, node: Node, port: int) -> None:
        self.node, self.host, self.port = node, "127.0.0.1", port
        _identity(node)
        node.write("/srv/nginx.conf", NGINX.format(port=port, registry=REGISTRY))
        self._process = node.spawn(["nginx", "-c", "/srv/nginx.conf"])
        until(lambda: port in node.listening(), f"nginx listens: {self._process.log}")

    @property
    def pids(self) -> list[int]:
        return [pid for pid, command in self.node.processes().items() if command.startswith("nginx")]


class DockerRegistry:
    """distribution's `proxy:` section."""

    name = "registry"

    def __init__(self, node: Node, port: int) -> None:
        self.node, self.host, self.port = node, "127.0.0.1", port
        _identity(node)
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": "/srv/mirror"}},
            "http": {
                "addr": f"127.0.0.1:{port}",
                "tls": {"certificate": "/srv/server.crt", "key": "/srv/server.key"},
            },
            "proxy": {"remoteurl": f"https://{REGISTRY}"},
        }
        node.write("/srv/mirror.yml", json.dumps(config))  # which is YAML
        self._process = node.spawn(["docker-registry", "serve", "/srv/mirror.yml"])
        until(lambda: port in node.listening(), f"docker-registry listens: {self._process.log}")

    @property
    def pids(self) -> list[int]:
        return [pid for pid, command in self.node.processes().items() if "docker-registry" in command]


def _identity(node: Node) -> None:
    names = ["-subj", "/CN=cache", "-keyout", "/srv/server.key", "-out", "/srv/server.crt"]
    p256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    node.run(["openssl", "req", "-x509", "-days", "3", *p256, *names]).or_raise()
