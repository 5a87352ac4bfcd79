"""Kills at the right moment, knocks at a registry's door, and watches what becomes of the connections.

Runs on the node as a file of its own (standard library and `ss`): one JSON object as its argument, two
lines of JSON as its answer. Times are seconds since the kill; `killed` is the monotonic clock.
"""

import errno
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

AGENT_PORT, HTTPS = 8443, 443
ESTABLISHED = "01"
PORT_IN_USE = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def main() -> None:
    given = json.loads(sys.argv[1])
    if given["bytes"]:
        wait_for_bytes(given["direction"], given["bytes"], time.monotonic() + given["within_s"])
    held = established(HTTPS) & peers_of_the_agent()
    killed = time.monotonic()
    for pid, number in given["kill"]:
        os.kill(pid, number)
    tell(killed=killed)
    gone: dict[int, float] = {}
    watching = threading.Thread(target=watch, args=(held, killed, given["watch_s"], gone))
    watching.start()
    knocks = knock(given["address"], given["knock_from"], killed, given["knock_s"])
    watching.join()
    tell(knocks=knocks, held=len(held), gone=sorted(gone.values()))


def tell(**facts: object) -> None:
    sys.stdout.write(f"{json.dumps(facts)}\n")
    sys.stdout.flush()


def wait_for_bytes(direction: str, enough: int, deadline: float) -> None:
    """Until the agent has sent (acked) or received so much on one connection."""
    listing = ["ss", "-tinH", "state", "established", f"( sport = :{AGENT_PORT} )"]
    while time.monotonic() < deadline:
        listed = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        if any(int(n) >= enough for n in re.findall(rf"bytes_{direction}:(\d+)", listed)):
            return
    sys.exit(f"no connection had {enough} bytes {direction}")


def connections() -> Iterator[tuple[int, int, str]]:
    """(local port, remote port, state) of all TCP sockets of this host."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            yield int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16), state


def established(remote_port: int) -> set[int]:
    """The local ports of connections to this port that nobody has ended, as their clients see it."""
    return {local for local, remote, state in connections() if remote == remote_port and state == ESTABLISHED}


def peers_of_the_agent() -> set[int]:
    return {remote for local, remote, _ in connections() if local == AGENT_PORT and remote}


def watch(held: set[int], killed: float, for_s: float, gone: dict[int, float]) -> None:
    """When each of the clients' connections ends: FIN or RST has arrived, or its client let go of it."""
    while len(gone) < len(held) and time.monotonic() - killed < for_s:
        still = established(HTTPS)
        for port in held - still - gone.keys():
            gone[port] = time.monotonic() - killed
        time.sleep(0.005)


def knock(address: str, first_port: int, killed: float, for_s: float) -> list[tuple[float, int | None]]:
    """Connections begun one after the other: when, and from which port (none: refused).

    No port is used twice, and none is of those that the kernel gives to the agent's own connections: the
    registry's log tells by the port alone who came directly.
    """
    knocks: list[tuple[float, int | None]] = []
    ports = itertools.count(first_port)
    while (begun := time.monotonic() - killed) < for_s:
        port = next(ports)
        try:
            with socket.create_connection((address, HTTPS), timeout=5, source_address=("", port)):
                knocks.append((begun, port))
        except OSError as error:
            if error.errno in PORT_IN_USE:
                continue
            knocks.append((begun, None))
        time.sleep(0.0005 if begun < 0.1 else 0.005)  # a pace: dying needs the processor too
    return knocks


if __name__ == "__main__":
    main()
