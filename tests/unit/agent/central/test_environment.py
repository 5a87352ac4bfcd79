"""docker-registry-proxy's variables in our words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_agent.central.config import CentralConfig
from tidegate_agent.central.environment import KNOWN, is_secret, translate
from tidegate_core.errors import UsageError
from tidegate_core.settings import environment_names


def test_what_has_an_equivalent_becomes_it() -> None:
    """T1: twins of our own keys, so that everything about a value is judged in one place."""
    found = translate(
        {
            "REGISTRIES": "quay.io  registry.example.net:5000",
            "ALLOW_PUSH": "TRUE",
            "DISABLE_IPV6": "true",
            "CACHE_MAX_SIZE": "32g",
            "AUTH_REGISTRIES": "auth.docker.io:user:pass:word",
            "VERIFY_SSL": "true",
            "PATH": "/bin",
        }
    )

    assert found.twins == {
        "TIDEGATE_PUSH__ALLOW": "true",
        "TIDEGATE_IPV6": "false",
        "TIDEGATE_CACHE__MAX_SIZE": "32GiB",
    }
    assert found.twins.keys() <= set(environment_names(CentralConfig))
    assert [entry.name for entry in found.registries] == ["quay.io", "registry.example.net:5000"]
    assert [(login.host, login.username) for login in found.logins] == [("auth.docker.io", "user")]
    assert found.warnings == ()


def test_both_delimiters_count() -> None:
    """C17: as docker-registry-proxy has them; what follows the second one is the password."""
    found = translate(
        {
            "AUTH_REGISTRIES": "a.example|u|p:q;b.example|_json_key|{}",
            "AUTH_REGISTRIES_DELIMITER": ";",
            "AUTH_REGISTRY_DELIMITER": "|",
        }
    )

    assert [(login.host, login.username, login.password.reveal()) for login in found.logins] == [
        ("a.example", "u", "p:q"),
        ("b.example", "_json_key", "{}"),
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("32g", "32GiB"), ("500M", "500MiB"), ("1024", "1024"), ("2T", "2TiB"), ("10k", "10KiB")],
)
def test_sizes_are_nginxs(text: str, size: str) -> None:
    """T1."""
    assert translate({"CACHE_MAX_SIZE": text}).twins["TIDEGATE_CACHE__MAX_SIZE"] == size


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"REGISTRIES", "AUTH_REGISTRIES"}))
def test_a_variable_is_in_effect_or_named_in_a_warning(name: str) -> None:
    """T1: none is dropped in silence. Delimiters without a list, and IPv6 that stays, ask for nothing."""
    value = {"CACHE_MAX_SIZE": "1g", "VERIFY_SSL": "false"}.get(name, "true")
    found = translate({name: value, "AUTH_REGISTRIES": ""})

    silent = ("AUTH_REGISTRIES_DELIMITER", "AUTH_REGISTRY_DELIMITER", "AUTH_REGISTRIES_FILE")
    assert found.twins or found.tags or name in silent or any(name in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AUTH_REGISTRES", "AUTH_REGISTRIES"),
        ("MANIFEST_CACHE_PRIMARY_TIEM", "MANIFEST_CACHE_PRIMARY_TIME"),
        ("ALLOW_PUSHES", "ALLOW_PUSH"),
        ("DISABLE_IPV", "DISABLE_IPV6"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest_one(name: str, meant: str) -> None:
    """T1: a login that is never used must not be a riddle."""
    assert f"{name} is no variable of docker-registry-proxy's or ours: did you mean {meant}?" in " ".join(
        translate({name: "x"}).warnings
    )


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "HOSTNAME", "DEBIAN_FRONTEND", "TIDEGATE_PUSH__ALLOW", "LANG"]
)
def test_other_peoples_variables_are_nobodys_business(name: str) -> None:
    """T1."""
    assert translate({name: "x"}).warnings == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRIES", "https://quay.io"),
        ("REGISTRIES", "10.0.0.1"),
        ("ALLOW_PUSH", "maybe"),
        ("CACHE_MAX_SIZE", "lots"),
    ],
)
def test_a_malformed_value_names_its_variable(name: str, value: str) -> None:
    """DESIGN 8: an error, and the next thing to type."""
    with pytest.raises(UsageError, match=name):
        translate({name: value})


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=6, max_size=30),
    st.sampled_from(["AUTH_REGISTRIES", "AUTH_REGISTRES", "AUTH_REGISTRY", "AUTH_REGISTRIES_DELIMITR"]),
)
def test_no_warning_and_no_error_repeats_what_may_be_a_password(text: str, name: str) -> None:
    """C17: whatever it holds, wherever it stands."""
    secret = f"zqj{text}jqz"
    try:
        said = " ".join(translate({name: secret, "MANIFEST_CACHE_DEFAULT_TIME": "1h"}).warnings)
    except UsageError as error:
        said = str(error)

    assert "zqj" not in said
    assert is_secret(name)


@pytest.mark.parametrize("name", ["AUTH_REGISTRIES_FILE", "AUTH_REGISTRIES_DELIMITER", "REGISTRIES", "PATH"])
def test_what_holds_no_password_may_stay_in_the_environment(name: str) -> None:
    """C17."""
    assert not is_secret(name)
