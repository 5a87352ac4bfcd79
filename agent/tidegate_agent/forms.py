"""How single values of the configuration are written: ports, paths, marks, addresses, host names.

Each is an annotated type for `tidegate_core.settings`: its reader, its way back to TOML, and the words that
tell an operator what is accepted. Readers raise ValueError, with a reason only where the words do not say it.
"""

import re
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from tidegate_agent.firewall_mark import ByMark
from tidegate_agent.registry_host import HOST_FORM, RegistryHost
from tidegate_core.quantity import (
    DURATION_FORM,
    SIZE_FORM,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from tidegate_core.settings import Form, listed
from tidegate_proxy.endpoint import Endpoint, IPAddress
from tidegate_proxy.upstreams.tier_url import TierUrl


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_size(_text(value))


def _port(value: object) -> int:
    port = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ValueError
    return port


def _path(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError(f"{path} is relative")
    return path


def _password_file(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _username(value: object) -> str:
    name = _text(value)
    if ":" in name or not name.isprintable():
        raise ValueError
    return name


def _host(value: object) -> str:
    host = _text(value).lower().rstrip(".")
    if not host.isascii() or not all(c.isalnum() or c in ".-" for c in host):
        raise ValueError
    return host


def _lease(value: object) -> timedelta:
    lease = parse_duration(_text(value))
    if not timedelta(seconds=1) <= lease <= timedelta(seconds=60):
        raise ValueError(
            "a shorter lease ends while the agent is merely busy, a longer one leaves pulls hanging"
        )
    return lease


def _tier_url(value: object) -> TierUrl:
    return TierUrl.parse(_text(value))


def _resolvers(value: object) -> Literal["system"] | tuple[IPAddress, ...]:
    if value == "system":
        return "system"
    addresses = listed(value)
    if not isinstance(addresses, list) or not addresses:
        raise ValueError
    return tuple(ip_address(_text(address)) for address in addresses)


def parse_listen(value: object) -> Endpoint:
    """Where to listen; raises ValueError."""
    host, _, port = _text(value).rpartition(":")
    return Endpoint.of(host.removeprefix("[").removesuffix("]"), 0 if port == "0" else _port(port))


def _regex(value: object) -> str:
    try:
        re.compile(_text(value))
    except re.error as error:
        raise ValueError(str(error)) from error
    return _text(value)


def _shown_resolvers(resolvers: str | tuple[IPAddress, ...]) -> object:
    return resolvers if isinstance(resolvers, str) else [str(address) for address in resolvers]


Size = Annotated[int, Form(accepted=SIZE_FORM, read=_size, show=format_size)]
Duration = Annotated[
    timedelta,
    Form(accepted=DURATION_FORM, read=lambda value: parse_duration(_text(value)), show=format_duration),
]
Lease = Annotated[
    timedelta, Form(accepted='a duration from "1s" to "60s"', read=_lease, show=format_duration)
]
Port = Annotated[int, Form(accepted="a port number from 1 to 65535", read=_port, show=int)]
AbsolutePath = Annotated[Path, Form(accepted="an absolute path", read=_path)]
PasswordFile = Annotated[
    Path,
    Form(accepted="the absolute path of a file that holds the password", read=_password_file, discreet=True),
]
Username = Annotated[
    str, Form(accepted="a name without a colon; the password goes into a file", read=_username, discreet=True)
]
TokenHost = Annotated[
    str, Form(accepted='a host name such as "gitlab.example.com", without scheme, port or path', read=_host)
]
Listen = Annotated[
    Endpoint,
    Form(
        accepted='an address and a port, such as "127.0.0.1:9077"; port 0 lets the kernel choose',
        read=parse_listen,
    ),
]
UpstreamUrl = Annotated[
    TierUrl,
    Form(accepted='a URL such as "http://proxy.example:3128"', read=_tier_url, discreet=True),
]
Resolvers = Annotated[
    Literal["system"] | tuple[IPAddress, ...],
    Form(accepted='"system" or a list of IP addresses', read=_resolvers, show=_shown_resolvers),
]
HostName = Annotated[
    RegistryHost, Form(accepted=HOST_FORM, read=lambda value: RegistryHost.parse(_text(value)))
]
Regex = Annotated[str, Form(accepted="a regular expression that the whole tag must match", read=_regex)]
FirewallMark = Annotated[
    ByMark,
    Form(accepted='a mark and its mask, such as "0x74/0xff"', read=lambda value: ByMark.parse(_text(value))),
]
