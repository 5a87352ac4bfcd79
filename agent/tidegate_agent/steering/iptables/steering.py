"""The iptables back end: for kernels without nftables (DESIGN 4; iptables(8), ipset(8)).

Nobody owns these rules: what ends them is the lease, elements of two sets that time out in the kernel. So new
connections go direct within the lease of any death, at once where the supervisor lives to flush those sets,
and what stands then matches nothing. The supervisor, ExecStopPost and the next start take it out (`remains`).

Rules change by a program, which takes milliseconds; addresses and lease by a netlink socket of our own.

Failure policy, as in `nft`: refuse to start when the rules cannot go in; once started, a change that is
refused raises SteeringFailed, and what was asked for goes direct. Without IPv6 rules, IPv6 goes direct.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tidegate_agent.steering.backend import SteeringFailed
from tidegate_agent.steering.claim import Claim
from tidegate_agent.steering.eligibility import Routes
from tidegate_agent.steering.exemption import DEFAULT_MARK, Exemption, check_exemption
from tidegate_agent.steering.iptables import ipset
from tidegate_agent.steering.iptables.conntrack import forget_flows
from tidegate_agent.steering.iptables.programs import ProgramFailed, Programs, flavours
from tidegate_agent.steering.iptables.refusal import refusal
from tidegate_agent.steering.iptables.removal import destroy_sets, needless, take_out
from tidegate_agent.steering.iptables.rules import (
    FLOW,
    Found,
    Version,
    keeper_name,
    replaced,
    restored,
)
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.steering.learned import Learned
from tidegate_agent.steering.nfnetlink import Request, RequestSocket
from tidegate_agent.steering.original_destination import original_destination
from tidegate_agent.steering.plan import PROBE6, Plan
from tidegate_agent.steering.system_users import tcp_dns_direct_uids
from tidegate_agent.steering.unowned import port_of
from tidegate_core.errors import StartRefused
from tidegate_dns.address import Landing
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint, IPAddress


class IptablesSteering:
    """Steers with a chain in table nat; redirected connections arrive at `port` of 127.0.0.1 and ::1."""

    backend = "iptables"

    def __init__(
        self,
        *,
        port: int,
        keeper: Keeper | None = None,
        lease_s: float = 3.0,
        exemption: Exemption = DEFAULT_MARK,
        candidates: Callable[[Version], Sequence[Programs]] = flavours,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`candidates` are the programs to try for an IP version; the first that works is kept.

        Without `keeper`, `open` makes one: what keeps connections alive then goes when this process does.
        """
        self._plan = Plan(port=port, exemption=exemption, dns_tcp_direct_uids=tcp_dns_direct_uids())
        self._keeper = keeper
        self._lease_s = lease_s
        self._candidates = candidates
        self._programs: dict[Version, Programs] = {}
        self._claim: Claim | None = None
        self._netlink: RequestSocket | None = None
        self._routes: Routes | None = None
        self._opened = False
        self._withdrawn = False
        self._active = False
        self._learned = Learned(clock=clock)
        self.without_ipv6 = ""
        """Why IPv6 is not steered, where it is not."""

    @property
    def active(self) -> bool:
        """The lease is held: between `activate` and `suspend`."""
        return self._active

    @property
    def probe6(self) -> Endpoint | None:
        """Where the probe connects over IPv6."""
        return PROBE6 if 6 in self._programs else None

    @property
    def program(self) -> str:
        """Which iptables is used, such as `iptables-legacy`; empty before `open`."""
        return self._programs[4].name if 4 in self._programs else ""

    def dry_run(self) -> str:
        """The sets and rules that `open` would add, as ipset-restore and iptables-restore read them."""
        versions: tuple[Version, ...] = (4, 6)
        sets = [str(each[version]) for version in versions for each in (ipset.LEASE, ipset.STEERED)]
        rules = [
            f"# ip{'6' if version == 6 else ''}tables-restore --noflush\n"
            + restored(self._plan, version, keeper=keeper_name(0), instead_of=Found())
            for version in versions
        ]
        return "\n".join(["# ipset restore", *sets, *rules])

    def open(self) -> None:
        """Put sets and rules in; raises StartRefused with the cause and what to type."""
        if self._opened:
            raise StartRefused("steering is open already")
        check_exemption(self._plan.exemption)
        self._keeper = self._keeper or Keeper()
        self._claim = self._claim or Claim()
        try:
            self._netlink = self._netlink or RequestSocket()
            self._routes = self._routes or Routes()
            self._opened = True
            self._put_in(4)
        except OSError as error:
            self.close()
            raise refusal(error) from error
        try:
            self._put_in(6)
            self.without_ipv6 = ""
        except OSError as error:
            destroy_sets(self._netlink, 6)
            self._programs.pop(6, None)
            self.without_ipv6 = str(error)
        self._withdrawn = False

    def activate(self) -> None:
        """Take the lease; raises SteeringFailed."""
        self._hold_the_lease()
        self._active = self._opened

    def renew(self) -> None:
        """Extend the lease while active; raises SteeringFailed."""
        if self._active:
            self._hold_the_lease()

    def suspend(self) -> None:
        """Give the lease up; raises SteeringFailed (the lease then ends by itself)."""
        self._active = False
        if self._opened:
            self._send([ipset.flush(ipset.LEASE[version]) for version in self._programs])

    def add(self, learned: Iterable[tuple[Endpoint, float]]) -> None:
        """Steer each endpoint for so many seconds; raises SteeringFailed, and then some may be added."""
        changes = self._learned.changes(learned, self._may_be_steered)
        if self._withdrawn or not changes:
            return
        self._send(ipset.add({**changes.fresh, **changes.renewed}.items()))
        self._learned.took(changes)

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Stop steering new connections to these; unknown ones are no error. Raises SteeringFailed."""
        known = self._learned.known(endpoints)
        if known:
            self._send(ipset.remove(known))
            self._learned.forget(known)

    def steer_dns(
        self,
        udp: Mapping[IPAddress, int],
        tcp_port: int,
        zone: Zone,
        *,
        linked: Sequence[Landing] = (),  # noqa: ARG002 (these go direct)
        leaving: Sequence[Landing] = (),  # noqa: ARG002 (tracked flows end where they began)
    ) -> None:
        """Replace what is steered of DNS: queries to these, for names of the zone. Raises SteeringFailed.

        Where the kernel cannot look for a name in a packet, all queries are.
        """
        if self._withdrawn:
            return
        self._check_open()
        plan = replace(self._plan, dns_udp=dict(udp), dns_tcp_port=tcp_port, zone=zone)
        for version, programs in self._programs.items():
            try:
                try:
                    programs.restore(replaced(plan, version))
                except ProgramFailed:
                    programs.restore(replaced(plan, version, names=False))
            except ProgramFailed as error:
                raise SteeringFailed(str(error)) from error
        self._plan = plan

    def original_dst(self, sock: socket.socket) -> Endpoint | None:
        """Where an accepted connection was going; None when it was dialled directly, or is gone already."""
        return original_destination(sock)

    def dialled_for(self, original: Endpoint) -> Endpoint:
        """NAT rewrites packets and not sockets: the original destination itself."""
        return original

    def exempt(self, sock: socket.socket) -> None:
        """Keep a socket of ours from being steered."""
        self._plan.exemption.exempt(sock)

    def addresses(self) -> int:
        """How many endpoints are steered now."""
        return self._learned.count()

    def withdraw(self) -> None:
        """Take the rules out at once; connections in flight go on. Raises SteeringFailed.

        The keeper and a set without elements stay for those, until the supervisor cleans up (`remains`).
        """
        if not self._opened:
            return
        self._opened = self._active = False
        self._withdrawn = True
        self._learned.clear()
        failed = ""
        for version, programs in self._programs.items():
            try:
                take_out(programs, lambda there: replace(there, keepers=()))
            except ProgramFailed as error:
                failed = str(error)
            if self._netlink is not None:
                destroy_sets(self._netlink, version, but_lease=True)
        if self._netlink is not None:
            forget_flows(self._netlink, FLOW)
        if failed:
            raise SteeringFailed(failed)

    def close(self) -> None:
        """Withdraw, and let go of everything held."""
        with contextlib.suppress(SteeringFailed):  # what is left matches nothing without the lease
            self.withdraw()
        for held in (self._netlink, self._routes, self._claim):
            if held is not None:
                held.close()
        self._netlink = self._routes = self._claim = None
        self._opened = self._active = self._withdrawn = False
        self._programs.clear()
        self._learned.clear()

    def _put_in(self, version: Version) -> None:
        """The sets, then the rules that match them; raises OSError with the candidates' words."""
        assert self._netlink is not None
        assert self._keeper is not None
        keeper = keeper_name(port_of(self._keeper))
        for each in (ipset.LEASE[version], ipset.STEERED[version]):
            self._netlink.send(ipset.create(each))
            self._netlink.send(ipset.flush(each))
        failed: list[str] = []
        known = self._programs.get(version)
        for programs in (known,) if known else self._candidates(version):
            try:
                there = needless(programs.look(), mine=self._netlink.port)
                self._restore(programs, keeper=keeper, instead_of=there)
            except ProgramFailed as error:
                failed.append(str(error))
                continue
            self._programs[version] = programs
            return
        raise ProgramFailed("; ".join(failed))

    def _restore(self, programs: Programs, *, keeper: str, instead_of: Found) -> None:
        plan, version = self._plan, programs.version
        try:
            programs.restore(restored(plan, version, keeper=keeper, instead_of=instead_of))
        except ProgramFailed:
            programs.restore(restored(plan, version, keeper=keeper, instead_of=instead_of, zone=False))

    def _hold_the_lease(self) -> None:
        self._send([ipset.lease(version, self._lease_s) for version in self._programs])

    def _send(self, requests: Iterable[Request]) -> None:
        if self._withdrawn:
            return  # names are still looked up while transfers in flight end
        netlink = self._check_open()
        try:
            for request in requests:
                netlink.send(request)
        except OSError as error:
            raise SteeringFailed(f"the kernel refused {error}") from error

    def _check_open(self) -> RequestSocket:
        if self._netlink is None or not self._opened:
            raise SteeringFailed("steering is not open")
        return self._netlink

    def _may_be_steered(self, address: IPAddress) -> bool:
        if self._routes is None:
            raise SteeringFailed("steering is not open")
        return address.version in self._programs and self._routes.admits(address)
