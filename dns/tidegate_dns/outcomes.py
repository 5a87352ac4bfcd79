"""What becomes of queries: the values of the responder's one counter, and how they add up.

Every query is counted once as it arrives. What comes of it afterwards is counted beside that, so a query that
was forwarded and then answered stale is two counts and one query.
"""

from collections.abc import Callable

ARRIVED = ("hit", "stale", "forwarded", "local", "ignored", "dropped")
"""Exactly one of these for every query: their sum is how many there were."""

AFTERWARDS = ("forwarded_stale", "unreachable", "unanswered", "undelivered", "unsteered")
"""What was counted as arrived already."""

OUTCOMES = ARRIVED + AFTERWARDS

Observe = Callable[[str, int], None]
"""Takes an outcome and how often it came about."""
