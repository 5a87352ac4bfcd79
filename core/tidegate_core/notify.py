"""Telling systemd how the service is doing: the datagrams of sd_notify(3).

One datagram of `NAME=value` lines to the AF_UNIX socket named by NOTIFY_SOCKET, in the file system or in the
abstract namespace (a leading `@`). Without that variable nothing is sent. A service manager that cannot be
reached must never harm the service: a failed send is reported to the caller as False and nothing more.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends states to one socket address; `address` is None where nobody listens."""

    address: str | None = None
    watchdog: timedelta | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], *, pid: int) -> "Notifier":
        """From NOTIFY_SOCKET and WATCHDOG_USEC; WATCHDOG_PID, where given, says whom the latter concerns."""
        name = environment.get("NOTIFY_SOCKET", "")
        address = "\0" + name[1:] if name.startswith("@") else name
        microseconds = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        watched = microseconds.isdecimal() and int(microseconds) > 0 and for_us
        watchdog = timedelta(microseconds=int(microseconds)) if watched else None
        return cls(address if name.startswith(("@", "/")) else None, watchdog)

    def ready(self, status: str = "") -> bool:
        """Start-up is done: readiness in the sense of Type=notify."""
        return self._send(READY="1", STATUS=status)

    def stopping(self, status: str = "") -> bool:
        """Stopping has begun."""
        return self._send(STOPPING="1", STATUS=status)

    def alive(self) -> bool:
        """Feeds the watchdog; to be sent at least twice per `watchdog`."""
        return self._send(WATCHDOG="1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(STATUS=text)

    def main_pid(self, pid: int) -> bool:
        """The process that is to be supervised from now on."""
        return self._send(MAINPID=str(pid))

    def _send(self, **lines: str) -> bool:
        return self.send(
            "\n".join(f"{name}={' '.join(text.splitlines())}" for name, text in lines.items() if text)
        )

    def send(self, message: str) -> bool:
        """One datagram of `NAME=value` lines, as they stand."""
        if self.address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1)
                sender.sendto(message.encode(), self.address)
        except OSError:
            return False
        return True
