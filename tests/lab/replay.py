"""Sends recorded requests as they stand: header fields in their order and spelling, one connection a host.

Runs on a host as a file of its own (standard library only): a JSON list of {"method", "url", "headers",
"stop_after"} on standard input, one of {"status", "headers", "body"} on standard output. Redirects are
followed as Go's client does, without the Authorization when the host changes. `stop_after` ends the reading
after so many bytes and closes the connection.
"""

import http.client
import json
import ssl
import sys
from urllib.parse import urlsplit

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
MAX_REDIRECTS = 10
TIMEOUT_S = 20


class Connections:
    """One kept-alive connection for each host."""

    def __init__(self) -> None:
        self._tls = ssl.create_default_context(cafile=BUNDLE)
        self._open: dict[str, http.client.HTTPSConnection] = {}

    def to(self, host: str) -> http.client.HTTPSConnection:
        if host not in self._open:
            self._open[host] = http.client.HTTPSConnection(host, timeout=TIMEOUT_S, context=self._tls)
        return self._open[host]

    def drop(self, host: str) -> None:
        self._open.pop(host).close()


def exchange(
    connections: Connections, method: str, url: str, headers: list[tuple[str, str]], stop_after: int | None
) -> dict[str, object]:
    for _ in range(MAX_REDIRECTS):
        parts = urlsplit(url)
        connection = connections.to(parts.netloc)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            response.read()
            location = response.headers["Location"]
            if urlsplit(location).netloc != parts.netloc:
                headers = [(name, value) for name, value in headers if name.lower() != "authorization"]
            headers = [*headers, ("Referer", url)]
            url = location
            continue
        body = response.read(stop_after)
        if stop_after is not None or response.will_close:
            connections.drop(parts.netloc)
        return {
            "status": response.status,
            "headers": [[name.lower(), value] for name, value in response.getheaders()],
            "body": body.decode("latin-1"),
        }
    raise RuntimeError(f"too many redirects: {url}")


def main() -> None:
    connections = Connections()
    answers = [
        exchange(connections, asked["method"], asked["url"], asked["headers"], asked.get("stop_after"))
        for asked in json.load(sys.stdin)
    ]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
