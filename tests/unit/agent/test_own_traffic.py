"""By what the agent's own traffic is told."""

from tidegate_agent.firewall_mark import DEFAULT_MARK
from tidegate_agent.own_traffic import exemption
from tidegate_agent.steering import ByMark, ByUid


def test_an_agent_with_a_user_of_its_own_is_exempt_by_uid() -> None:
    """I5: every socket of the user, whoever opened it."""
    assert exemption(DEFAULT_MARK, uid=995) == ByUid(uid=995)


def test_root_is_exempt_by_mark_alone() -> None:
    """I5: what root pulls is to be steered."""
    assert exemption(DEFAULT_MARK, uid=0) == ByMark(value=0x74, mask=0xFF)
