"""Questions and answers as they are found on networks, byte for byte, and a server that replays them.

`pairs(parent)` has more than two hundred, each for a name of its own below `parent`: well-formed ones of
every common type (made with dnslib and scapy), EDNS, truncation and sizes, and broken ones. `replayer` is
the server.
"""

from dns_corpus.broken import broken
from dns_corpus.edns import extended
from dns_corpus.pair import TTL, Names, Pair, differs_only_in_ttls
from dns_corpus.shapes import shaped
from dns_corpus.types import typed

__all__ = ["TTL", "Pair", "differs_only_in_ttls", "pairs"]


def pairs(parent: str) -> list[Pair]:
    """Every pair, for names below `parent`."""
    names = Names(parent)
    return [*typed(names), *shaped(names), *extended(names), *broken(names)]
