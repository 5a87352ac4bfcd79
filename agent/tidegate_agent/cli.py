"""The command line, `tidegate`: the daemons, what asks them, trust, config, demo; `cache.commands` has more.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. Errors go to standard error as their cause and
the next thing to type. Every command imports what it needs when it runs: `tidegate status` must not load a
data plane, and the agent's supervisor must stay small. Nothing is decided here.
"""

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click

from tidegate_agent import __version__
from tidegate_agent.cache.commands import cache, export, import_, pull
from tidegate_core.errors import TidegateError, UsageError

CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    envvar="TIDEGATE_CONFIG",
    metavar="FILE",
    help="Configuration file. [default: /etc/tidegate/agent.toml where it exists]",
)
CENTRAL_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    envvar="TIDEGATE_CONFIG",
    metavar="FILE",
    help="Configuration file. [default: /etc/tidegate/central.toml where it exists]",
)
ROLE = click.option(
    "--role",
    type=click.Choice(["agent", "central"]),
    help="Whose configuration it is. [default: by what is in the file, and by its name]",
)
SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one key of the configuration, such as cache.max_size=10GiB. May be repeated.",
)
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Print what would change on this machine and change nothing."
)
ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    default=Path("/"),
    metavar="DIR",
    help="Work on the system whose root directory is DIR, to build an image.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tidegate", message="%(prog)s %(version)s")
def tidegate() -> None:
    """A node-local container registry cache that nobody has to configure."""


@tidegate.command()
@CONFIG
@SET
@DRY_RUN
def agent(file: Path | None, assignments: tuple[str, ...], dry_run: bool) -> int:
    """Run the node daemon in the foreground."""
    from tidegate_agent.config_source import ConfigSource

    source = ConfigSource(file=file, assignments=_assigned(assignments))
    config = source.load()
    from tidegate_agent.main import start

    return start(config, source, dry_run=dry_run)


@tidegate.command()
@CENTRAL_CONFIG
@SET
def central(file: Path | None, assignments: tuple[str, ...]) -> int:
    """Run the central tier in the foreground: a mirror and a proxy for other machines' pulls."""
    from tidegate_agent.central.main import start

    return start(file, command_line=_assigned(assignments))


@tidegate.command()
@CONFIG
@ROLE
@click.option("--json", "as_json", is_flag=True, help="Print the documented JSON form.")
def status(file: Path | None, role: str | None, as_json: bool) -> int:
    """Show what the running agent steers, learns and serves; or the central tier, where that runs alone."""
    from tidegate_agent.admin_request import request_status
    from tidegate_agent.role import role_that_runs, socket_of

    role = role or role_that_runs(file, environment=os.environ)
    text = request_status(socket_of(role, file, environment=os.environ), role=role)
    if as_json:
        click.echo(text)
        return 0
    if role == "central":
        from tidegate_agent.central.status import print_status
    else:
        from tidegate_agent.status_view import print_status
    print_status(text)
    return 0


@tidegate.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print the documented JSON form.")
def doctor(file: Path | None, as_json: bool) -> int:
    """Say why pulls are not cached, and what to type. Exit code 1 when something is wrong."""
    from tidegate_agent.checkup import examine
    from tidegate_agent.config import load_config
    from tidegate_agent.doctor import text_of

    found = examine(load_config(file, environment=os.environ))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo("\n".join(text_of(found)))
    return 0 if found.ok else 1


@tidegate.command()
@CONFIG
@click.option("--for", "duration", metavar="DURATION", help="Resume by itself after this time, such as 10m.")
def pause(file: Path | None, duration: str | None) -> int:
    """Stop steering at once: pulls go direct until `tidegate resume`, and the agent keeps its cache."""
    from tidegate_agent.admin_request import request_pause
    from tidegate_agent.config import load_config
    from tidegate_agent.steering_view import pause_duration, paused

    wanted = None if duration is None else pause_duration(duration)
    answer = request_pause(load_config(file, environment=os.environ).socket_path, wanted)
    click.echo(paused(answer))
    return 0


@tidegate.command()
@CONFIG
def resume(file: Path | None) -> int:
    """Steer again after a pause. Exit code 1 when something else keeps the agent from it."""
    from tidegate_agent.admin_request import request_resume
    from tidegate_agent.config import load_config
    from tidegate_agent.steering_view import resumed

    click.echo(resumed(request_resume(load_config(file, environment=os.environ).socket_path)))
    return 0


@tidegate.command()
@CONFIG
def reload(file: Path | None) -> int:
    """Have the agent follow its changed configuration, without dropping a transfer.

    Exit code 2 when the new one is refused: the old one goes on then.
    """
    from tidegate_agent.admin_request import request_reload
    from tidegate_agent.config import load_config
    from tidegate_agent.reload_view import reloaded

    click.echo(reloaded(request_reload(load_config(file, environment=os.environ).socket_path)))
    return 0


@tidegate.group()
def trust() -> None:
    """The certificate of this node's authority in the system's trust store."""


@trust.command("install")
@CONFIG
@ROOT
@DRY_RUN
def trust_install(file: Path | None, root: Path, dry_run: bool) -> int:
    """Make the authority where it is missing and trust its certificate. Safe to run again."""
    from tidegate_agent.config import load_config
    from tidegate_agent.trust import operations

    config = load_config(file, environment=os.environ)
    for line in operations.install(config, root=root, now=datetime.now(UTC), dry_run=dry_run):
        click.echo(line)
    return 0


@trust.command("remove")
@CONFIG
@ROOT
@DRY_RUN
def trust_remove(file: Path | None, root: Path, dry_run: bool) -> int:
    """Stop trusting it. The authority itself stays in the state directory."""
    from tidegate_agent.config import load_config
    from tidegate_agent.trust import operations

    for line in operations.remove(load_config(file, environment=os.environ), root=root, dry_run=dry_run):
        click.echo(line)
    return 0


@trust.command("status")
@CONFIG
@ROOT
def trust_status(file: Path | None, root: Path) -> int:
    """Say whether the store trusts it, which certificate that is, and what to type. Exit code 1 if not."""
    from tidegate_agent.config import load_config
    from tidegate_agent.trust import operations

    state = operations.status(load_config(file, environment=os.environ), root=root)
    click.echo(f"store        {state.store}")
    click.echo(f"trusted      {'yes' if state.trusted else 'no'}")
    click.echo(f"certificate  {state.certificate}{'' if state.fingerprint else ' (does not exist)'}")
    if state.fingerprint:
        click.echo(f"sha256       {state.fingerprint}")
        click.echo(f"names        {', '.join(state.names)}")
    if state.action:
        click.echo(f"to do        {state.action}")
    return 0 if state.trusted else 1


@tidegate.group()
def config() -> None:
    """Check a configuration, or show the one in effect."""


@config.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@ROLE
def config_check(file: Path, role: str | None) -> int:
    """Say whether FILE is a valid configuration. The environment is left out."""
    from tidegate_agent.role import load_config_of, role_of

    checked = load_config_of(role or role_of(file), file, environment={})
    click.echo(f"{file}: ok, {len(checked.registry)} registries, {len(checked.host_patterns)} hosts")
    return 0


@config.command("hosts")
@CONFIG
def config_hosts(file: Path | None) -> int:
    """List the hosts that are steered, one a line; *.x stands for exactly one label."""
    from tidegate_agent.config import load_config

    for pattern in load_config(file, environment=os.environ).host_patterns:
        click.echo(pattern)
    return 0


@config.command("show")
@CONFIG
@SET
@ROLE
def config_show(file: Path | None, assignments: tuple[str, ...], role: str | None) -> int:
    """Print the configuration in effect as TOML: defaults, file, environment and command line together."""
    from tidegate_agent.role import load_config_of, role_of
    from tidegate_core.settings import show_settings

    role = role or role_of(file)
    loaded = load_config_of(role, file, environment=os.environ, command_line=_assigned(assignments))
    click.echo(show_settings(loaded), nl=False)
    return 0


@tidegate.command()
@SET
def demo(assignments: tuple[str, ...]) -> int:
    """Play a minute of it in a throw-away lab: cold pull, warm pull, registry unplugged, kill -9.

    The lab is made of network namespaces, needs root and no network, and is part of the source checkout.
    """
    _assigned(assignments)
    from tidegate_agent.demo import play

    return play(assignments)


for command in (cache, pull, export, import_):
    tidegate.add_command(command)


def _assigned(assignments: tuple[str, ...]) -> Mapping[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for key, equals, _ in pairs:
        if not equals:
            raise UsageError(f"--set {key} has no value", next_step=f"write --set {key}=VALUE")
    return {key.strip(): text for key, _, text in pairs}


def main() -> None:
    """The console script: runs a command and turns what it raises into words and an exit code."""
    try:
        code = tidegate.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 130
    except TidegateError as error:
        click.echo(f"tidegate: {error.cause}", err=True)
        if error.next_step:
            click.echo(f"  {error.next_step}", err=True)
        code = 2 if isinstance(error, UsageError) else 1
    sys.exit(code)
