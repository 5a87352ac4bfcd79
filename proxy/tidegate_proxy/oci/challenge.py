"""Authentication challenges: the WWW-Authenticate field, RFC 9110 section 11.6.1.

With `Bearer realm=,service=,scope=,error=` (RFC 6750 section 3) a registry says where a token is to
be had, or it asks for Basic. One field line can hold several challenges, separated by the same comma as
their parameters. Malformed input ends the reading of a line: what was read before it stands.

This module does not ask for tokens, and a realm is as trustworthy as whoever sent it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|$)[ \t]*")
_TOKEN68 = re.compile(r"[0-9A-Za-z._~+/-]+=*[ \t]*(?=,|$)")
# More than the grammar: values without quotes that are no tokens (a URL), and a space in place of the comma.
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^ \t",]+))(?=[ \t,]|$)', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate; `str` gives a field value that parses back.

    The scheme is spelled as `Bearer` and `Basic` are, the names of parameters are in lower case.
    A token68, as Negotiate sends one, is not kept.
    """

    scheme: str
    parameters: Mapping[str, str]

    def __str__(self) -> str:
        pairs = (f'{name}="{_quoted_pairs(value)}"' for name, value in self.parameters.items())
        return f"{self.scheme} {','.join(pairs)}".rstrip()


def parse_challenges(header_values: Iterable[str]) -> tuple[Challenge, ...]:
    """The challenges of every WWW-Authenticate line of an answer, in order."""
    return tuple(challenge for value in header_values for challenge in _challenges(value))


def _challenges(value: str) -> list[Challenge]:
    read: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _after_separators(value, position)) < len(value):
        if read and (parameter := _PARAMETER.match(value, position)):
            name, quoted, bare = parameter.groups()
            # A name may occur once; of a repeated one the first stands.
            read[-1][1].setdefault(name.lower(), bare or _QUOTED_PAIR.sub(r"\1", quoted or ""))
            position = parameter.end()
        elif scheme := _SCHEME.match(value, position):
            read.append((scheme[1].capitalize(), {}))
            position = scheme.end()
            if token68 := _TOKEN68.match(value, position):
                position = token68.end()
        else:
            break
    return [Challenge(scheme, MappingProxyType(parameters)) for scheme, parameters in read]


def _quoted_pairs(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _after_separators(value: str, position: int) -> int:
    while position < len(value) and value[position] in " \t,":
        position += 1
    return position
