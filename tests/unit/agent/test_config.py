"""The agent's configuration: its defaults, its registries, and what it refuses."""

from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.config import DEFAULT_REGISTRIES, NOT_YET, AgentConfig, load_config
from tidegate_agent.firewall_mark import ByMark
from tidegate_agent.registry_host import RegistryHost
from tidegate_core.errors import UsageError
from tidegate_core.settings import show_settings


def configured(tmp_path: Path, toml: str = "", **environment: str) -> AgentConfig:
    """The configuration from a file and an environment."""
    file = tmp_path / "agent.toml"
    file.write_text(toml)
    return load_config(file, environment=environment)


def complaint(tmp_path: Path, toml: str) -> str:
    """What an operator is told about a mistake, cause and next step."""
    with pytest.raises(UsageError) as caught:
        configured(tmp_path, toml)
    return str(caught.value)


def test_an_empty_file_is_a_working_agent(tmp_path: Path) -> None:
    """DESIGN 8: the documented defaults."""
    config = configured(tmp_path)

    assert config.state_dir == Path("/var/lib/tidegate")
    assert config.socket_path == Path("/run/tidegate/agent.sock")
    assert (config.steering.backend, config.steering.lease, config.steering.port) == (
        "auto",
        timedelta(seconds=3),
        8443,
    )
    assert config.steering.mark == ByMark(value=0x74, mask=0xFF)
    assert (config.dns.resolvers, config.dns.mode) == ("system", "learn")
    assert (config.cache.max_size, config.cache.min_free) == (32 * 2**30, 5 * 2**30)
    assert (config.cache.durability, config.cache.stale_max) == ("fsync", timedelta(days=30))
    assert str(config.admin.listen) == "127.0.0.1:9077"
    assert config.push.allow


def test_the_built_in_registries_are_those_of_the_design(tmp_path: Path) -> None:
    """N1: nobody has to list a registry."""
    assert configured(tmp_path).host_patterns == (
        "registry-1.docker.io",
        "index.docker.io",
        "ghcr.io",
        "quay.io",
        "registry.k8s.io",
        "gcr.io",
        "*.gcr.io",
        "*.pkg.dev",
        "mcr.microsoft.com",
        "public.ecr.aws",
        "nvcr.io",
        "registry.gitlab.com",
    )


def test_every_key_of_the_file_is_read(tmp_path: Path) -> None:
    """DESIGN 8: each documented key, with another value than its default."""
    config = configured(
        tmp_path,
        """
        state_dir = "/srv/tidegate"
        runtime_dir = "/run/other"
        default_registries = false
        [steering]
        backend = "none"
        lease = "5s"
        mark = "0x1000/0xf000"
        port = 9443
        [dns]
        resolvers = ["192.0.2.53", "fe80::1%eth0"]
        [[registry]]
        name = "lab"
        hosts = ["Registry.Example.", "*.lab.example"]
        [cache]
        max_size = "1GiB"
        min_free = "0"
        durability = "relaxed"
        stale_max = "1h30m"
        [[upstream]]
        kind = "direct"
        [admin]
        listen = "[::1]:0"
        """,
    )

    assert (config.state_dir, config.runtime_dir) == (Path("/srv/tidegate"), Path("/run/other"))
    assert (config.steering.backend, config.steering.port) == ("none", 9443)
    assert (config.steering.lease, config.steering.mark) == (
        timedelta(seconds=5),
        ByMark(value=0x1000, mask=0xF000),
    )
    assert config.dns.resolvers == (ip_address("192.0.2.53"), ip_address("fe80::1%eth0"))
    assert config.host_patterns == ("registry.example", "*.lab.example")
    assert (config.cache.max_size, config.cache.min_free) == (2**30, 0)
    assert (config.cache.durability, config.cache.stale_max) == ("relaxed", timedelta(minutes=90))
    assert str(config.admin.listen) == "[::1]:0"


def test_what_is_shown_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    """DESIGN 9: `config show` prints a file that could be used."""
    config = configured(
        tmp_path, '[dns]\nresolvers = ["::1"]\n[[registry]]\nname = "x"\nhosts = ["x.example"]'
    )

    assert configured(tmp_path, show_settings(config)) == config


def test_a_login_in_an_upstreams_url_is_never_shown(tmp_path: Path) -> None:
    """T2, T8: it is for the tier alone; `config show` prints the URL without it."""
    config = configured(
        tmp_path, '[[upstream]]\nkind = "connect"\nurl = "http://node:s3cret@proxy.example:3128"'
    )

    url = config.upstream[0].url
    assert url is not None
    assert url.login == ("node", "s3cret")
    assert 'url = "http://proxy.example:3128"' in show_settings(config)
    assert "s3cret" not in f"{show_settings(config)} {config!r} {url}"
    told = complaint(tmp_path, '[[upstream]]\nkind = "connect"\nurl = "htp://node:s3cret@proxy.example"')
    assert "`upstream[0].url` is not accepted: it must begin with http://" in told
    assert "s3cret" not in told


def test_resolvers_in_the_environment_are_comma_separated_addresses(tmp_path: Path) -> None:
    """DESIGN 8: environment twins of lists."""
    read = configured(tmp_path, TIDEGATE_DNS__RESOLVERS="192.0.2.1, 2001:db8::1").dns.resolvers

    assert read == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))


def test_an_entry_merges_with_the_built_in_registry_of_its_name(tmp_path: Path) -> None:
    """DESIGN 8: [[registry]] entries merge with the built-in ones by name."""
    config = configured(
        tmp_path, '[[registry]]\nname = "docker.io"\nhosts = ["hub.example"]\n[[registry]]\nname = "quay.io"'
    )

    by_name = {entry.name: entry for entry in config.registry}
    assert [str(host) for host in by_name["docker.io"].hosts] == ["hub.example"]
    assert [str(host) for host in by_name["quay.io"].hosts] == ["quay.io"]
    assert len(config.registry) == len(DEFAULT_REGISTRIES)


def test_the_built_in_registries_can_be_dropped(tmp_path: Path) -> None:
    """DESIGN 8: default_registries = false."""
    config = configured(
        tmp_path, 'default_registries = false\n[[registry]]\nname = "x"\nhosts = ["x.example"]'
    )

    assert config.host_patterns == ("x.example",)


CONNECT = '[[upstream]]\nkind = "connect"\nurl = "http://proxy.example:3128"'


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("default_registries = false", "no registry is left to steer"),
        ('[[registry]]\nname = "x"', "has no hosts and is not a built-in registry"),
        ('[[registry]]\nname = "x"\nhosts = ["ghcr.io"]', "host ghcr.io belongs to two registries"),
        ('[[registry]]\nname = "quay.io"\n[[registry]]\nname = "quay.io"', "`registry[1]` repeats the name"),
        ('[[upstream]]\nkind = "central"', "`upstream[0]` of kind 'central' has no url"),
        ('[[upstream]]\nkind = "direct"\nurl = "https://x.example"', "of kind 'direct' has a url"),
        ('[[upstream]]\nkind = "connect"\nurl = "https://x.example"', "has the url https://x.example:443"),
        (f"{CONNECT}\ncertificate = '/c.pem'\nkey = '/k.pem'", "of kind 'connect' has a certificate"),
        ('[[upstream]]\nkind = "central"\nurl = "https://x"\nkey = "/k.pem"', "has no certificate"),
        ('[[upstream]]\nkind = "central"\nurl = "http://x"\nca = "/c.pem"', "is not spoken to over TLS"),
        (f"{CONNECT}\n{CONNECT}", "`upstream[1]` repeats connect http://proxy.example:3128"),
        (f'{CONNECT}\nfallback = "deny"\n[[upstream]]\nkind = "direct"', 'another says fallback = "deny"'),
    ],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, toml: str, told: str) -> None:
    """DESIGN 8."""
    assert told in complaint(tmp_path, toml)


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ('[steering]\nlease = "100ms"', "steering.lease"),
        ('[steering]\nmark = "0"', "steering.mark"),
        ('[steering]\nmark = "0x174/0xff"', "steering.mark"),
        ("[steering]\nport = 0", "steering.port"),
        ('[cache]\nmax_size = "20G"', "cache.max_size"),
        ("[cache]\nmax_size = true", "cache.max_size"),
        ('[dns]\nresolvers = ["resolver.example"]', "dns.resolvers"),
        ("[dns]\nresolvers = []", "dns.resolvers"),
        ('state_dir = "relative"', "state_dir"),
        ('[admin]\nlisten = "localhost:9077"', "admin.listen"),
        ('[[tags]]\nmatch = "("\nfresh_for = "1m"', "tags[0].match"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(tmp_path: Path, toml: str, key: str) -> None:
    """DESIGN 8: a bad value names the key and the accepted form."""
    assert f"`{key}` must be " in complaint(tmp_path, toml)


@pytest.mark.parametrize(
    ("toml", "setting"),
    [
        (
            '[[upstream]]\nkind = "mirror"\nurl = "https://x.example"',
            '[[upstream]] of kind "mirror"',
        ),
    ],
)
def test_a_setting_of_a_later_version_is_refused_rather_than_ignored(
    tmp_path: Path, toml: str, setting: str
) -> None:
    """DESIGN 8: nothing that is configured is silently without effect."""
    assert setting in NOT_YET, "it is implemented now: drop it from this table"
    assert f"{setting} is not in this version yet" in complaint(tmp_path, toml)


@pytest.mark.parametrize("backend", ["auto", "nft"])
def test_containers_are_steered_by_nft(tmp_path: Path, backend: str) -> None:
    """N21: the other back ends have no chains for them; `tests/netns/test_forwarded.py` has a refusal."""
    assert configured(tmp_path, f'[steering]\nforwarded = true\nbackend = "{backend}"').steering.forwarded
    assert not configured(tmp_path).steering.forwarded


@pytest.mark.parametrize("backend", ["ebpf", "nft-lease", "iptables", "none"])
def test_no_other_back_end_steers_containers(tmp_path: Path, backend: str) -> None:
    """N21: refused, with what to type."""
    told = complaint(tmp_path, f'[steering]\nforwarded = true\nbackend = "{backend}"')

    assert "steering.forwarded = true needs nft" in told


def test_a_registry_has_the_general_mode_unless_it_says_otherwise(tmp_path: Path) -> None:
    """N11: also a built-in one, by its name alone."""
    quay = '[[registry]]\nname = "quay.io"\nmode = "{}"\n'
    own = '[[registry]]\nname = "own"\nhosts = ["registry.local:5000", "*.registry.local"]\n'

    assert configured(tmp_path).sinkholed == ()
    assert configured(tmp_path, quay.format("sinkhole")).sinkholed == ("quay.io",)
    rest = configured(tmp_path, '[dns]\nmode = "sinkhole"\n' + quay.format("learn") + own)
    assert set(rest.host_patterns) - set(rest.sinkholed) == {"quay.io"}
    assert {"registry.local", "*.registry.local", "*.gcr.io"} < set(rest.sinkholed)


def test_one_host_may_be_several_registries_on_different_ports(tmp_path: Path) -> None:
    """C24: each with its own scheme and CA; the host is steered, and vouched for, once."""
    config = configured(
        tmp_path,
        "default_registries = false\n"
        '[[registry]]\nname = "a"\nhosts = ["registry.local"]\nca = "/etc/ca.pem"\n'
        '[[registry]]\nname = "b"\nhosts = ["registry.local:5000"]\nplain_http = true\n'
        '[[registry]]\nname = "c"\nhosts = ["registry.local"]\nplain_http = true\n',
    )

    assert [each.port_of(host) for each in config.registry for host in each.hosts] == [443, 5000, 80]
    assert config.host_patterns == ("registry.local",)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ('[[registry]]\nname = "x"\nhosts = ["quay.io:443"]', "belongs to two registries"),
        ('[[registry]]\nname = "quay.io"\nplain_http = true\nca = "/etc/ca.pem"', "speaks no TLS"),
        (
            '[[registry]]\nname = "x"\nhosts = ["quay.io:5000"]\nmode = "sinkhole"',
            'host quay.io is in registries of mode "learn" and of mode "sinkhole"',
        ),
        ('[dns]\nmode = "sinkhole"\n[steering]\nforwarded = true', "does not go with sinkholes"),
    ],
)
def test_registries_that_contradict_each_other_are_refused(tmp_path: Path, toml: str, told: str) -> None:
    """C24, DESIGN 8: the port that is meant when none is given counts."""
    assert told in complaint(tmp_path, toml)


HOSTS = [
    "ghcr.io",
    "*.pkg.dev",
    "registry.local:5000",
    "xn--bcher-kva.example",
    "a-b.c1.example:443",
    "registry",
]


@pytest.mark.parametrize("text", HOSTS)
def test_a_host_is_a_name_a_wildcard_or_a_name_and_a_port(text: str) -> None:
    """C24, DESIGN 5."""
    assert str(RegistryHost.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.1", "192.0.2.1:5000", "2001:db8::1", "[2001:db8::1]:443", "10.1", "*.0.0.127",
        "a.*.example", "*a.example", "*", "*.com", "a..b", "-a.example", "a-.example", "a_b.example",
        "", ".", "a.example:", "a.example:0", "a.example:65536", "a.example:https", "bücher.example",
        "https://ghcr.io", "ghcr.io/library", "a" * 64 + ".example", ".".join(["abcdefgh"] * 30),
        "a.example\n",
    ],
)  # fmt: skip
def test_what_is_no_name_that_could_be_steered_is_refused(text: str) -> None:
    """DESIGN 5: an IP literal is refused; a wildcard is the whole first label and never a whole TLD."""
    with pytest.raises(ValueError, match=r"'.*'"):
        RegistryHost.parse(text)


LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@given(st.booleans(), st.lists(LABEL, min_size=2, max_size=4), st.none() | st.integers(1, 65535))
def test_the_text_of_a_host_reads_back_as_the_host(
    is_wildcard: bool, labels: list[str], port: int | None
) -> None:
    """STYLE 7: str and parse are inverse."""
    host = RegistryHost(("*." if is_wildcard else "") + ".".join(labels), port)

    assert RegistryHost.parse(str(host)) == host


def test_without_a_file_the_defaults_hold_and_a_named_file_must_exist(tmp_path: Path) -> None:
    """DESIGN 8: everything has a default; a file that is asked for is not optional."""
    with pytest.raises(UsageError, match="does not exist"):
        load_config(tmp_path / "agent.toml", environment={})
