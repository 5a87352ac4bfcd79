"""A tiny agent for the steering tests: real rules, and servers that say who answered.

Runs inside a network namespace and takes one JSON command a line on standard input:
`{"do": "add", "with": [...]}`; each is answered by one line, `{"ok": ...}` or `{"refused": "..."}`.
Redirected connections get one line naming their original destination, then a dot every 10 ms; with `learns`,
that line alone, and look-ups are answered by the real responder, which teaches what it learns.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from typing import Any

from tidegate_agent.addresses import SteeredAddresses
from tidegate_agent.steering import Backend, ByMark, ByUid, IptablesSteering, Keeper, SteeringFailed, built
from tidegate_agent.steering.iptables.programs import Programs
from tidegate_core.errors import TidegateError
from tidegate_dns.responder import Responder
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint


class Echo(asyncio.DatagramProtocol):
    """Answers each query with `agent`, the port that it came from, and itself."""

    def __init__(self) -> None:
        self.heard = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.heard += 1
        self.transport.sendto(f"agent {addr[1]} ".encode() + data, addr)


def backend_of(name: str, *, port: int, keeper: Keeper, lease_s: float, exemption: ByMark | ByUid) -> Backend:
    """By its name; `iptables-legacy` and `iptables-nft` are the back end with one flavour of programs."""
    if name.startswith("iptables-"):
        flavour = name.removeprefix("iptables")
        return IptablesSteering(
            port=port,
            keeper=keeper,
            lease_s=lease_s,
            exemption=exemption,
            candidates=lambda version: (Programs(version=version, flavour=flavour),),
        )
    return built(name, port=port, keeper=keeper, lease_s=lease_s, exemption=exemption)


class Host:
    """The steering under test and what it redirects to."""

    def __init__(self, *, backend: str, port: int, lease_s: float, exemption: ByMark | ByUid) -> None:
        self.port = port
        self.lease_s = lease_s
        self.keeper = Keeper()
        self.steering = backend_of(
            backend, port=port, keeper=self.keeper, lease_s=lease_s, exemption=exemption
        )
        self.asked_for: tuple[dict[Any, int], int] = ({}, 0)
        self.added: list[tuple[Endpoint, float]] = []
        self.drips = True
        self.renewing = False
        self.zone = Zone.of(())
        self.echoes: list[Echo] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def listen(self) -> None:
        for address in ("127.0.0.1", "::1"):
            await asyncio.start_server(self.greet, address, self.port)

    def open(self) -> None:
        """Open with the netlink descriptor above those of the connections to come.

        It is then released first when the process dies, which is the order that leaves connections in flight
        hanging unless the keeper table stands; the keeper's own descriptor is below them all.
        """
        low = [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]
        try:
            self.steering.open()
        finally:
            for descriptor in low:
                os.close(descriptor)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        original = self.steering.original_dst(writer.get_extra_info("socket"))
        with contextlib.suppress(ConnectionError):
            writer.write(f"agent {original}\n".encode())
            if not self.drips:
                writer.close()
            while not writer.is_closing():
                await asyncio.sleep(0.01)
                writer.write(b".")
                await writer.drain()

    async def renew(self) -> None:
        while True:
            if self.renewing:
                with contextlib.suppress(SteeringFailed):  # somebody else took the rules away
                    self.steering.renew()
            await asyncio.sleep(self.lease_s / 4)

    async def responder(self, resolvers: list[str]) -> None:
        loop = asyncio.get_running_loop()
        udp = {}
        for resolver in resolvers:
            local = "127.0.0.1" if ip_address(resolver).version == 4 else "::1"
            transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=(local, 0))
            self.echoes.append(echo)
            udp[ip_address(resolver)] = transport.get_extra_info("sockname")[1]
        tcp = await asyncio.start_server(self.greet, "127.0.0.1", 0)
        tcp_port = tcp.sockets[0].getsockname()[1]
        await asyncio.start_server(self.greet, "::1", tcp_port)
        self.asked_for = (udp, tcp_port)
        self.steering.steer_dns(udp, tcp_port, self.zone)

    async def learn(self, resolver: str, pattern: str) -> None:
        """Answer look-ups of these names as the agent does, with the real responder."""
        self.drips = False
        addresses = SteeredAddresses(
            steering=self.steering,
            ports=lambda _: (443,),
            clock=time.monotonic,
            stale_max_s=60,
            learned=lambda _: None,
        )
        self.zone = Zone.of([pattern])
        responder = Responder(
            zone=self.zone,
            learn=addresses.learn,
            exempt=self.steering.exempt,
            original_dst=lambda _: None,
            stale_max_s=60,
            clock=time.monotonic,
            observe=lambda *_: None,
        )
        await responder.open([ip_address(resolver)])
        self.steering.steer_dns(responder.udp_ports, responder.tcp_port, self.zone)

    def put_in_anew(self) -> None:
        """As the agent does when its probe says that the rules are gone."""
        self.steering.withdraw()
        self.steering.open()
        self.steering.steer_dns(*self.asked_for, self.zone)
        self.steering.add(self.added)
        self.steering.activate()

    async def obey(self, do: str, given: Any) -> Any:
        steering = self.steering
        match do:
            case "add":
                self.added = [(Endpoint.of(address, port), ttl_s) for address, port, ttl_s in given]
                steering.add(self.added)
            case "remove":
                steering.remove([Endpoint.of(address, port) for address, port in given])
            case "names":
                self.zone = Zone.of(given)
            case "steer_dns":
                await self.responder(given)
            case "heard":
                return sum(echo.heard for echo in self.echoes)
            case "renewing":
                self.renewing = given
            case "addresses":
                return steering.addresses()
            case "connect_exempt":
                return await asyncio.to_thread(self.connect_exempt, *given)
            case "dry_run":
                return steering.dry_run()
            case "block_the_loop":
                time.sleep(given)
            case "open":
                self.open()
            case "activate":
                steering.activate()
                self.renewing = True
            case "put_in_anew":
                self.put_in_anew()
            case "learn":
                await self.learn(*given)
            case "start_a_child":
                return subprocess.Popen(
                    ["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                ).pid
            case "fork_a_child":
                return fork_a_child()
            case "share_the_keeper":
                return self.share_the_keeper()
            case "orphan":
                for writer in self.writers:
                    writer.transport.abort()
            case "let_go":
                await asyncio.to_thread(self.keeper.let_go, self.port, within_s=given)
            case "suspend" | "withdraw" | "close":
                getattr(steering, do)()
            case _:
                raise TidegateError(f"no such command: {do}")
        return None

    def share_the_keeper(self) -> int:
        """Another process that holds the keeper's socket, and does nothing; its pid."""
        shared = self.keeper.fileno()
        return subprocess.Popen(["sleep", "60"], pass_fds=[shared], stdout=subprocess.DEVNULL).pid

    def connect_exempt(self, address: str, port: int) -> str:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            self.steering.exempt(sock)
            sock.settimeout(2)
            sock.connect((address, port))
            return sock.makefile().readline().strip()


def fork_a_child() -> int:
    """A copy of this process that holds all its descriptors, does nothing, and ends by itself."""
    pid = os.fork()
    if pid == 0:
        for stream in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        time.sleep(20)
        os._exit(0)
    return pid


async def main(backend: str, port: int, lease_s: float, exemption: ByMark | ByUid) -> None:
    host = Host(backend=backend, port=port, lease_s=lease_s, exemption=exemption)
    await host.listen()
    renewal = asyncio.create_task(host.renew())
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        command = json.loads(line)
        try:
            answer = {"ok": await host.obey(command["do"], command["with"])}
        except (TidegateError, OSError) as error:
            answer = {"refused": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    renewal.cancel()


if __name__ == "__main__":
    asyncio.run(
        main(
            sys.argv[1],
            int(sys.argv[2]),
            float(sys.argv[3]),
            ByMark.parse(sys.argv[4]) if "/" in sys.argv[4] else ByUid(uid=int(sys.argv[4])),
        )
    )
