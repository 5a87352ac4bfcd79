"""Wiring of `tidegate central`: environment and file -> configuration -> lock -> the tier."""

import os
from collections.abc import Mapping
from pathlib import Path

from tidegate_agent.central.config import load_config
from tidegate_agent.central.environment import SECRET, SECRET_FILE, Translation, is_secret, translate
from tidegate_agent.central.handover import become_without, taken_over
from tidegate_agent.single import SingleInstance
from tidegate_core.errors import UsageError
from tidegate_core.notify import Notifier

_MAX_SECRETS_BYTES = 1024 * 1024


def start(file: Path | None, *, command_line: Mapping[str, str]) -> int:
    """Run the tier until it is told to stop; the exit code."""
    become_without(os.environ, is_secret)
    environment = {**os.environ, **taken_over(os.environ)}
    translation = translate(_with_secrets(environment))
    twins = {name: value for name, value in translation.twins.items() if name not in environment}
    ours = {name: value for name, value in environment.items() if name.startswith("TIDEGATE_")}
    config = load_config(
        file,
        environment={**twins, **ours},
        command_line=command_line,
        also=translation.registries,
        last_tags=translation.tags,
    )
    _warn(translation)
    notifier = Notifier.of(os.environ, pid=os.getpid())
    with SingleInstance.acquire(config.runtime_dir, role="central"):
        from tidegate_agent.central.central import run

        return run(config, [entry.login() for entry in translation.logins], notifier)


def _with_secrets(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The same with the content of AUTH_REGISTRIES_FILE, its lines as good as spaces, as AUTH_REGISTRIES."""
    path = environment.get(SECRET_FILE, "")
    if not path or environment.get(SECRET):
        return environment
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_MAX_SECRETS_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"{SECRET_FILE}: {path} cannot be read: {reason}", next_step=f"ls -l {path}"
        ) from None
    delimiter = environment.get("AUTH_REGISTRIES_DELIMITER") or " "
    return {**environment, SECRET: delimiter.join(text.splitlines())}


def _warn(translation: Translation) -> None:
    if not translation.warnings:
        return
    import structlog

    from tidegate_core import log as logging

    logging.configure()
    for warning in translation.warnings:
        structlog.get_logger().warning("environment of docker-registry-proxy", cause=warning)
