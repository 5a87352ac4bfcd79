"""The root of Tidegate's errors, and the reactions every part of the program shares.

An error carries its cause as facts and, where a person meets it, the next thing to type.
Domain errors (a digest that does not match, an upstream that is dark) live beside the code
that raises them and derive from `TidegateError`.
"""


class TidegateError(Exception):
    """Something went wrong for a reason that can be told: `cause`, and `next_step` to type or check."""

    def __init__(self, cause: str, *, next_step: str = "") -> None:
        super().__init__(f"{cause}\n  {next_step}" if next_step else cause)
        self.cause = cause
        self.next_step = next_step


class UsageError(TidegateError):
    """The command line or the configuration is wrong: exit code 2."""


class StartRefused(TidegateError):
    """The machine is not in a state to start on (no privilege, no space, somebody else runs): exit code 1."""
