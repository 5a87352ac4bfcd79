"""central.toml, and whose file is whose."""

from datetime import timedelta
from pathlib import Path

import pytest

from tidegate_agent.central.config import NOT_YET, CentralConfig, load_config
from tidegate_agent.central.names import own_names
from tidegate_agent.config import RegistryConfig, TagTier
from tidegate_agent.registry_host import RegistryHost
from tidegate_agent.role import role_of
from tidegate_core.errors import UsageError
from tidegate_core.settings import show_settings


def load(tmp_path: Path, toml: str, **environment: str) -> CentralConfig:
    file = tmp_path / "central.toml"
    file.write_text(toml)
    return load_config(file, environment=environment)


def complaint(tmp_path: Path, toml: str) -> str:
    with pytest.raises(UsageError) as refusal:
        load(tmp_path, toml)
    return str(refusal.value)


def test_an_empty_file_is_a_working_tier(tmp_path: Path) -> None:
    """DESIGN 8: both doors in both families, near addresses alone, no pushes."""
    config = load(tmp_path, "")

    assert [str(each) for each in config.mirror.listen] == ["0.0.0.0:5443", "[::]:5443"]
    assert [str(each) for each in config.connect.listen] == ["0.0.0.0:3128", "[::]:3128"]
    assert config.connect.others == "tunnel"
    assert not config.push.allow
    assert len(config.registry) == 10


def test_what_is_shown_reads_back(tmp_path: Path) -> None:
    """DESIGN 9: `config show` of any configuration is that configuration."""
    config = load(
        tmp_path,
        '[mirror]\nlisten = "127.0.0.1:1"\nnames = ["c.example"]\n[access]\nallow = ["10.0.0.0/8"]\n[push]\n',
        TIDEGATE_CONNECT__LISTEN="127.0.0.1:2, [::1]:2",
        TIDEGATE_IPV6="false",
    )
    again = load(tmp_path, show_settings(config))

    assert again == config
    assert [str(each) for each in config.connect.listen] == ["127.0.0.1:2", "[::1]:2"]
    assert not config.push.allow


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[mirror]\nnames = ["10.0.0.1"]', "[mirror] certificate and key"),
        ('[mirror]\ncertificate = "/a"', "`mirror` has no `key`"),
        ('[mirror]\ncertificate = "/a"\nkey = "/b"\nnames = ["a.b"]', "remove one of them"),
        ('[access]\nallow = ["10.0.0.1/8"]', "host bits"),
        ('[connect]\nother = "refuse"', "did you mean `connect.others`?"),
        ("[steering]\nport = 1", "unknown key `steering`"),
        ('[[tags]]\nmatch = "x"\nfresh_for = "1m"\nregistry = "quay.oi"', "did you mean 'quay.io'"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_type(tmp_path: Path, toml: str, words: str) -> None:
    """DESIGN 8: nothing is ignored."""
    assert words in complaint(tmp_path, toml)


def test_only_what_is_still_missing_is_in_the_table_of_it() -> None:
    """DESIGN 8: path prefixes come later."""
    assert set(NOT_YET) == {'[[upstream]] of kind "mirror"'}


def test_tiers_of_the_environment_come_behind_those_configured(tmp_path: Path) -> None:
    """C5, T1: the first match wins."""
    file = tmp_path / "central.toml"
    file.write_text('[[tags]]\nmatch = "stable"\nfresh_for = "1m"')
    last = TagTier(match=".*", fresh_for=timedelta(hours=1))
    config = load_config(file, environment={}, last_tags=[last])

    assert [tier.match for tier in config.tags] == ["stable", ".*"]


def test_registries_of_the_environment_are_added_where_none_has_their_hosts() -> None:
    """T1: REGISTRIES never changes a registry that is configured."""
    quay, hub, mine = (
        RegistryConfig(name=name, hosts=(RegistryHost.parse(name),))
        for name in ("quay.io", "docker.io", "mine.example")
    )
    config = load_config(None, environment={}, also=[quay, hub, mine])

    names = [entry.name for entry in config.registry]
    assert (names.count("quay.io"), names.count("docker.io")) == (1, 1)
    assert config.registry[-1] == mine


@pytest.mark.parametrize(
    ("name", "toml", "role"),
    [
        ("central.toml", "", "central"),
        ("agent.toml", "", "agent"),
        ("x.toml", "[mirror]", "central"),
        ("x.toml", "[access]", "central"),
        ("x.toml", "[cache]", "agent"),
        ("central.toml", "[dns]", "agent"),
        ("x.toml", "[dns]\n[mirror]", "agent"),
    ],
)
def test_a_file_tells_whose_it_is_by_its_tables_and_then_by_its_name(
    tmp_path: Path, name: str, toml: str, role: str
) -> None:
    """DESIGN 9: `config check` needs no option."""
    (tmp_path / name).write_text(toml)

    assert role_of(tmp_path / name) == role


def test_a_machine_is_called_by_its_name_and_what_its_hosts_file_adds() -> None:
    """I7: names come from the machine, never from a client; what is no host name is left out."""
    hosts = "127.0.1.1 Central.example.org central # x\n10.0.0.1 other\n::1 central bad_name *.wild\n"

    assert own_names("central", hosts) == ("central", "central.example.org", "localhost")
    assert own_names("bad_name", "") == ("localhost",)
