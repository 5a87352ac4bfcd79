"""`tidegate cache`, `pull`, `export` and `import`: what the running agent is asked for, and shown.

Each command imports what it needs when it runs. Nothing is decided here.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from tidegate_core.errors import TidegateError, UsageError

CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    envvar="TIDEGATE_CONFIG",
    metavar="FILE",
    help="Configuration file. [default: /etc/tidegate/agent.toml where it exists]",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the documented JSON form.")
PLATFORM = click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Of an image for several platforms, this one. May be repeated. [default: this machine's]",
)
ALL_PLATFORMS = click.option("--all-platforms", is_flag=True, help="All platforms of the image.")


@click.group()
def cache() -> None:
    """List, purge and explain what the agent has cached."""


@cache.command("list")
@click.argument("repository", required=False)
@click.option("--untagged", is_flag=True, help="Manifests that no tag names, such as pulls by digest.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="A page's length."
)
@click.option("--after", default="", metavar="PLACE", help="Go on where the last page ended.")
@CONFIG
@AS_JSON
def cache_list(
    repository: str | None, untagged: bool, limit: int, after: str, file: Path | None, as_json: bool
) -> int:
    """List cached images, all or those of one REPOSITORY, a page at a time."""
    from tidegate_agent.cache import request, view
    from tidegate_proxy.operating.forms import Images

    query = {"in": repository or "", "untagged": str(int(untagged)), "after": after, "limit": str(limit)}
    page = request.get(_socket(file), "/v1/cache/images", query, Images)
    more = "tidegate cache list" + (f" {repository}" if repository else "") + " --untagged" * untagged
    _print(page, view.listed(page, more=f"{more} --limit {limit}"), as_json)
    return 0


@cache.command("stats")
@CONFIG
@AS_JSON
def cache_stats(file: Path | None, as_json: bool) -> int:
    """Show how much is stored, for which registries, and what it saved."""
    from tidegate_agent.cache import request, view
    from tidegate_proxy.operating.forms import Stats

    stats = request.get(_socket(file), "/v1/cache/stats", {}, Stats)
    _print(stats, view.figures(stats), as_json)
    return 0


@cache.command("purge")
@click.argument("ref", required=False)
@click.option("--all", "everything", is_flag=True, help="Everything that is cached.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@CONFIG
@AS_JSON
def cache_purge(ref: str | None, everything: bool, yes: bool, file: Path | None, as_json: bool) -> int:
    """Give up REF: a tag, a digest, or a repository with all its tags.

    What other cached images need stays. Pulls that are under way are not disturbed.
    """
    from tidegate_agent.cache import request, view
    from tidegate_proxy.operating.forms import Purged, PurgeOrder

    if everything == bool(ref):
        raise UsageError(
            "a purge names one reference, or --all",
            next_step="tidegate cache purge docker.io/library/nginx:1.27, or --all",
        )
    if everything and not yes and not _confirmed():
        click.echo("nothing was purged", err=True)
        return 1
    order = PurgeOrder(ref=ref or "", all=everything)
    done = request.post(_socket(file), "/v1/cache/purge", order, Purged)
    _print(done, view.purged(done), as_json)
    return 0


@cache.command("explain")
@click.argument("ref")
@CONFIG
@AS_JSON
def cache_explain(ref: str, file: Path | None, as_json: bool) -> int:
    """Say why the next pull of REF would be a hit or a miss, and what to type. Nobody is asked."""
    from tidegate_agent.cache import request, view
    from tidegate_proxy.operating.forms import Explained

    answer = request.get(_socket(file), "/v1/cache/explain", {"ref": ref}, Explained)
    _print(answer, view.explained(answer), as_json)
    return 0


@click.command("pull")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@PLATFORM
@ALL_PLATFORMS
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON.")
def pull(
    refs: tuple[str, ...], platforms: tuple[str, ...], all_platforms: bool, file: Path | None, as_json: bool
) -> int:
    """Pull images into the cache, before a client asks for them. Exit code 1 when one of them failed."""
    from tidegate_agent.cache import request
    from tidegate_proxy.operating.forms import PullEvent, PullOrder

    order = PullOrder(refs=list(refs), platforms=list(platforms), all_platforms=all_platforms)
    events = request.pull_events(_socket(file), order)
    failures: list[PullEvent] = []
    ended = False
    if as_json:
        import msgspec

        for event in events:
            click.echo(msgspec.json.encode(event).decode())
            failures += [event] * (event.event == "failed")
            ended = event.event == "end"
    else:
        from rich.console import Console

        from tidegate_agent.cache.progress import follow

        def counted() -> Iterator[PullEvent]:
            nonlocal ended
            for event in events:
                ended = event.event == "end"
                yield event

        failures = follow(counted(), Console(file=sys.stdout))
        for failed in failures:
            click.echo(f"tidegate: {failed.ref}: {failed.cause}", err=True)
            if failed.next_step:
                click.echo(f"  {failed.next_step}", err=True)
    if not ended:
        raise TidegateError("the agent ended in the middle of the pull", next_step="tidegate status")
    return 1 if failures else 0


@click.command("export")
@click.argument("ref")
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="A tar file; a directory; or - for standard output."
)
@PLATFORM
@ALL_PLATFORMS
@CONFIG
def export(ref: str, output: str, platforms: tuple[str, ...], all_platforms: bool, file: Path | None) -> int:
    """Write a cached image as an OCI image layout. No registry is asked."""
    from rich.filesize import decimal

    from tidegate_agent.cache import archive_files, request

    query: request.Query = {"ref": ref, "platform": list(platforms), "all_platforms": str(int(all_platforms))}
    with request.export(_socket(file), query) as answer:
        written = archive_files.write_archive(answer.read, output)
        name, left_out = answer.getheader("Tidegate-Image", ref), answer.getheader("Tidegate-Left-Out")
    click.echo(f"{name}: {decimal(written)} in {output}", err=True)
    if left_out:
        click.echo(f"left out, as they are not cached: {left_out}", err=True)
    return 0


@click.command("import")
@click.argument("source", metavar="FILE")
@click.option("--as", "name_as", default="", metavar="REF", help="What the image is called.")
@click.option(
    "--public",
    is_flag=True,
    help="All users may read its repository while the registry is dark.",
)
@CONFIG
@AS_JSON
def import_(source: str, name_as: str, public: bool, file: Path | None, as_json: bool) -> int:
    """Have an OCI image layout served: FILE is a tar, a directory, or - for standard input."""
    from tidegate_agent.cache import archive_files, request, view

    query = {"as": name_as, "public": str(int(public))}
    done = request.send_archive(_socket(file), query, archive_files.pieces_of(source))
    _print(done, view.imported(done), as_json)
    return 0


def _socket(file: Path | None) -> Path:
    from tidegate_agent.role import socket_of

    return socket_of("agent", file, environment=os.environ)


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            "everything would be purged, and nobody can be asked whether that is meant",
            next_step="tidegate cache purge --all --yes",
        )
    return click.confirm("Give up everything that is cached?")


def _print(answer: object, lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(answer).decode())
        return
    for line in lines:
        click.echo(line)
