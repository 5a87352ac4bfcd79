"""Tables that no process owns, for kernels without nft's owner flag: whose they are, and how they go.

What steers is gated by its lease and told by the claim (`claim`): a table without an owner is a dead agent's
when the name can be claimed. The keeper has in its name the netlink port of the socket that an owned one
would belong to, which supervisor and agent share: when no process holds that any more, nobody needs it.
"""

import contextlib
import os
import socket

from tidegate_agent.steering.encoding import (
    TABLE_NAME,
    TABLE_OWNER,
    delete_table,
    get_tables,
    lease,
    new_table,
)
from tidegate_agent.steering.keeper import Keeper
from tidegate_agent.steering.netlink import NetlinkError, NftSocket, attributes, is_held
from tidegate_agent.steering.plan import KEEPER, TABLE
from tidegate_agent.steering.ruleset import keeper_table

_PREFIX = f"{KEEPER}_of_"


def port_of(keeper: Keeper) -> int:
    """The netlink port of the socket that supervisor and agent share."""
    with socket.socket(fileno=os.dup(keeper.fileno())) as shared:
        port: int = shared.getsockname()[0]
    return port


def put_keeper_in(nft: NftSocket, keeper: Keeper) -> None:
    """Add a keeper that lasts until it is removed, or see that it is there; raises NetlinkError."""
    nft.commit(new_table(keeper_table(f"{_PREFIX}{port_of(keeper)}", owned=False)))


def is_abandoned(port: int, *, mine: int) -> bool:
    """No process holds that socket any more; `mine` is a new one, which may have been given a freed port."""
    return port == mine or not is_held(port)


def abandoned_keepers(nft: NftSocket) -> list[str]:
    """The keepers whose processes are gone; raises NetlinkError."""
    return [
        name
        for name in _unowned(nft)
        if name.startswith(_PREFIX) and is_abandoned(int(name.removeprefix(_PREFIX)), mine=nft.port)
    ]


def remove_keepers(nft: NftSocket) -> list[str]:
    """Remove those; what is refused stays for the next to try. The names."""
    return [name for name in abandoned_keepers(nft) if _delete(nft, name)]


def end_lease(nft: NftSocket) -> bool:
    """Steer nothing new by a table that no process owns; whether there is one. Under the claim only."""
    if TABLE not in _unowned(nft):
        return False
    with contextlib.suppress(NetlinkError):  # the table goes in any case
        nft.commit(lease(0))
    return True


def remove_steering(nft: NftSocket) -> bool:
    """Remove the table that steers, unless a process owns it; whether there was one. Under the claim only."""
    return TABLE in _unowned(nft) and _delete(nft, TABLE)


def _unowned(nft: NftSocket) -> list[str]:
    tables = [dict(attributes(each)) for each in nft.dump(get_tables())]
    return [
        each[TABLE_NAME].rstrip(b"\0").decode()
        for each in tables
        if TABLE_OWNER not in each and TABLE_NAME in each
    ]


def _delete(nft: NftSocket, name: str) -> bool:
    try:
        nft.commit(delete_table(name))
    except NetlinkError:
        return False
    return True
