"""Where the configuration in effect came from, to be read again by a reload and after a crash.

An agent that crashed is started again by its supervisor, which knows the configuration of the start alone.
What a reload accepted since is kept beside the lock, as the file was then: not as the file is by now, which
nobody may have accepted. It goes with the service's end.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate_agent.config import DEFAULT_FILE, AgentConfig, load_config
from tidegate_core.errors import TidegateError

_ACCEPTED = "accepted.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSource:
    """A file, or none, under the environment and what the command line assigned."""

    file: Path | None
    assignments: Mapping[str, str]

    def load(self) -> AgentConfig:
        """As it is now; raises UsageError."""
        return load_config(self.file, environment=os.environ, command_line=self.assignments)

    def accept(self, runtime_dir: Path) -> None:
        """Keep the file as it is; raises OSError."""
        file = self.file or DEFAULT_FILE
        if self.file is None and not file.exists():
            self.forget(runtime_dir)
            return
        kept = runtime_dir / _ACCEPTED
        new = kept.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            copy.write(file.read_bytes())
        new.replace(kept)

    def accepted(self, at_start: AgentConfig) -> AgentConfig:
        """What was accepted last; the configuration of the start where nothing was, or it cannot be read."""
        kept = at_start.runtime_dir / _ACCEPTED
        try:
            return replace(self, file=kept).load() if kept.exists() else at_start
        except (TidegateError, OSError):
            return at_start

    def forget(self, runtime_dir: Path) -> None:
        """Idempotent."""
        with suppress(OSError):
            (runtime_dir / _ACCEPTED).unlink()
