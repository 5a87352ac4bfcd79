"""What a reload may change, what has to wait for the trust store, and what a crash does not undo."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tidegate_agent.config import AgentConfig, CacheConfig, DnsConfig, SteeringConfig, load_config
from tidegate_agent.config_source import ConfigSource
from tidegate_agent.editions import Edition, Editions
from tidegate_agent.reload import restart_keys
from tidegate_agent.reload_view import reloaded

BASE = load_config(environment={})


def test_registries_modes_and_logins_can_be_reloaded() -> None:
    """C1, N11, C17."""
    other = replace(
        BASE, registry=BASE.registry[:2], default_registries=False, dns=DnsConfig(mode="sinkhole")
    )

    assert restart_keys(BASE, BASE) == ()
    assert restart_keys(BASE, other) == ()


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (
            replace(BASE, steering=SteeringConfig(port=9443, forwarded=True)),
            ["steering.port", "steering.forwarded"],
        ),
        (replace(BASE, cache=CacheConfig(stale_max=timedelta(days=1))), ["cache.stale_max"]),
        (replace(BASE, state_dir=Path("/srv/tidegate")), ["state_dir"]),
        (replace(BASE, dns=DnsConfig(resolvers=())), ["dns.resolvers"]),
    ],
)
def test_what_only_a_start_can_change_is_named(other: AgentConfig, keys: list[str]) -> None:
    """C1, DESIGN 8: by its key, as it stands in the file."""
    assert sorted(restart_keys(BASE, other)) == sorted(keys)


OLD = Edition.of(b"old", ["ghcr.io", "*.gcr.io"])
NEW = Edition.of(b"new", ["*.gcr.io", "quay.io"])
NEWEST = Edition.of(b"newest", ["ghcr.io", "quay.io", "*.gcr.io"])


def test_what_every_edition_covers_does_not_wait() -> None:
    """I3, N8: nobody knows which of them the next client reads."""
    editions = Editions((OLD,)).reissued(NEW)

    assert editions.certificates == (b"new", b"old")
    assert editions.waiting(["*.gcr.io", "eu.gcr.io", "quay.io"]) == ("quay.io",)
    assert editions.reissued(NEW) is editions
    # What was taken away and comes back waits as well: the one in between lacks it.
    assert editions.reissued(NEWEST).waiting(["ghcr.io", "quay.io", "*.gcr.io"]) == ("ghcr.io", "quay.io")


def test_an_edition_that_is_installed_ends_those_before_it() -> None:
    """I3, N8: and not those after it, which may be installed any moment."""
    editions = Editions((OLD,)).reissued(NEW).reissued(NEWEST)

    assert editions.installed(b"new").certificates == (b"newest", b"new")
    assert editions.installed(b"new").waiting(["ghcr.io", "quay.io"]) == ("ghcr.io",)
    assert editions.installed(b"newest").waiting(["ghcr.io", "quay.io"]) == ()
    assert editions.installed(b"another's") == editions


def test_a_deep_name_is_not_vouched_for_by_its_likeness() -> None:
    """N8: names end at labels."""
    assert OLD.covers("eu.gcr.io")
    assert not OLD.covers("notgcr.io")
    assert not OLD.covers("*.quay.io")


def test_what_was_accepted_is_kept_as_it_was_and_for_its_owner_alone(tmp_path: Path) -> None:
    """C1, I1: the file may be half written when the agent crashes."""
    file, runtime = tmp_path / "agent.toml", tmp_path / "run"
    runtime.mkdir()
    file.write_text(f'runtime_dir = "{runtime}"\n')
    source = ConfigSource(file=file, assignments={"cache.stale_max": "1d"})
    at_start = source.load()
    assert source.accepted(at_start) is at_start

    file.write_text(f'runtime_dir = "{runtime}"\ndns.mode = "sinkhole"\n')
    source.accept(runtime)
    file.write_text("no configuration")

    assert source.accepted(at_start) == replace(at_start, dns=DnsConfig(mode="sinkhole"))
    (kept,) = runtime.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text("no configuration")
    assert source.accepted(at_start) is at_start
    source.forget(runtime)
    source.forget(runtime)
    assert list(runtime.iterdir()) == []


def test_the_command_tells_what_came_what_went_and_what_waits() -> None:
    """DESIGN 9: with what to type."""
    answer = (
        '{"added":["a.example:5000"],"removed":["quay.io"],"changed":["registry"],'
        '"waiting":["a.example"],"next_step":"sudo tidegate trust install"}'
    )

    assert reloaded(answer).splitlines() == [
        "reloaded",
        "  changed  registry",
        "  added    a.example:5000",
        "  removed  quay.io",
        "  waiting  a.example: until the trust store holds the reissued certificate",
        "  to do    sudo tidegate trust install",
    ]
    nothing = '{"added":[],"removed":[],"changed":[],"waiting":[],"next_step":""}'
    assert reloaded(nothing) == "reloaded: nothing has changed"
