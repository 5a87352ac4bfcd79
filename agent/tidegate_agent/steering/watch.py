"""The table that watches: it copies the first words of TLS connections that nobody redirected; pure.

It steers nothing and drops nothing, and goes with its process as the others do. Its chains come after every
redirection, so what they see goes to where its client wanted it: this host's own connections in one chain, in
the other those of hosts and containers behind this one. Connection tracking is not needed, and nothing is
copied but ClientHellos (RFC 8446 4.1.2): all else costs a comparison or two.

Not seen: names inside an encrypted ClientHello, a hello in several segments or with TCP options of its own
(MPTCP), and whatever is neither TCP nor TLS.
"""

from collections.abc import Iterable

from tidegate_agent.steering.exemption import Exemption
from tidegate_agent.steering.observation import TCP_HEADER_WORDS, AtMost, BeginsHello, Log
from tidegate_agent.steering.statement import NotOver, Return, Rule, ToPort, exempt_rule
from tidegate_agent.steering.table import Chain, OutputHook, Table

WATCH = "tidegate_watch"
OWN = "tidegate own"
"""The prefix of what this host's own clients say."""
FORWARDED = "tidegate forwarded"
"""The prefix of what comes from elsewhere and goes on."""

_AFTER_OTHERS = 10
_COPIED_BYTES = 4096
_MOST = AtMost(per_second=50, burst=200)


def watch_table(*, exemption: Exemption, ports: Iterable[int], group: int) -> Table:
    """The table for connections to these ports, logged to this group."""
    ports = sorted(set(ports))
    return Table(
        name=WATCH,
        owned=True,
        chains=(
            Chain(
                name="own",
                hook=OutputHook(type="filter", priority=_AFTER_OTHERS),
                rules=(
                    (NotOver(l4="tcp"), Return()),
                    exempt_rule(exemption),
                    *_hellos(ports, Log(group=group, prefix=OWN, copied_bytes=_COPIED_BYTES)),
                ),
            ),
            Chain(
                name="forwarded",
                hook=OutputHook(type="filter", priority=_AFTER_OTHERS, at="forward"),
                rules=(
                    (NotOver(l4="tcp"), Return()),
                    *_hellos(ports, Log(group=group, prefix=FORWARDED, copied_bytes=_COPIED_BYTES)),
                ),
            ),
        ),
    )


def _hellos(ports: Iterable[int], log: Log) -> Iterable[Rule]:
    for port in ports:
        for words in TCP_HEADER_WORDS:
            yield (ToPort(l4="tcp", port=port), BeginsHello(tcp_header_words=words), _MOST, log)
