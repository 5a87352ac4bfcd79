"""By what the rules tell the agent's own traffic: its user, or a mark where it has no user of its own (I5).

Every socket of a user is exempt by uid, the supervisor's and those of libraries too, and no right is needed
for it. As root that would exempt everything that root pulls, so a mark is set on each socket instead.
"""

from tidegate_agent.firewall_mark import ByMark
from tidegate_agent.steering.exemption import ByUid, Exemption


def exemption(mark: ByMark, *, uid: int) -> Exemption:
    """For an agent that runs as `uid`; the configured mark is root's alone."""
    return ByUid(uid=uid) if uid != 0 else mark
