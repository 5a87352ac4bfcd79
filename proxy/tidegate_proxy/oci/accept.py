"""Which media types a client takes: the Accept field, RFC 9110 section 12.5.1.

Clients send the same preferences in one line or in six, and dockerd in random order: equal `Accept`
values mean the same, so that they can key a cache. Members that do not parse are skipped, and
parameters other than `q` are ignored, because registry media types have none.
This module does not choose among representations and does not know Accept-Encoding.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_TOKEN = r"[!#$%&'*+.^_`|~0-9a-z-]+"
_MEDIA_RANGE = re.compile(rf"\*/\*|(?!\*/){_TOKEN}/{_TOKEN}")  # `*` is a token, too
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class Accept:
    """Media ranges with their weights in thousandths, sorted; none at all takes everything.

    `str` gives a field value that parses back, and is empty when there is no need to send one.
    """

    ranges: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, header_values: Iterable[str]) -> Self:
        """Read every Accept line of a request; order, case and repetition make no difference."""
        weights: dict[str, int] = {}
        for value in header_values:
            # A quoted string can hide a comma; what it says is never of interest.
            for member in _QUOTED.sub('""', value.lower()).split(","):
                media_range, *parameters = (part.strip(" \t") for part in member.split(";"))
                weight = _weight(parameters)
                if weight is not None and _MEDIA_RANGE.fullmatch(media_range):
                    weights[media_range] = max(weight, weights.get(media_range, 0))
        return cls(tuple(sorted(weights.items())))

    def allows(self, media_type: str) -> bool:
        """Whether the client takes a representation of this media type."""
        return self.weight(media_type) > 0

    def weight(self, media_type: str) -> int:
        """How much it is wanted, 0 (not at all) to 1000; the most specific range that matches decides."""
        if not self.ranges:
            return 1000
        weights = dict(self.ranges)
        media_type = media_type.partition(";")[0].strip(" \t").lower()
        for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
            if media_range in weights:
                return weights[media_range]
        return 0

    def __str__(self) -> str:
        return ", ".join(
            media_range if weight == 1000 else f"{media_range};q={weight / 1000:g}"
            for media_range, weight in self.ranges
        )


def _weight(parameters: list[str]) -> int | None:
    """The weight in thousandths, 1000 when none is given, None when it is malformed."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            return round(float(value) * 1000) if _WEIGHT.fullmatch(value) else None
    return 1000
