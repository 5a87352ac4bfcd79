"""The nft back end: an owned table, gated by a lease that lives in the kernel (DESIGN 4, nft(8)).

The table belongs to the netlink socket: SIGKILL closes that, and the kernel deletes the table within
milliseconds. A hung process keeps its socket, so every rule also needs the lease, a set element that times
out unless the accepting loop renews it. Nothing is ever made persistent, and nothing here forks.

Failure policy: refuse to start when the rules cannot go in; once started, a change that the kernel refuses
raises SteeringFailed and leaves that traffic direct, which is how it was before us.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tidegate_agent.steering.backend import SteeringFailed
from tidegate_agent.steering.claim import Claim, another_steers
from tidegate_agent.steering.eligibility import Routes
from tidegate_agent.steering.encoding import (
    TABLE_OWNER,
    add_endpoints,
    delete_table,
    get_table,
    lease,
    new_table,
    remove_endpoints,
    replace_rules,
)
from tidegate_agent.steering.exemption import DEFAULT_MARK, RUN_AS_ROOT, Exemption, check_exemption
from tidegate_agent.steering.forwarded import Forwarded
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.steering.learned import Learned
from tidegate_agent.steering.listing import render
from tidegate_agent.steering.netlink import Message, NetlinkError, NftSocket, attributes, pid_of_port
from tidegate_agent.steering.original_destination import original_destination
from tidegate_agent.steering.plan import PROBE6, TABLE, Plan
from tidegate_agent.steering.ruleset import keeper_table, steering_table
from tidegate_agent.steering.system_users import tcp_dns_direct_uids
from tidegate_agent.steering.unowned import put_keeper_in, remove_keepers
from tidegate_core.errors import StartRefused
from tidegate_dns.address import Landing
from tidegate_dns.zone import Zone
from tidegate_proxy.endpoint import Endpoint, IPAddress


class NftSteering:
    """Steers with an nft table; redirected connections arrive at `port` of 127.0.0.1 and ::1."""

    def __init__(
        self,
        *,
        port: int,
        keeper: Keeper | None = None,
        lease_s: float = 3.0,
        exemption: Exemption = DEFAULT_MARK,
        connections: bool = True,
        owned: bool = True,
        forwarded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `keeper`, `open` makes one; connections then are only safe if they come later.

        `connections=False` steers DNS over UDP and nothing else, without NAT, and so without the keeper.
        `owned=False` is for kernels that cannot delete a table with its process: the lease alone ends it.
        """
        self._plan = Plan(
            port=port,
            exemption=exemption,
            dns_tcp_direct_uids=tcp_dns_direct_uids(),
            connections=connections,
            owned=owned,
            forwarded=Forwarded() if forwarded else None,
        )
        self._keeper = keeper
        self._lease_s = lease_s
        self._claim: Claim | None = None
        self._nft: NftSocket | None = None
        self._routes: Routes | None = None
        self._opened = False
        self._withdrawn = False
        self._active = False
        self._learned = Learned(clock=clock)

    @property
    def backend(self) -> str:
        """The name of the mechanism."""
        return "nft" if self._plan.owned else "nft-lease"

    @property
    def active(self) -> bool:
        """The lease is held: between `activate` and `suspend`."""
        return self._active

    @property
    def probe6(self) -> Endpoint | None:
        """Where the probe connects over IPv6."""
        return PROBE6 if self._plan.connections else None

    def dry_run(self) -> str:
        """The tables that `open` would add, in nft syntax."""
        table = steering_table(self._plan)
        keeper = keeper_table(owned=self._plan.owned)
        return render((keeper, table) if self._plan.connections else (table,))

    def open(self) -> None:
        """Put both tables in, the keeper first; raises StartRefused with the cause and what to type."""
        if self._opened:
            raise StartRefused("steering is open already")
        check_exemption(self._plan.exemption)
        self._keeper = self._keeper or Keeper()
        claim = self._claim or Claim()
        # The table has to be gone before a client learns of our death: it looks a name up at once, and what
        # then still came here would be lost (glibc and Go ask again after 5 s).
        nft = self._nft or NftSocket(closes_first=True)
        try:
            if self._plan.connections:
                self._put_keeper_in(nft, self._keeper)
            # Under the claim, a table of that name that nobody owns is one that a dead agent left.
            nft.commit(delete_table(TABLE) + new_table(steering_table(self._plan)))
        except NetlinkError as error:
            refused = start_refusal(error, table_owner(nft), owned=self._plan.owned)
            nft.close()
            claim.close()
            self._nft = self._claim = None
            raise refused from error
        self._claim, self._nft, self._routes = claim, nft, self._routes or Routes()
        self._opened, self._withdrawn = True, False

    def activate(self) -> None:
        """Take the lease; raises SteeringFailed."""
        self._commit(lease(self._lease_s))
        self._active = self._opened

    def renew(self) -> None:
        """Extend the lease while active; raises SteeringFailed."""
        if self._active:
            self._commit(lease(self._lease_s))

    def suspend(self) -> None:
        """Give the lease up; raises SteeringFailed (the lease then ends by itself)."""
        self._active = False
        if self._opened:
            self._commit(lease(0))

    def add(self, learned: Iterable[tuple[Endpoint, float]]) -> None:
        """Steer each endpoint for so many seconds; raises SteeringFailed, and then none of these is added."""
        changes = self._learned.changes(learned, self._may_be_steered)
        if self._withdrawn or not changes:
            return
        messages = add_endpoints(changes.fresh.items(), known=False)
        if changes.renewed:
            messages += add_endpoints(changes.renewed.items(), known=True)
        self._commit(messages)
        self._learned.took(changes)

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Stop steering new connections to these; unknown ones are no error. Raises SteeringFailed."""
        known = self._learned.known(endpoints)
        if known:
            self._commit(remove_endpoints(known))
            self._learned.forget(known)

    def steer_dns(
        self,
        udp: Mapping[IPAddress, int],
        tcp_port: int,
        zone: Zone,
        *,
        linked: Sequence[Landing] = (),
        leaving: Sequence[Landing] = (),
    ) -> None:
        """Replace what is steered of DNS, in one transaction; raises SteeringFailed."""
        plan = replace(
            self._plan,
            dns_udp=dict(udp),
            dns_tcp_port=tcp_port,
            dns_linked=tuple(linked),
            dns_leaving=tuple(leaving),
            zone=zone,
        )
        self._commit(replace_rules(steering_table(plan)))
        self._plan = plan

    def steer_forwarded(self, forwarded: Forwarded) -> None:
        """Replace whose connections from behind bridges are steered; raises SteeringFailed."""
        plan = replace(self._plan, forwarded=forwarded)
        self._commit(replace_rules(steering_table(plan)))
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
        """Delete the table at once; the keeper stays for connections in flight. Raises SteeringFailed."""
        if self._opened:
            self._commit(delete_table(TABLE))
            self._withdrawn = True
        self._opened = self._active = False
        self._learned.clear()

    def close(self) -> None:
        """Let go of the table. The keeper goes with the process: a connection may need it as long."""
        if self._nft is not None and self._opened and not self._plan.owned:
            with contextlib.suppress(OSError):  # then the lease ends it, and the supervisor removes it
                self._nft.commit(delete_table(TABLE))
        for held in (self._nft, self._routes, self._claim):
            if held is not None:
                held.close()
        self._nft = self._routes = self._claim = None
        self._opened = self._active = self._withdrawn = False
        self._learned.clear()

    def _commit(self, messages: list[Message]) -> None:
        if self._withdrawn:
            return  # names are still looked up while transfers in flight end
        if self._nft is None or not self._opened:
            raise SteeringFailed("steering is not open")
        try:
            self._nft.commit(messages)
        except OSError as error:
            raise SteeringFailed(f"the kernel refused {error}") from error

    def _may_be_steered(self, address: IPAddress) -> bool:
        if self._routes is None:
            raise SteeringFailed("steering is not open")
        return self._routes.admits(address)

    def _put_keeper_in(self, nft: NftSocket, keeper: Keeper) -> None:
        if self._plan.owned:
            keeper.put_in()
        else:
            remove_keepers(nft)
            put_keeper_in(nft, keeper)


def table_owner(nft: NftSocket) -> int | NetlinkError:
    """The netlink port that owns our table (0: nobody does), or why that cannot be told."""
    try:
        answer = dict(attributes(nft.request(get_table(TABLE))))
    except NetlinkError as error:
        return error
    owner: int = struct.unpack("!I", answer.get(TABLE_OWNER, bytes(4)))[0]
    return owner


def start_refusal(error: NetlinkError, owner: int | NetlinkError, *, owned: bool = True) -> StartRefused:
    """What the kernel's refusal means, and what to type."""
    if isinstance(owner, NetlinkError):
        if owner.errno == errno.EPERM:
            return StartRefused("no right to change nft rules (CAP_NET_ADMIN)", next_step=RUN_AS_ROOT)
    elif owner:
        return another_steers(pid_of_port(owner), f"owns table inet {TABLE} (netlink port {owner})")
    release = os.uname().release
    if owned and "flags owner" in error.doing and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return StartRefused(
            f"this kernel ({release}) does not know nft's owner flag: {error}",
            next_step='It needs Linux 5.12 or newer; until then set [steering] backend = "nft-lease".',
        )
    return StartRefused(
        f"this kernel ({release}) refused {error}",
        next_step="Load what is missing with: modprobe -a nf_tables nft_redir nf_nat nf_conntrack",
    )
