"""The pages of the CONNECT port: `/`, `/ca.crt`, `/setup/systemd`, `/setup/undo` (FEATURES T1). Pure."""

from dataclasses import dataclass

from tidegate_proxy.central.request_head import Page
from tidegate_proxy.central.setup_script import setup_script, undo_script

_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {502: "Bad Gateway", 504: "Gateway Timeout", 508: "Loop Detected", 408: "Request Timeout"}
_TEXT = "text/plain; charset=utf-8"
_INDEX = """\
This is a central tier of Tidegate: a cache of container images.

Docker and containerd, by this proxy:       curl -fsS http://{here}/setup/systemd | sudo bash
And back:                                   curl -fsS http://{here}/setup/undo | sudo bash
Its certificate authority:                  http://{here}/ca.crt
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer; the connection ends with it."""

    status: int
    body: bytes
    content_type: str = _TEXT

    def wire(self, *, with_body: bool = True) -> bytes:
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


def said(status: int, text: str) -> Reply:
    """A sentence with a status."""
    return Reply(status=status, body=f"{text}\n".encode())


def page(wanted: Page, *, ca_pem: bytes) -> Reply:
    """The page for a request; its scripts name this port as the client named it."""
    if wanted.method not in ("GET", "HEAD"):
        return said(405, "these pages are for reading: GET")
    if wanted.path == "/ca.crt":
        return Reply(status=200, body=ca_pem, content_type="application/x-x509-ca-cert")
    if wanted.path not in ("/", "/setup/systemd", "/setup/undo"):
        return said(404, "there is /, /ca.crt, /setup/systemd and /setup/undo")
    if wanted.path == "/setup/undo":
        return Reply(status=200, body=undo_script().encode())
    if wanted.host is None:
        return said(400, "the request has no Host: scripts name this proxy as their reader does")
    if wanted.path == "/":
        return Reply(status=200, body=_INDEX.format(here=wanted.host).encode())
    return Reply(status=200, body=setup_script(wanted.host, ca_pem=ca_pem.decode()).encode())
